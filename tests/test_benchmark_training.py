"""research.benchmarks.training at its smallest: counts by phase, steps of every variant, what is printed adds up."""

import json

import pytest
import torch
from research.benchmarks.models import SIZES
from research.benchmarks.training import __main__ as training
from research.benchmarks.training.steps import VARIANTS, Bench, count_flops

CPU = torch.device("cpu")


def test_flops_tell_the_variants_apart():
    release, uncached, cached, kept = (
        count_flops(SIZES["tiny"], VARIANTS[name]) for name in ("release", "uncached", "cached", "kept")
    )
    assert release["encoders"] == uncached["encoders"] > 0 and "encoders" not in cached
    # One sample in ten needs no frozen prediction, except in the release's way.
    assert uncached["frozen pass"] == pytest.approx(0.9 * release["frozen pass"])
    assert sum(kept.values()) == sum(cached.values()) - cached["frozen pass"]
    assert release["recomputation"] > 0 and "recomputation" not in uncached
    for phase in ("adapted pass, backbone", "control blocks, forward", "backward"):
        assert release[phase] == uncached[phase] == cached[phase] > 0


def test_every_way_takes_the_same_step():
    steps = {}
    for name in ("release", "cached"):
        bench = Bench(SIZES["tiny"], 2, CPU, "no", encoders=True)
        before = [parameter.clone() for parameter in bench.parameters]
        bench.encoders = lambda pixels, batch=bench.features: batch  # the same features
        torch.manual_seed(1)
        bench.step(VARIANTS[name], 0)
        steps[name] = [parameter - old for parameter, old in zip(bench.parameters, before, strict=True)]
        assert all(parameter.grad is None for parameter in bench.parameters)
    assert all(change.abs().max() > 0 for change in steps["cached"])
    for one, other in zip(*steps.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-3)


def test_a_run(tmp_path, capsys):
    out = tmp_path / "out.json"
    few = ["--size", "tiny", "--device", "cpu", "--steps", "2", "--warmup", "0", "--out", str(out), "--profile"]
    training.main([*few, "--variants", "release", "cached", "--measure", "time"])
    result = json.loads(out.read_text())
    assert all(len(row["seconds"]) == 2 and row["speedup"] > 0 for row in result["variants"].values())
    assert result["profile"]["seconds"]["backward"] > 0
    assert "| the release's way |" in capsys.readouterr().out

"""`kill -9` at random moments, in the middle of a checkpoint too, and the same command again: nothing is different."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.toy import make_toy_bundle
from tests.toy_records import make_records

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
SLOWEST_START_S = 120


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return [
        sys.executable, str(ROOT / "train.py"),
        "--config=configs/mini_face.py",
        f"--config.model={make_toy_bundle(folder / 'bundle')}",
        f"--config.data.records=('{make_records(folder / 'records')}',)",
        f"--config.cache.dir={folder / 'cache'}",
        "--config.train.batch_size=4",
        "--config.log.every=1000",
        "--config.log.trackers=()",
        "--config.log.samples_every=0",
    ]  # fmt: skip


def run(command, workdir, *changes):
    process = subprocess.Popen(
        [*command, f"--workdir={workdir}", *changes], cwd=ROOT, env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return process


def kill_at_a_random_moment(process, workdir, rng):
    """From just before the first step to some seconds of steps and checkpoints later."""
    deadline = time.monotonic() + SLOWEST_START_S
    started = workdir / "environment.json"  # written when all is loaded
    began = started.stat().st_mtime_ns if started.exists() else 0
    while process.poll() is None and time.monotonic() < deadline:
        if started.exists() and started.stat().st_mtime_ns != began:
            break
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 3))
    finished = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    out = process.communicate()[0]
    assert not finished, f"was done, or failed, before it was killed:\n{out}"
    return out


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "steps"), [(1, 60), (20, 2500)], ids=["once", "20 times"])
def test_killed_runs_end_like_an_unbroken_one(command, tmp_path, kills, steps):
    whole = run(command, tmp_path / "whole", f"--config.train.steps={steps}", "--config.checkpoint.every=100000")
    out = whole.communicate(timeout=600)[0]
    assert whole.returncode == 0, out

    # A checkpoint at every step, so that many a kill hits one that is being written.
    changes = (f"--config.train.steps={steps}", "--config.checkpoint.every=1")
    rng = random.Random(0)
    resumed, cut_short, lengths = 0, 0, []
    for _ in range(kills):
        process = run(command, tmp_path / "killed", *changes)
        out = kill_at_a_random_moment(process, tmp_path / "killed", rng)
        resumed += "going on from" in out
        checkpoints = tmp_path / "killed" / "checkpoints"
        cut_short += any(checkpoints.glob(".tmp-*"))
        lengths.append(len([p for p in checkpoints.glob("0*")]) and max(int(p.name) for p in checkpoints.glob("0*")))
    last = run(command, tmp_path / "killed", *changes)
    out = last.communicate(timeout=600)[0]
    assert last.returncode == 0, out
    assert resumed >= kills - 1 and lengths == sorted(lengths) and lengths[-1] > 0
    print(f"killed at steps {lengths}; {cut_short} of {kills} kills left a checkpoint half written")

    a, b = (
        torch.load(tmp_path / name / "checkpoints" / "last" / "training" / "state.pt", weights_only=True)
        for name in ("whole", "killed")
    )
    assert all(torch.equal(a["weights"][name], b["weights"][name]) for name in a["weights"])
    assert all(torch.equal(x, y) for x, y in zip(a["ema"], b["ema"], strict=True))
    moments = [state["optimizer"]["state"] for state in (a, b)]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])
    bundles = [tmp_path / name / "checkpoints" / "last" / "feedface" for name in ("whole", "killed")]
    assert (bundles[0] / "model.safetensors").read_bytes() == (bundles[1] / "model.safetensors").read_bytes()
    assert not list((tmp_path / "killed").rglob(".tmp-*"))
    shutil.rmtree(tmp_path / "killed")

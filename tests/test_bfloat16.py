"""Which number format a CPU gets: tried once a machine, and kept."""

import json

import pytest
import torch

from feedface.common import bfloat16
from feedface.common.device import pick_dtype

CPU = torch.device("cpu")


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """A machine with AVX-512 and an empty home; `trials` are the speed-ups that it measures, in order."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    measured = []
    monkeypatch.setattr(bfloat16, "speedup", lambda: measured.pop(0))
    yield measured
    bfloat16.faster_in_bfloat16.cache_clear()


def started_anew() -> torch.dtype:
    bfloat16.faster_in_bfloat16.cache_clear()
    return pick_dtype("auto", CPU)


@pytest.mark.parametrize(("speedup", "dtype"), [(2.5, torch.bfloat16), (1.1, torch.float32)])
def test_one_trial_decides_and_is_kept(trials, tmp_path, speedup, dtype):
    trials += [speedup, 1 / speedup]
    assert started_anew() == dtype and started_anew() == dtype and len(trials) == 1
    assert pick_dtype("fp32", CPU) == torch.float32 and pick_dtype("bf16", CPU) == torch.bfloat16
    (tmp_path / "feedface" / "bfloat16.json").write_text("{")  # what was kept is lost: tried again
    started_anew()
    assert trials == []


def test_another_machine_with_the_same_home_is_tried_for_itself(trials, tmp_path, monkeypatch):
    trials += [2.5, 1.0]
    assert started_anew() == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "another")
    assert started_anew() == torch.float32
    assert len(json.loads((tmp_path / "feedface" / "bfloat16.json").read_text())) == 2


def test_emulated_bfloat16_is_not_even_tried(trials, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert started_anew() == torch.float32


def test_a_home_that_cannot_be_written_to(trials, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    trials.append(2.0)
    assert started_anew() == torch.bfloat16


def test_a_trial_measures_something():
    assert 0.001 < bfloat16.speedup(width=64, rows=64, tries=2) < 1000

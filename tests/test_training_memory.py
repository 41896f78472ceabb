"""Batches that cannot fit are refused before anything is read, and running out of memory is said in words."""

import time

import pytest
import torch
from tests.test_training import fresh_accelerate, make_config, world  # noqa: F401

from feedface.common.errors import UserError
from feedface.data.dataset import PictureDataset
from feedface.training import memory, profile_step
from feedface.training.dry_run import dry_run
from feedface.training.memory import out_of_memory_in_words
from feedface.training.trainer import Trainer, train

HUGE = [{"train.batch_size": 10**8}, {"train.batch_size": 2**63 - 1}, {"data.max_faces": 10**9}]


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("change", HUGE)
@pytest.mark.parametrize("run", [dry_run, train])
def test_a_batch_that_cannot_fit(world, tmp_path, monkeypatch, run, change, cached):  # noqa: F811
    def forbidden(*_):
        raise AssertionError("was read")

    monkeypatch.setattr(PictureDataset, "__getitems__", forbidden)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"config\.train\.batch_size=\d+ with config\.data\.max_faces=\d+ needs .* GiB"):
        run(make_config(world, **change, **{"cache.enabled": cached}), tmp_path / "run")
    assert time.monotonic() - began < 60


def test_a_batch_that_fits_is_not_refused(world, tmp_path, monkeypatch):  # noqa: F811
    """What is counted is less than what a step takes: a machine with that much memory is let try."""
    needs = []
    monkeypatch.setattr(memory, "_refuse", lambda config, needed, there, device: needs.append(needed))
    measured = []
    original = profile_step.PeakMemory.__exit__

    def noted(self, *error):
        original(self, *error)
        measured.append(self.peak)

    monkeypatch.setattr(profile_step.PeakMemory, "__exit__", noted)
    assert dry_run(make_config(world, **{"train.batch_size": 64, "cache.enabled": False}), tmp_path / "run") == 0
    assert 64 * 64 * 64 * 3 * 4 < needs[0] < measured[0]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
)
def test_running_out_of_memory(world, tmp_path, monkeypatch, error):  # noqa: F811
    def fails(self, *_):
        raise error

    monkeypatch.setattr(Trainer, "_step", fails)
    with pytest.raises(UserError, match="out of memory on cpu with 4 samples at a time; use a smaller"):
        train(make_config(world), tmp_path)


def test_other_errors_keep_their_traceback(world):  # noqa: F811
    with pytest.raises(RuntimeError, match="defect"), out_of_memory_in_words(make_config(world), torch.device("cpu")):
        raise RuntimeError("a defect")

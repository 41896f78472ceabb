"""Checkpoints written beside training: the same ones, while steps go on, and an error in them reaches the user."""

import time
from threading import Event

import pytest
import torch
from tests.test_training import fresh_accelerate, make_config, world  # noqa: F401

from feedface.common.errors import UserError
from feedface.training import trainer
from feedface.training.background import Background
from feedface.training.trainer import train


@pytest.mark.parametrize("apart", [True, False])
def test_one_piece_at_a_time_and_errors_come_up(apart):
    background, done = Background(apart), []
    for number in range(3):
        background.do(lambda number=number: done.append(number))
    background.wait()
    assert done == [0, 1, 2]

    def fail():
        raise UserError("no room")

    with pytest.raises(UserError, match="no room"):
        background.do(fail)
        background.wait()
    background.do(lambda: done.append(3))  # said once
    background.wait()
    background.check()
    assert done[-1] == 3


def test_what_is_not_done_is_not_waited_for():
    background, go = Background(True), Event()
    background.do(go.wait)
    background.check()
    go.set()
    background.wait()


def test_steps_go_on_while_a_checkpoint_of_before_is_written(world, tmp_path, monkeypatch):  # noqa: F811
    changes = {"train.steps": 4, "checkpoint.every": 2}
    assert train(make_config(world, **changes), tmp_path / "plain") == 0
    save, step, take = trainer.save_checkpoint, trainer.Trainer._step, trainer.take_snapshot
    third, last, writing = Event(), Event(), Event()

    def late(workdir, progress, *args, **options):
        writing.set()
        if progress.step == 2:
            assert third.wait(60) and last.wait(60)
            time.sleep(0.2)  # in which the next checkpoint is due
        folder = save(workdir, progress, *args, **options)
        writing.clear()
        return folder

    def stepped(self, *args):
        step(self, *args)
        {3: third, 4: last}.get(self.progress.step, Event()).set()

    def alone(*args):
        assert not writing.is_set()
        return take(*args)

    monkeypatch.setattr(trainer, "take_snapshot", alone)
    monkeypatch.setattr(trainer, "save_checkpoint", late)
    monkeypatch.setattr(trainer.Trainer, "_step", stepped)
    assert train(make_config(world, **changes, **{"checkpoint.in_background": True}), tmp_path / "apart") == 0
    for folder in ("00000002", "00000004"):
        one, other = (
            torch.load(tmp_path / run / "checkpoints" / folder / "training/state.pt", weights_only=True)
            for run in ("plain", "apart")
        )
        for a, b in zip(one["ema"], other["ema"], strict=True):
            assert torch.equal(a, b)
        assert all(torch.equal(one["weights"][name], other["weights"][name]) for name in one["weights"])
        moments = [state["optimizer"]["state"] for state in (one, other)]
        assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])


def test_an_error_while_writing_ends_the_run(world, tmp_path, monkeypatch):  # noqa: F811
    def full(*args, **options):
        raise UserError("checkpoints: the disk is full")

    monkeypatch.setattr(trainer, "save_checkpoint", full)
    config = make_config(world, **{"train.steps": 50, "checkpoint.every": 1, "checkpoint.in_background": True})
    steps, step = [], trainer.Trainer._step
    monkeypatch.setattr(trainer.Trainer, "_step", lambda self, *args: steps.append(1) or step(self, *args))
    with pytest.raises(UserError, match="the disk is full"):
        train(config, tmp_path)
    assert len(steps) <= 2

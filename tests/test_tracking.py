"""What is logged of a run, and what stops it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from PIL import Image

from feedface.common.errors import UserError
from feedface.diffusion.objective import LossParts
from feedface.training.tracking import (
    JUDGED_SAMPLES,
    BadLoss,
    Diverged,
    NotFinite,
    Tracker,
    check_trackers,
    peak_memory,
)


@pytest.fixture
def accelerator(tmp_path):
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield Accelerator(
        cpu=True, log_with=["tensorboard"], project_config=ProjectConfiguration(str(tmp_path), str(tmp_path / "logs"))
    )
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def parts(loss, face=0.0, background=0.0, count=4, masked=0):
    sums = torch.tensor([loss * count, face * masked, background * masked])
    return [LossParts(torch.tensor(loss), sums, torch.tensor([count, masked, masked]))]


def report(tracker, loss, step=1, count=4):
    tracker.step(parts(loss, count=count), torch.tensor(1.0), count)
    return tracker.report(step, 0.1)


def test_means_and_samples(accelerator, capsys):
    tracker = Tracker(accelerator, total_samples=1000, first_sample=100)
    tracker.step(parts(1.0, 0.5, 0.25, masked=2), torch.tensor(2.0), 32)
    tracker.step(parts(3.0), torch.tensor(4.0), 32)
    values = tracker.report(2, 0.1)
    expected = {"loss": 2.0, "loss_face": 0.5, "loss_background": 0.25, "grad_norm": 3.0, "lr": 0.1}
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert 0 < values["memory_gib"] == pytest.approx(peak_memory(accelerator.device) / 2**30, rel=0.1)
    assert tracker.bar.n == 164 and tracker.bar.total == 1000
    assert "loss_face" not in report(tracker, 1.0)
    tracker.bar.every_s = 0  # no terminal here: lines now and then
    tracker.bar.update(0)
    tracker.close()
    assert "168 of 1000 samples" in (shown := capsys.readouterr().err) and "loss=1.0000" in shown


def test_peak_memory_of_the_process():
    before = peak_memory(torch.device("cpu"))
    held = np.ones(60 * 2**20, np.uint8)
    assert peak_memory(torch.device("cpu")) >= max(before, held.nbytes)
    assert 2**26 < before < 2**38  # bytes, not KiB


def test_divergence(accelerator):
    tracker = Tracker(accelerator, 100, 0, max_loss_ratio=4)
    # The first three may be anything.
    for loss in (1.0, 50.0, 0.5, 1.9, 0.4):
        report(tracker, loss, count=JUDGED_SAMPLES)
    with pytest.raises(Diverged, match=r"0\.4 at its lowest, rose more than 4-fold .* to 1\.7"):
        report(tracker, 1.7, count=JUDGED_SAMPLES)
    assert issubclass(Diverged, BadLoss) and issubclass(NotFinite, BadLoss)
    off = Tracker(accelerator, 100, 0)
    for loss in (1.0, 1.0, 1.0, 1.0, 1e6):
        report(off, loss, count=JUDGED_SAMPLES)


@pytest.mark.parametrize(("batch", "log_every"), [(1, 1), (4, 1), (16, 1), (16, 20), (96, 20)])
def test_a_healthy_run_is_not_diverged_and_a_diverged_one_is(accelerator, batch, log_every):
    """Losses as the miniature's: a sample's lies anywhere between 2e-4 and 0.5, by its timestep."""
    rng = np.random.default_rng(0)
    tracker = Tracker(accelerator, 10**6, 0, max_loss_ratio=10)

    def steps(count, worse=1.0):
        for step in range(count):
            loss = float(np.mean(10 ** rng.uniform(np.log10(2e-4), np.log10(0.5), batch))) * worse
            tracker.step(parts(loss, count=batch), torch.tensor(1.0), batch)
            if step % log_every == log_every - 1:
                tracker.report(step, 0.1)

    steps(2000)
    steps(1, worse=1e4)  # one odd step
    steps(2 * max(log_every, JUDGED_SAMPLES // batch))
    with pytest.raises(Diverged):
        steps(2 * max(log_every, JUDGED_SAMPLES // batch + 1), worse=100)


@pytest.mark.parametrize(("loss", "norm"), [(float("nan"), 1.0), (1.0, float("inf")), (float("inf"), 1.0)])
def test_not_finite(accelerator, loss, norm):
    tracker = Tracker(accelerator, 100, 0, max_loss_ratio=4)
    tracker.step(parts(loss), torch.tensor(norm), 4)
    with pytest.raises(NotFinite, match="not finite"):
        tracker.report(1, 0.1)


def test_overflow_of_half_precision_is_no_failure(accelerator):
    accelerator.scaler = SimpleNamespace()
    tracker = Tracker(accelerator, 100, 0)
    tracker.step(parts(1.0), torch.tensor(float("inf")), 4)
    tracker.step(parts(1.0), torch.tensor(3.0), 4)
    assert tracker.report(2, 0.1)["grad_norm"] == 1.5


def test_pictures_reach_tensorboard(accelerator, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    picture = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "grid.png")
    accelerator.init_trackers("feedface")
    tracker = Tracker(accelerator, 100, 0)
    report(tracker, 1.0, step=7)
    tracker.image(tmp_path / "grid.png", step=7)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "logs" / "feedface")).Reload()
    (name,) = events.Tags()["images"]
    (event,) = events.Images(name)
    assert name.startswith("samples") and (event.step, event.width, event.height) == (7, 60, 40)
    assert events.Scalars("train/loss")[0].value == 1.0


def test_pictures_reach_wandb(accelerator, tmp_path):
    """As accelerate's W&B tracker takes them: one array [H,W,3] each, and no argument that `wandb.log` lacks."""
    Image.new("L", (6, 4)).save(tmp_path / "grid.png")
    calls = []

    def log_images(values, step):
        calls.append(([image.shape for image in values["samples"]], step))

    accelerator.trackers = [SimpleNamespace(name="wandb", log_images=log_images, finish=lambda: None)]
    Tracker(accelerator, 100, 0).image(tmp_path / "grid.png", step=3)
    assert calls == [([(4, 6, 3)], 3)]


def test_unknown_tracker():
    with pytest.raises(UserError, match="comet"):
        check_trackers(("comet",))

"""Watching a run: progress bar and trackers (TensorBoard; W&B where asked for) through accelerate."""

import hashlib
import importlib.util
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from feedface.common.errors import UserError
from feedface.common.progress import progress
from feedface.diffusion.objective import LossParts

# The loss of a sample varies a thousandfold with its timestep: so many are judged together, however often is logged.
JUDGED_SAMPLES = 320
# The loss may exceed `max_loss_ratio` at first: the lowest of one or two windows says little.
WINDOWS_BEFORE_DIVERGED = 3
LINE_EVERY_S = 30  # of progress in a log file; runs take hours


class BadLoss(Exception):
    """Training cannot go on from here; the message says what is wrong with the loss."""


class NotFinite(BadLoss):
    """Loss or gradient is NaN or infinite."""


class Diverged(BadLoss):
    """The loss is many times what it was."""


def check_trackers(names: tuple[str, ...]) -> None:
    """`UserError` for a tracker that is unknown or whose library is not installed."""
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise UserError(f"log.trackers: {name!r} is unknown; use tensorboard, wandb")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed; `pip install {name}`, or leave it out")


def init_trackers(accelerator: Accelerator, config: dict[str, Any], workdir: Path, first_step: int) -> None:
    """Start the trackers of a run, or go on with them; what was logged from `first_step` on is logged again.

    TensorBoard writes to `workdir`/logs, W&B to `workdir`/wandb, under an id that belongs to the folder.
    """
    run = hashlib.sha256(str(workdir.resolve()).encode()).hexdigest()[:16]
    options = {
        "tensorboard": {"purge_step": first_step},
        "wandb": {"dir": str(workdir), "id": run, "name": workdir.name, "resume": "allow"},
    }
    try:
        accelerator.init_trackers("feedface", config=config, init_kwargs=options)
    except Exception as error:  # W&B without a key or a network fails in many ways
        raise UserError(
            f"log.trackers: cannot be started ({error}); W&B works offline with WANDB_MODE=offline"
        ) from None


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has had at most: allocated on a CUDA `device`, else of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


class Tracker:
    """Adds up what the steps report and logs means; `report` must be called on all processes together.

    Args:
        total_samples: what the run will have seen at its end, in samples of all processes.
        first_sample: what it has seen already.
        max_loss_ratio: `report` raises `Diverged` when the loss over the last `JUDGED_SAMPLES` or more is more than so
            many times the lowest such loss of this process; 0 never does.
    """

    def __init__(self, accelerator: Accelerator, total_samples: int, first_sample: int, max_loss_ratio: float = 0):
        self.accelerator, self.max_loss_ratio = accelerator, max_loss_ratio
        self.window: list[float] = []  # mean losses of the steps that are still to be judged
        self.window_samples, self.windows, self.lowest = 0, 0, math.inf
        self.bar = progress(
            total=total_samples,
            initial=first_sample,
            unit="sample",
            disable=not accelerator.is_main_process,
            every_s=LINE_EVERY_S,
        )
        self._reset()

    def _reset(self) -> None:
        self.sums: list[Tensor] = []  # [6] of each step: sums, then counts
        self.norm = torch.zeros((), device=self.accelerator.device)
        self.samples, self.since = 0, time.perf_counter()

    def step(self, parts: list[LossParts], grad_norm: Tensor, samples: int) -> None:
        """Count one optimizer step of `samples` samples (all processes)."""
        self.sums.append(sum(torch.cat([part.sums, part.counts]) for part in parts))
        if self.accelerator.scaler is not None:  # fp16: the scaler skips steps that overflow, that is no failure
            grad_norm = torch.where(torch.isfinite(grad_norm), grad_norm, 0.0)
        self.norm = self.norm + grad_norm
        self.samples += samples
        self.bar.update(samples)

    def report(self, step: int, lr: float) -> dict[str, float]:
        """Log means since the last report and return them. Raises `BadLoss`, on all processes alike.

        Losses are means per sample, before any min-SNR weighting; `loss_face`, `loss_background` over the samples
        that have such a part. `memory_gib` is the most this process has had so far, see `peak_memory`.
        """
        steps = self.accelerator.reduce(torch.stack(self.sums), reduction="sum")  # [steps, 6]
        sums = steps.sum(dim=0)
        loss, face, background = (sums[:3] / sums[3:].clamp(min=1)).tolist()
        seconds = time.perf_counter() - self.since
        values = {"loss": loss, "grad_norm": float(self.norm) / len(self.sums), "lr": lr}
        if sums[4]:
            values["loss_face"] = face
        if sums[5]:
            values["loss_background"] = background
        values["samples_per_s"] = self.samples / seconds
        values["memory_gib"] = peak_memory(self.accelerator.device) / 2**30
        self.window += (steps[:, 0] / steps[:, 3].clamp(min=1)).tolist()
        self.window_samples += int(sums[3])
        self._reset()
        if not all(map(math.isfinite, (loss, face, background, values["grad_norm"]))):
            raise NotFinite("loss or gradients are not finite")
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        self.bar.set_postfix(loss=f"{loss:.4f}")
        self._judge()
        return values

    def _judge(self) -> None:
        if self.window_samples < JUDGED_SAMPLES:
            return
        loss = statistics.median(self.window)  # one odd step is no divergence
        self.window, self.window_samples = [], 0
        limit = self.max_loss_ratio * self.lowest
        if self.max_loss_ratio and self.windows >= WINDOWS_BEFORE_DIVERGED and loss > limit:
            raise Diverged(
                f"the mean loss, {self.lowest:.4g} at its lowest, rose more than {self.max_loss_ratio:g}-fold "
                f"(config.train.max_loss_ratio) to {loss:.4g}"
            )
        self.windows += 1
        self.lowest = min(self.lowest, loss)

    def image(self, path: Path, step: int) -> None:
        """Hand the picture at `path` to the trackers."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))[None]  # [1,H,W,3]
        for tracker in self.accelerator.trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({"samples": pixels}, step=step, **layout)

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        self.accelerator.end_training()

"""Watching a run: progress bar and trackers (TensorBoard; W&B where asked for) through accelerate."""

import importlib.util
import sys
import time

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from feedface.errors import UserError
from feedface.training.objective import LossParts


class NotFinite(Exception):
    """Loss or gradient is NaN or infinite."""


def check_trackers(names: tuple[str, ...]) -> None:
    """`UserError` for a tracker that is unknown or whose library is not installed."""
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise UserError(f"log.trackers: {name!r} is unknown; use tensorboard, wandb")
        if importlib.util.find_spec(name) is None:
            raise UserError(f"log.trackers: {name} is not installed; `pip install {name}`, or leave it out")


class Tracker:
    """Adds up what the steps report and logs means; `report` must be called on all processes together."""

    def __init__(self, accelerator: Accelerator, steps: int, first_step: int):
        self.accelerator = accelerator
        # A log file is not a terminal: there a bar redrawn every second is megabytes.
        self.bar = tqdm(
            total=steps,
            initial=first_step,
            unit="step",
            mininterval=1 if sys.stderr.isatty() else 30,
            disable=not accelerator.is_main_process,
        )
        self._reset()

    def _reset(self) -> None:
        zeros = torch.zeros(3, device=self.accelerator.device)
        self.sums, self.counts, self.norm = zeros, zeros.clone(), zeros[0].clone()
        self.steps, self.samples, self.since = 0, 0, time.perf_counter()

    def step(self, parts: list[LossParts], grad_norm: Tensor, samples: int) -> None:
        """Count one optimizer step of `samples` samples (all processes)."""
        for part in parts:
            self.sums = self.sums + part.sums
            self.counts = self.counts + part.counts
        if self.accelerator.scaler is not None:  # fp16: the scaler skips steps that overflow, that is no failure
            grad_norm = torch.where(torch.isfinite(grad_norm), grad_norm, 0.0)
        self.norm = self.norm + grad_norm
        self.steps += 1
        self.samples += samples
        self.bar.update()

    def report(self, step: int, lr: float) -> dict[str, float]:
        """Log means since the last report and return them. Raises `NotFinite`.

        Losses are means per sample, before any min-SNR weighting; `loss_face`, `loss_background` over the samples
        that have such a part.
        """
        sums = self.accelerator.reduce(torch.cat([self.sums, self.counts]), reduction="sum")
        loss, face, background = (sums[:3] / sums[3:].clamp(min=1)).tolist()
        seconds = time.perf_counter() - self.since
        values = {"loss": loss, "grad_norm": float(self.norm) / max(self.steps, 1), "lr": lr}
        if sums[4]:
            values["loss_face"] = face
        if sums[5]:
            values["loss_background"] = background
        values["samples_per_s"] = self.samples / seconds
        if self.accelerator.device.type == "cuda":
            values["memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._reset()
        if not all(map(torch.isfinite, (sums[:3].sum(), torch.tensor(values["grad_norm"])))):
            raise NotFinite
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)
        self.bar.set_postfix(loss=f"{loss:.4f}", samples_per_s=f"{values['samples_per_s']:.1f}")
        return values

    def close(self) -> None:
        """End the bar and the trackers."""
        self.bar.close()
        self.accelerator.end_training()

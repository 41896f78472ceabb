"""The training loop beside the trainer: one process, one model, any loss. The miniature and distillation use it.

    result = fit("vae", vae, step, config, folder)

`folder` gets checkpoint.pt (to go on from), log.txt and, by `write_metrics`, metrics.json.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import ml_collections
import torch
from torch import Tensor, nn

from feedface.common.device import fast_bfloat16
from feedface.common.errors import UserError
from feedface.common.files import atomic_file, make_folder
from feedface.common.progress import say
from feedface.training.ema import Ema

LOG_EVERY_S = 15
# Budgets may be raised to train longer; everything else must stay as it was when a run is resumed.
BUDGET_KEYS = ("steps", "minutes", "save_every_s", "device")

Step = Callable[[torch.Generator], Tensor | tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class FitResult:
    """What a training run cost. `seconds` and `samples` add up over all resumed parts."""

    steps: int
    samples: int
    seconds: float
    loss: float | None  # running mean over about the last fifty steps
    parameters: int


def fit_config(**changes) -> ml_collections.ConfigDict:
    """Settings that `fit` reads; a config of its own holds these keys and others.

    steps, minutes: the budget; whichever is used up first ends the run (0 = no limit of that kind).
    """
    config = ml_collections.ConfigDict(
        {
            "batch_size": 128,
            "steps": 0,
            "minutes": 0.0,
            "lr": 1e-3,
            "muon_lr": 0.0,  # of the matrices that the caller names, by Muon; 0: AdamW for them too
            "schedule": "cosine",  # or "trapezoid": constant, then straight down over the budget's second half
            "warmup_steps": 100,
            "weight_decay": 0.01,
            "betas": (0.9, 0.99),
            "grad_clip": 1.0,
            "ema_decay": 0.999,
            "amp": False,  # bfloat16 autocast, where that is fast
            "seed": 0,
            "save_every_s": 120.0,
            "device": "auto",
        }
    )
    # Keys of its own count as known from then on.
    with config.unlocked():
        config.update(changes)
    return config.lock()


def fit(
    name: str,
    model: nn.Module,
    step_fn: Step,
    config: ml_collections.ConfigDict,
    folder: Path,
    matrices: Sequence[nn.Parameter] = (),
    critic: Sequence[nn.Parameter] = (),
) -> FitResult:
    """Train `model` and leave its averaged weights in it, in eval mode.

    AdamW (and Muon), linear warm-up, then `config.schedule` to zero over the budget, a moving average, a checkpoint
    every `config.save_every_s` seconds; calling it again goes on from there, or returns at once when the budget is used
    up.

    Args:
        name: for the log lines.
        model: holds every trained parameter (an `nn.ModuleDict` for several networks), already on its device.
        step_fn: draws a batch with the given CPU generator (seeded from config.seed and the step, so a resumed run
            sees what an unbroken one would) and returns the scalar loss, or (loss, named scalars to log).
        config: see `fit_config`.
        folder: the run's own folder.
        matrices: parameters of two dimensions inside the network, for Muon when `config.muon_lr` is set.
        critic: parameters that learn at a rate of their own, `config.critic_lr`.

    Raises:
        UserError: the checkpoint in `folder` was made with other settings.
    """
    if not (config.steps or config.minutes):
        raise UserError(f"{name}: set a budget, steps or minutes")
    make_folder(folder)
    run = _Run(name, model, config, folder, matrices, critic)
    device = next(model.parameters()).device
    with open(folder / "log.txt", "a") as log:
        so_far = f"step {run.step}, {run.elapsed_s / 60:.1f} min so far"
        log_line(f"{name}: {run.parameters / 1e6:.2f} M parameters, {so_far}", log)
        model.train()
        last = saved = logged = time.monotonic()
        logged_step = run.step
        generator = torch.Generator()
        while (used := budget_used(config, run.step, run.elapsed_s)) < 1:
            generator.manual_seed(config.seed * 1_000_003 + run.step)
            # Dropout and other draws outside the generator repeat on resuming too.
            torch.manual_seed(config.seed * 1_000_003 + run.step)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and fast_bfloat16(device)):
                result = step_fn(generator)
            loss, extra = result if isinstance(result, tuple) else (result, {})
            run.optimise(loss, used)
            now = time.monotonic()
            run.elapsed_s += now - last
            last = now
            if now - logged > LOG_EVERY_S:
                speed = (run.step - logged_step) * config.batch_size / (now - logged)
                details = "".join(f" {key} {float(number):.4f}" for key, number in extra.items())
                minutes = run.elapsed_s / 60
                left = minutes * (1 / used - 1) if used else math.nan
                progress = f"step {run.step} ({used:.0%}, {minutes:.1f} min, {left:.1f} left)"
                log_line(f"{name}: {progress} loss {run.mean_loss:.4f}{details} {speed:.0f} samples/s", log)
                logged, logged_step = now, run.step
            if now - saved > config.save_every_s:
                run.save()
                saved = last = time.monotonic()
        run.save()
        run.ema.take_over()
        model.eval()
        log_line(f"{name}: done, {run.step} steps, {run.elapsed_s / 60:.1f} min, loss {run.mean_loss:.4f}", log)
    return FitResult(run.step, run.step * config.batch_size, run.elapsed_s, run.mean_loss, run.parameters)


class _Run:
    """What a checkpoint holds: model, optimizers, moving average, how far it is. Made from the one that is there."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        config: ml_collections.ConfigDict,
        folder: Path,
        matrices: Sequence[nn.Parameter],
        critic: Sequence[nn.Parameter],
    ):
        self.name, self.model, self.config, self.checkpoint = name, model, config, folder / "checkpoint.pt"
        self.trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
        self.parameters = sum(p.numel() for p in self.trained.values())
        # A critic's steep gradient is not to make the other's steps small.
        apart = {id(p) for p in critic}
        self.clipped_together = [[p for p in self.trained.values() if id(p) not in apart], list(critic)]
        self.optimizers = _optimizers(list(self.trained.values()), matrices if config.muon_lr else (), critic, config)
        self.ema = Ema(self.trained.values(), config.ema_decay)
        self.step, self.elapsed_s, self.mean_loss = 0, 0.0, math.nan
        if self.checkpoint.exists():
            self._load(torch.load(self.checkpoint, next(model.parameters()).device, weights_only=True))

    def optimise(self, loss: Tensor, used: float) -> None:
        """One step down the loss's gradient, when this share of the budget is used up."""
        config = self.config
        factor = min(1, (self.step + 1) / config.warmup_steps) * _SCHEDULES[config.schedule](used)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"] * factor
            optimizer.zero_grad()
        loss.backward()
        for parameters in self.clipped_together:
            nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.ema.update(self.step)
        self.step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"{self.name}: the loss became {value} at step {self.step}")
        mean = self.mean_loss
        self.mean_loss = value if math.isnan(mean) else mean + 0.02 * (value - mean)

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": dict(zip(self.trained, self.ema.averages, strict=True)),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "loss": self.mean_loss,
            "config": settings_json(self.config),
        }
        with atomic_file(self.checkpoint) as path:
            torch.save(state, path)

    def _load(self, state: dict) -> None:
        self._check_same_settings(json.loads(state["config"]))
        self.model.load_state_dict(state["model"])
        # Earlier checkpoints have the whole averaged module, as torch's `AveragedModel` names it.
        averages = {key.removeprefix("module."): value for key, value in state["ema"].items()}
        for average, key in zip(self.ema.averages, self.trained, strict=True):
            average.copy_(averages[key])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.elapsed_s, self.mean_loss = state["step"], state["elapsed_s"], state["loss"]

    def _check_same_settings(self, before: dict) -> None:
        now = json.loads(settings_json(self.config))
        different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        if different:
            raise UserError(
                f"{self.checkpoint}: was trained with other settings ({', '.join(different)}); "
                f"delete {self.checkpoint.parent} to train {self.name} again, or use another --workdir"
            )


def budget_used(config: ml_collections.ConfigDict, step: int, elapsed_s: float) -> float:
    """Share of the budget that is used up, the larger of steps and minutes; >= 1 means done."""
    by_steps = step / config.steps if config.steps else 0.0
    by_time = elapsed_s / (60 * config.minutes) if config.minutes else 0.0
    return max(by_steps, by_time)


def settings_json(config: ml_collections.ConfigDict) -> str:
    """The settings that decide what is trained, as text for comparison (budgets left out)."""
    settings = {key: value for key, value in config.to_dict().items() if key not in BUDGET_KEYS}
    return json.dumps(settings, sort_keys=True)


def _optimizers(
    trained: Sequence[nn.Parameter],
    matrices: Sequence[nn.Parameter],
    critic: Sequence[nn.Parameter],
    config: ml_collections.ConfigDict,
) -> list[torch.optim.Optimizer]:
    """AdamW for all of `trained` but the `matrices`, which Muon takes; groups know their highest rate, "peak_lr"."""
    apart = {id(p) for p in (*matrices, *critic)}
    groups = _decay_groups([p for p in trained if id(p) not in apart], config.weight_decay)
    if critic:
        groups += [group | {"lr": config.critic_lr} for group in _decay_groups(critic, config.weight_decay)]
    optimizers = [torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(list(matrices), lr=config.muon_lr, weight_decay=config.weight_decay))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return optimizers


# Share of the budget used up -> share of the learning rate.
_SCHEDULES = {
    "cosine": lambda used: 0.5 * (1 + math.cos(math.pi * used)),
    "trapezoid": lambda used: min(1.0, 2 * (1 - used)),
}


def _decay_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict]:
    # Biases, norm gains and scalars are not decayed, as usual.
    matrices = [p for p in parameters if p.ndim >= 2]
    others = [p for p in parameters if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def log_line(line: str, log: TextIO) -> None:
    """To stdout and to an open text file."""
    say(line)
    say(line, log)


def write_metrics(folder: Path, config: ml_collections.ConfigDict, result: FitResult | None, **metrics) -> dict:
    """Write `folder/metrics.json` (settings, cost, what was measured) and print the latter."""
    record = {"settings": config.to_dict(), "training": asdict(result) if result else None, "metrics": metrics}
    with atomic_file(folder / "metrics.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    if metrics:
        say(f"{folder.name}: " + ", ".join(f"{name} {value}" for name, value in metrics.items()))
    return record

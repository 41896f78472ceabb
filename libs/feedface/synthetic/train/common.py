"""What all stages share: the training loop, the portraits, metrics and sample sheets.

A stage is a module with `run(config, workdir)`: it trains one component, keeps its own files in `<workdir>/<stage>/`
(checkpoint.pt, log.txt, metrics.json, samples.png) and puts the component into `<workdir>/bundle/<component>/`.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import ml_collections
import numpy as np
import torch
from absl import flags
from ml_collections import config_flags
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from feedface.common.config_flags import explain
from feedface.common.device import fast_bfloat16
from feedface.common.errors import UserError
from feedface.common.files import atomic_file, make_folder
from feedface.common.places import config_folder

ROOT = Path(__file__).resolve().parents[4]  # the repository, for configs/ and train.py
LOG_EVERY_S = 15
# Budgets may be raised to train longer; everything else must stay as it was when a run is resumed.
BUDGET_KEYS = ("steps", "minutes", "save_every_s", "device")


@dataclass(frozen=True)
class FitResult:
    """What a training run cost. `seconds` and `samples` add up over all resumed parts."""

    steps: int
    samples: int
    seconds: float
    loss: float | None  # running mean over about the last fifty steps
    parameters: int


def fit_config(**changes) -> ml_collections.ConfigDict:
    """Settings that `fit` reads; a stage's config holds these keys and its own.

    steps, minutes: the budget; whichever is used up first ends the run (0 = no limit of that kind).
    """
    config = ml_collections.ConfigDict(
        {
            "batch_size": 128,
            "steps": 0,
            "minutes": 0.0,
            "lr": 1e-3,
            "muon_lr": 0.0,  # of the matrices that a stage names, by Muon; 0: AdamW for them too
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
    # A stage adds keys of its own, and they count as known from then on.
    with config.unlocked():
        config.update(changes)
    return config.lock()


def fit(
    stage: str,
    model: nn.Module,
    step_fn: Callable[[torch.Generator], Tensor | tuple[Tensor, dict[str, Tensor]]],
    config: ml_collections.ConfigDict,
    folder: Path,
    matrices: Sequence[nn.Parameter] = (),
) -> FitResult:
    """Train `model` and leave its EMA weights in it, in eval mode.

    AdamW (and Muon), linear warm-up, then `config.schedule` to zero over the budget, EMA, a checkpoint every
    `config.save_every_s` seconds in `folder/checkpoint.pt`; calling it again resumes from there, or returns at once
    when the budget is used up.

    Args:
        stage: name for the log lines.
        model: holds every trained parameter (an `nn.ModuleDict` for several networks), already on its device.
        step_fn: draws a batch with the given CPU generator (seeded from config.seed and the step, so a resumed run
            sees what an unbroken one would) and returns the scalar loss, or (loss, named scalars to log).
        config: see `fit_config`.
        folder: the stage's own folder.
        matrices: parameters of two dimensions inside the network, for Muon when `config.muon_lr` is set.

    Raises:
        UserError: the checkpoint in `folder` was made with other settings.
    """
    if not (config.steps or config.minutes):
        raise UserError(f"{stage}: set a budget, steps or minutes")
    make_folder(folder)
    device = next(model.parameters()).device
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizers = _optimizers(trained, matrices if config.muon_lr else (), config)
    ema = AveragedModel(model, multi_avg_fn=_ema_update(config.ema_decay))
    checkpoint = folder / "checkpoint.pt"
    step, elapsed_s, mean_loss = 0, 0.0, math.nan
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        _check_same_settings(stage, checkpoint, state["config"], config)
        model.load_state_dict(state["model"])
        ema.load_state_dict(state["ema"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, elapsed_s, mean_loss = state["step"], state["elapsed_s"], state["loss"]

    def save() -> None:
        state = {"model": model.state_dict(), "ema": ema.state_dict()}
        state["optimizers"] = [optimizer.state_dict() for optimizer in optimizers]
        state |= {"step": step, "elapsed_s": elapsed_s, "loss": mean_loss, "config": settings_json(config)}
        with atomic_file(checkpoint) as path:
            torch.save(state, path)

    log = open(folder / "log.txt", "a")  # noqa: SIM115 (open for the whole run)
    parameters = sum(p.numel() for p in trained)
    say(f"{stage}: {parameters / 1e6:.2f} M parameters, step {step}, {elapsed_s / 60:.1f} min so far", log)
    model.train()
    last = saved = logged = time.monotonic()
    logged_step = step
    generator = torch.Generator()
    while (used := budget_used(config, step, elapsed_s)) < 1:
        generator.manual_seed(config.seed * 1_000_003 + step)
        # Dropout and other draws outside the generator repeat on resuming too.
        torch.manual_seed(config.seed * 1_000_003 + step)
        share = min(1, (step + 1) / config.warmup_steps) * _SCHEDULES[config.schedule](used)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["peak_lr"] * share
        with torch.autocast(device.type, torch.bfloat16, enabled=config.amp and fast_bfloat16(device)):
            result = step_fn(generator)
        loss, extra = result if isinstance(result, tuple) else (result, {})
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, config.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        ema.update_parameters(model)
        step += 1
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"{stage}: the loss became {value} at step {step}")
        mean_loss = value if math.isnan(mean_loss) else mean_loss + 0.02 * (value - mean_loss)
        now = time.monotonic()
        elapsed_s += now - last
        last = now
        if now - logged > LOG_EVERY_S:
            speed = (step - logged_step) * config.batch_size / (now - logged)
            details = "".join(f" {name} {float(number):.4f}" for name, number in extra.items())
            left_min = elapsed_s / 60 * (1 / used - 1) if used else math.nan
            progress = f"step {step} ({used:.0%}, {elapsed_s / 60:.1f} min, {left_min:.1f} left)"
            say(f"{stage}: {progress} loss {mean_loss:.4f}{details} {speed:.0f} samples/s", log)
            logged, logged_step = now, step
        if now - saved > config.save_every_s:
            save()
            saved = last = time.monotonic()
    save()
    model.load_state_dict(ema.module.state_dict())
    model.eval()
    say(f"{stage}: done, {step} steps, {elapsed_s / 60:.1f} min, loss {mean_loss:.4f}", log)
    log.close()
    return FitResult(step, step * config.batch_size, elapsed_s, mean_loss, parameters)


def budget_used(config: ml_collections.ConfigDict, step: int, elapsed_s: float) -> float:
    """Share of the budget that is used up, the larger of steps and minutes; >= 1 means done."""
    by_steps = step / config.steps if config.steps else 0.0
    by_time = elapsed_s / (60 * config.minutes) if config.minutes else 0.0
    return max(by_steps, by_time)


def settings_json(config: ml_collections.ConfigDict) -> str:
    """The settings that decide what is trained, as text for comparison (budgets left out)."""
    settings = {key: value for key, value in config.to_dict().items() if key not in BUDGET_KEYS}
    return json.dumps(settings, sort_keys=True)


def _check_same_settings(stage: str, checkpoint: Path, saved: str, config: ml_collections.ConfigDict) -> None:
    before, now = json.loads(saved), json.loads(settings_json(config))
    different = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if different:
        raise UserError(
            f"{checkpoint}: was trained with other settings ({', '.join(different)}); "
            f"delete {checkpoint.parent} to train {stage} again, or use another --workdir"
        )


def _optimizers(
    trained: Sequence[nn.Parameter], matrices: Sequence[nn.Parameter], config: ml_collections.ConfigDict
) -> list[torch.optim.Optimizer]:
    """AdamW for all of `trained` but the `matrices`, which Muon takes; groups know their highest rate, "peak_lr"."""
    apart = {id(p) for p in matrices}
    groups = _decay_groups([p for p in trained if id(p) not in apart], config.weight_decay)
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


def _ema_update(decay: float) -> Callable:
    def update(averages: list[Tensor], currents: list[Tensor], count: Tensor) -> None:
        # Short runs must not average in their random start: the horizon grows with the step.
        rate = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        for average, current in zip(averages, currents, strict=True):
            average.lerp_(current, rate)

    return torch.no_grad()(update)


def say(line: str, log=None) -> None:
    """One line to stdout, and to `log` (an open text file) too."""
    print(line, flush=True)
    if log is not None:
        print(line, file=log, flush=True)


def add_seconds(folder: Path, seconds: float) -> float:
    """Add to what earlier, resumed parts of a run in `folder` took, kept in its seconds.json; returns the sum."""
    path = folder / "seconds.json"
    total = round(seconds + (json.loads(path.read_text()) if path.exists() else 0), 1)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(total))
    return total


def write_metrics(folder: Path, config: ml_collections.ConfigDict, result: FitResult | None, **metrics) -> dict:
    """Write `folder/metrics.json` (settings, cost, what was measured) and print the latter."""
    record = {"settings": config.to_dict(), "training": asdict(result) if result else None, "metrics": metrics}
    with atomic_file(folder / "metrics.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n")
    if metrics:
        say(f"{folder.name}: " + ", ".join(f"{name} {value}" for name, value in metrics.items()))
    return record


def read_metrics(folder: Path) -> dict:
    """What `write_metrics` wrote; `UserError` when the stage has not been run."""
    path = folder / "metrics.json"
    if not path.exists():
        raise UserError(f"{path}: missing; run `python -m feedface.synthetic.train --stage {folder.name}` first")
    return json.loads(path.read_text())


def config_from_flags(name: str, preset: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """configs/NAME.py (for `preset`, if not ""), changed by `overrides` such as "--config.vae.steps=100"."""
    file = f"configs/{name}.py"
    arguments = [name, f"--config={config_folder() / f'{name}.py'}" + (f":{preset}" if preset else ""), *overrides]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        rest = values(arguments)[1:]
        config = holder.value
    # ml_collections reports a wrong key or type in all of these.
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{explain(error, overrides)}; the settings are in {file}") from None
    if rest:
        raise UserError(f"{rest[0]}: unknown argument; see --help")
    return config


def load_portraits(workdir: Path, name: str = "train"):
    """The `PortraitSet` that stage `world` wrote: "train" or "held_out" (people never trained on)."""
    from feedface.synthetic.world import read_world

    folder = workdir / "world" / name
    if not (folder / "world.json").exists():
        raise UserError(f"{folder}: missing; run `python -m feedface.synthetic.train --stage world` first")
    return read_world(folder)


def to_pixels(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 [B,H,W,3] -> float [B,3,H,W] in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def in_batches(items, function: Callable, batch_size: int = 256) -> Tensor:
    """`function` of every slice of `items`, without gradients, concatenated (on the CPU)."""
    with torch.no_grad():
        parts = [function(items[start : start + batch_size]).cpu() for start in range(0, len(items), batch_size)]
    return torch.cat(parts)


def save_sheet(path: Path, rows: Sequence[np.ndarray], zoom: int = 2) -> None:
    """Write a PNG of picture rows, each uint8 [n,H,W,3], enlarged `zoom` times."""
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
    image = Image.fromarray(sheet)
    image = image.resize((image.width * zoom, image.height * zoom), Image.Resampling.LANCZOS)
    with atomic_file(path) as temporary:
        image.save(temporary)

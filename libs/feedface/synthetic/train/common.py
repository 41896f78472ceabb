"""What all stages share: portraits, metrics and sample sheets; the training loop is `training.fit`.

A stage is a module with `run(config, workdir)`: it trains one component, keeps its own files in `<workdir>/<stage>/`
(checkpoint.pt, log.txt, metrics.json, samples.png) and puts the component into `<workdir>/bundle/<component>/`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections
import numpy as np
import torch
from absl import flags
from ml_collections import config_flags
from torch import Tensor

from feedface.common.config_flags import explain
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.places import config_folder

ROOT = Path(__file__).resolve().parents[4]  # the repository, for configs/ and train.py


def add_seconds(folder: Path, seconds: float) -> float:
    """Add to what earlier, resumed parts of a run in `folder` took, kept in its seconds.json; returns the sum."""
    path = folder / "seconds.json"
    total = round(seconds + (json.loads(path.read_text()) if path.exists() else 0), 1)
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(total))
    return total


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
    if not (config_folder() / f"{name}.py").is_file():
        known = ", ".join(sorted(path.stem for path in config_folder().glob("*.py")))
        raise UserError(f"{file}: no such config; there are {known}")
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

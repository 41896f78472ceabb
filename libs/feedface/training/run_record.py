"""What is written down about a run, and the disk it needs."""

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_collections
from accelerate import Accelerator

from feedface import __version__
from feedface.common.errors import UserError
from feedface.common.files import atomic_file

PACKAGES = ("torch", "accelerate", "transformers", "diffusers", "safetensors", "numpy")


def record_run(workdir: Path, config: ml_collections.ConfigDict, accelerator: Accelerator, precision: str) -> None:
    """The resolved config, and what the run was made with, beside the checkpoints."""
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {"feedface": __version__, **{name: version(name) for name in PACKAGES}},
        "git": _git_revision(),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "precision": precision,
    }
    for name, content in (("config.json", json.loads(config.to_json())), ("environment.json", environment)):
        with atomic_file(workdir / name) as path:
            path.write_text(json.dumps(content, indent=1) + "\n")


def checkpoint_bytes(trained: int, ema: bool) -> int:
    """Size of a checkpoint with `trained` parameters: half-precision weights, and four to five float32 copies."""
    return trained * (2 + 4 * (3 + ema))


def existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that is there."""
    folder = folder.absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


def check_disk(folder: Path, needed: int, what: str = "one checkpoint") -> None:
    """`UserError` unless the disk of `folder` has `needed` bytes free for `what`, and some to spare."""
    free = shutil.disk_usage(existing(folder)).free
    if free < needed * 1.1:
        raise UserError(
            f"{folder}: {bytes_text(free)} free, but {what} takes {bytes_text(needed)}; "
            f"make room or name a folder on another disk"
        )


def bytes_text(number: int) -> str:
    """Such as "512 B", "3.4 MiB", "12 GiB"."""
    power = min(3, max(0, number.bit_length() - 1) // 10)
    value = number / 1024**power
    return f"{value:.{1 if power and value < 10 else 0}f} {('B', 'KiB', 'MiB', 'GiB')[power]}"


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become text, as trackers want it."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines such as "train.lr 0.1 -> 0.2" for what differs between two flat configs."""
    keys = sorted(before.keys() | now.keys())
    return [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def _git_revision() -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

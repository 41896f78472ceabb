"""Checkpoints of a training run: whole or not there, usable as a model at once, and enough to go on exactly.

    workdir/checkpoints/00001000/    a bundle: model_index.json, face_controlnet/, the rest points to the base bundle
        training/state.pt            float32 weights, optimizer, gradient scaler, EMA (read with weights_only)
        training/progress.json       step, samples seen, the config; written last, with the size of every file
    workdir/checkpoints/last         symbolic link to the newest

All randomness is a function of the seed and the samples seen, so there is no random state to keep.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedface.checkpoints.bundle import save_network, write_derived_index
from feedface.errors import UserError
from feedface.files import atomic_folder, make_folder, remove_leftovers

PROGRESS = "training/progress.json"
STATE = "training/state.pt"


@dataclass
class Progress:
    """How far a run is: optimizer steps done, samples seen by all processes together."""

    step: int = 0
    samples: int = 0


@dataclass
class Checkpoint:
    """What `load_newest` found: tensors on the CPU, `config` as the run that wrote it had it."""

    folder: Path
    progress: Progress
    state: dict[str, Any]
    config: dict[str, Any]


def save_checkpoint(
    workdir: Path,
    progress: Progress,
    base: Path,
    net_config: dict[str, Any],
    net_state: dict[str, Tensor],
    state: dict[str, Any],
    config: dict[str, Any],
) -> Path:
    """Write a checkpoint and point `last` at it.

    `net_config` and `net_state` are the face-controlnet to generate with, its face encoder included (stored in half
    precision); `state` is what `load_newest` gives back; `base` is the bundle that the frozen parts are in.
    """
    folder = workdir / "checkpoints" / f"{progress.step:08d}"
    with atomic_folder(folder) as temporary:
        save_network(temporary / "face_controlnet", net_config, net_state, torch.float16)
        write_derived_index(temporary, base, own=["face_controlnet"], name=f"{base.name}, step {progress.step}")
        (temporary / "training").mkdir()
        torch.save(state, temporary / STATE)
        files = {str(file.relative_to(temporary)): file.stat().st_size for file in _files(temporary)}
        content = {"step": progress.step, "samples": progress.samples, "config": config, "files": files}
        (temporary / PROGRESS).write_text(json.dumps(content, indent=1) + "\n")
    link = folder.with_name(".last")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    os.replace(link, folder.with_name("last"))
    return folder


def load_newest(workdir: Path, say: Callable[[str], None] = print) -> Checkpoint | None:
    """The last checkpoint that is whole; None where there has been none.

    One that is gone, cut short or damaged is passed over, with a line to `say`. `UserError` when all are: starting
    afresh would overwrite what may still be rescued.
    """
    folders = sorted(_checkpoints(workdir), reverse=True)
    last = workdir / "checkpoints" / "last"
    if last.is_symlink() and not last.exists():
        say(f"{last.parent / os.readlink(last)}: the last checkpoint is gone, trying the one before")
    for folder in folders:
        problem = _problem(folder)
        if problem is None:
            try:
                return _load(folder)
            except Exception as error:  # damage comes in many kinds
                problem = f"cannot be read: {type(error).__name__}"
        say(f"{folder}: not a whole checkpoint ({problem}), trying the one before")
    if folders:
        raise UserError(f"{workdir}: none of its {len(folders)} checkpoints is whole; delete them to start afresh")
    return None


def newest_checkpoint(workdir: Path) -> Path | None:
    """The last checkpoint whose files are all there, unread."""
    return next((folder for folder in sorted(_checkpoints(workdir), reverse=True) if not _problem(folder)), None)


def _load(folder: Path) -> Checkpoint:
    content = json.loads((folder / PROGRESS).read_text())
    state = torch.load(folder / STATE, map_location="cpu", weights_only=True)  # nothing in it is executed
    return Checkpoint(folder, Progress(content["step"], content["samples"]), state, content["config"])


def prune_checkpoints(workdir: Path, keep: int, keep_every: int = 0) -> None:
    """Delete all but the last `keep` checkpoints and those at multiples of `keep_every` steps (0: none)."""
    for folder in sorted(_checkpoints(workdir))[:-keep]:
        if not (keep_every and int(folder.name) % keep_every == 0):
            shutil.rmtree(folder)


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the folder for this run; `UserError` when another run holds it. Freed however the process ends."""
    make_folder(workdir)
    with open(workdir / ".lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            raise UserError(f"{workdir}: another run is training here; wait for it or use another --workdir") from None
        for folder in (workdir, workdir / "checkpoints"):
            remove_leftovers(folder)
        yield


def _checkpoints(workdir: Path) -> list[Path]:
    return [p for p in (workdir / "checkpoints").glob("*") if p.name.isdigit() and p.is_dir()]


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _problem(folder: Path) -> str | None:
    try:
        sizes = json.loads((folder / PROGRESS).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return f"{PROGRESS} is missing or broken"
    for name, size in sizes.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or cut short"
    return None

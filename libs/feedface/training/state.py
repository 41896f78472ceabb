"""Checkpoints of a training run: whole or not there, usable as a model at once, and enough to go on exactly.

    workdir/checkpoints/00001000/    a bundle: model_index.json, feedface/ (the method's kind), the rest is the base's
        training/state.pt            float32 weights, optimizer, gradient scaler, EMA (read with weights_only)
        training/progress.json       step, samples seen, the config, size and checksum of every file; see `manifest`
    workdir/checkpoints/last         leads to the newest, see `files.point`

All randomness is a function of the seed and the samples seen, so there is no random state to keep.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedface.checkpoints.bundle import load_bundle, save_network, write_derived_index
from feedface.common.errors import UserError
from feedface.common.files import LAST, atomic_folder, folder_lock, point, pointed, remove_folder, remove_leftovers
from feedface.training.manifest import PROGRESS, Damaged, check_contents, hashed, read_manifest, write_manifest

STATE = "training/state.pt"


@dataclass
class Progress:
    """How far a run is: optimizer steps done, samples seen by all processes together."""

    step: int = 0
    samples: int = 0


@dataclass
class Checkpoint:
    """What `load_newest` found: tensors on the CPU, `config` as the run that wrote it had it.

    `damaged` are newer ones that it passed over.
    """

    folder: Path
    progress: Progress
    state: dict[str, Any]
    config: dict[str, Any]
    damaged: tuple[Path, ...] = ()


def save_checkpoint(
    workdir: Path,
    progress: Progress,
    base: Path,
    kind: str,
    method_config: dict[str, Any],
    method_state: dict[str, Tensor],
    state: dict[str, Any],
    config: dict[str, Any],
    backbone: tuple[dict[str, Any], dict[str, Tensor]] | None = None,
) -> Path:
    """Write a checkpoint and point `last` at it.

    `kind`, `method_config` and `method_state` are the method to generate with, its frozen encoder included (stored in
    half precision); `state` is what `load_newest` gives back; `base` is the bundle that the frozen parts are in.
    `backbone`: its config and state, where it is none of these.
    """
    folder = workdir / "checkpoints" / f"{progress.step:08d}"
    with atomic_folder(folder) as temporary:
        save_network(temporary / kind, {"kind": kind, **method_config}, method_state, torch.float16)
        own = {"method": kind}
        if backbone is not None:
            own["backbone"] = "backbone"
            save_network(temporary / "backbone", *backbone, torch.float16)
        write_derived_index(temporary, base, own=own, name=f"{base.name}, step {progress.step}")
        (temporary / STATE).parent.mkdir()
        with hashed(temporary / STATE) as file:
            torch.save(state, file)
        known = {STATE: file.digest.hexdigest()}
        write_manifest(temporary, progress.step, progress.samples, config, known)
    point(folder.with_name(LAST), folder.name)
    return folder


def check_model(folder: Path) -> None:
    """`UserError` unless a checkpoint can be drawn with: all parts are found, and fit. Weights are not read twice."""
    try:
        load_bundle(folder, "meta", None)
    except UserError as error:
        raise UserError(f"{folder}: is saved, and training can go on from it, but is no whole model: {error}") from None


def load_newest(
    workdir: Path, say: Callable[[str], None] = print, check: Callable[[Any], None] = lambda state: None
) -> Checkpoint | None:
    """The last checkpoint that is whole; None where there has been none.

    One that is gone, cut short or damaged is passed over, with a line to `say`; so is one whose state `check` raises
    `Damaged` for. `UserError` when all are: starting afresh would overwrite what may still be rescued.
    """
    folders = _newest_first(workdir)
    last = pointed(workdir / "checkpoints" / LAST)
    if last is not None and not last.exists():
        say(f"{last}: the last checkpoint is gone, trying the one before")
    for place, folder in enumerate(folders):
        try:
            found = _load(folder, check)
        except (Damaged, OSError) as error:
            say(f"{folder}: not a whole checkpoint ({error}), trying the one before")
        else:
            found.damaged = tuple(folders[:place])
            return found
    if folders:
        raise UserError(f"{workdir}: none of its {len(folders)} checkpoints is whole; delete them to start afresh")
    return None


def newest_checkpoint(workdir: Path, before: int | None = None) -> Path | None:
    """The last checkpoint (of those before step number `before`) whose files are all there, unread."""
    folders = [folder for folder in _newest_first(workdir) if before is None or int(folder.name) < before]
    return next((folder for folder in folders if not _problem(folder)), None)


def _load(folder: Path, check: Callable[[Any], None]) -> Checkpoint:
    manifest = read_manifest(folder)
    if STATE not in manifest.files:  # so that it is known to be a file
        raise Damaged(f"{PROGRESS} does not list {STATE}")
    check_contents(folder, manifest)
    try:
        # Nothing in it is executed.
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True, mmap=True)  # read as it is copied
    except Exception as error:  # damage comes in many kinds
        raise Damaged(f"cannot be read: {type(error).__name__}") from None
    check(state)
    return Checkpoint(folder, Progress(manifest.step, manifest.samples), state, manifest.config)


def prune_checkpoints(
    workdir: Path, keep: int, keep_every: int = 0, written: Path | None = None, damaged: Collection[Path] = ()
) -> None:
    """Delete all but the last `keep` whole checkpoints and those at multiples of `keep_every` steps (0: none).

    The one just `written` is never deleted. Ones that are not whole, and those known to be `damaged`, do not count,
    and go; a folder that never was a checkpoint stays.
    """
    whole = [written] if written is not None else []
    for folder in _newest_first(workdir):
        if folder == written:
            continue
        try:
            broken = folder in damaged or _problem(folder) is not None
        except OSError:  # a disk that does not answer now may do so later
            continue
        if not broken:
            whole.append(folder)
        elif (folder / PROGRESS).parent.is_dir():
            remove_folder(folder)
    for folder in whole[keep:]:
        if not (keep_every and int(folder.name) % keep_every == 0):
            remove_folder(folder)


@contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Hold the folder for this run; `UserError` when another run holds it. Freed however the process ends."""
    busy = f"{workdir}: another run is training here; wait for it or use another --workdir"
    with folder_lock(workdir, busy):
        for folder in (workdir, workdir / "checkpoints"):
            remove_leftovers(folder)
        yield


def _newest_first(workdir: Path) -> list[Path]:
    """Folders named as checkpoints are."""
    numbered = [p for p in (workdir / "checkpoints").glob("[0-9]*") if p.name.isdecimal() and p.is_dir()]
    return sorted((p for p in numbered if p.name == f"{int(p.name):08d}"), key=lambda p: int(p.name), reverse=True)


def _problem(folder: Path) -> str | None:
    """Why a checkpoint is not whole, as far as can be seen without reading it; None: nothing is wrong."""
    try:
        read_manifest(folder)
    except Damaged as error:
        return str(error)
    return None

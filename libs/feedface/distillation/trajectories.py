"""The teacher's trajectories on disk: drawn once, resumable, by any number of processes.

    <folder>/settings.json        what they were drawn with; another model or grid needs another folder
    <folder>/00000.safetensors    a shard, all with equally many faces: states [B,S+1,J] (see `Teacher.draw`), text
                                  [B,T,Dt], identity.NAME [B,…] unless nobody is shown; half precision

Shapes: B trajectories of a shard, S student steps, J numbers of a packed `State`, T text tokens.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_collections
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.backbones.base import Prompt
from feedface.checkpoints.bundle import Bundle
from feedface.checkpoints.few_step import NO_PAG
from feedface.checkpoints.storage import read_json, write_json
from feedface.common.errors import UserError
from feedface.common.files import atomic_file, make_folder
from feedface.common.reading import check_file, foreign
from feedface.data.records import Record, read_records
from feedface.distillation.draws import Draws, identities
from feedface.distillation.teacher import Teacher
from feedface.inference.model_files import model_digest
from feedface.methods.base import Identity
from feedface.training.fit import log_line

SETTINGS = "settings.json"
IDENTITY, OLD_FACES = "identity.", {"faces": "identity.tokens"}
FIRST_SEED = 1 << 40  # far from the small numbers that pictures for people to look at are drawn with


@dataclass(frozen=True)
class Piece:
    """Some trajectories: `states` [B,S+1,J]; float32."""

    states: Tensor
    prompt: Prompt
    identity: Identity | None


class Trajectories:
    """All shards of a folder, mapped, not in memory. `settings` are those they were drawn with."""

    def __init__(self, folder: Path):
        self.settings = read_settings(folder)
        self.files = sorted(folder.glob("[0-9]*.safetensors"))
        self._opened = [_open(file) for file in self.files]
        self.sizes = [shard.get_slice("states").get_shape()[0] for shard in self._opened]

    def drawn(self, rows: int, held_out: int, generator: torch.Generator) -> tuple[int, slice]:
        """Some shard behind the first `held_out`, by its size, and up to `rows` rows of it."""
        sizes = torch.tensor(self.sizes, dtype=torch.float)
        sizes[:held_out] = 0  # the first ones: they are there however many were drawn
        shard = int(torch.multinomial(sizes, 1, generator=generator))
        first = int(torch.randint(max(1, self.sizes[shard] - rows + 1), (1,), generator=generator))
        return shard, slice(first, first + rows)

    def piece(self, shard: int, rows: slice, device: torch.device) -> Piece:
        opened = self._opened[shard]
        parts = {OLD_FACES.get(n, n): opened.get_slice(n)[rows].to(device).float() for n in opened.keys()}  # noqa: SIM118
        identity = {name.removeprefix(IDENTITY): parts[name] for name in parts if name.startswith(IDENTITY)}
        return Piece(parts["states"], {"text": parts["text"]}, identity or None)


def _open(file: Path):
    check_file(file)
    with foreign(f"{file}: not a shard of trajectories; delete it, and draw it again"):
        return safe_open(file, framework="pt")


def read_settings(folder: Path) -> dict:
    if not (folder / SETTINGS).is_file():
        raise UserError(f"{folder}: holds no trajectories; draw them first, see distill.py --help")
    return read_json(folder / SETTINGS)


def draw_trajectories(
    config: ml_collections.ConfigDict, bundle: Bundle, folder: Path, device: torch.device, share: tuple[int, int]
) -> None:
    """Draw the shards of `config.trajectories` that `folder` lacks; of `share` (k, n), every n-th from the k-th on.

    Raises `UserError` for a folder with trajectories of another model or grid, and for records that do not suffice.
    """
    wanted = config.trajectories
    try:
        teacher = Teacher(bundle, config.timesteps, wanted.substeps, device)
    except ValueError as error:
        raise UserError(f"config.timesteps, config.trajectories.substeps: {error}") from None
    records = read_records(list(config.data.records))
    _agree(folder, config, bundle, teacher, records)
    numbers = range(-(-wanted.count // wanted.batch_size))[share[0] :: share[1]]
    missing = [number for number in numbers if not _file(folder, number).is_file()]
    draws = Draws(records, wanted.faces, config.data.max_broken)
    with open(folder / "log.txt", "a") as log:
        shards = f"{len(numbers) - len(missing)} of {len(numbers)} shards of {wanted.batch_size} there already"
        log_line(f"trajectories: {shards}, {len(teacher.fine)} evaluations each", log)
        begun = time.monotonic()
        for done, number in enumerate(missing, 1):
            _draw_shard(number, config, draws, teacher, folder)
            spent = time.monotonic() - begun
            speed = done * wanted.batch_size / spent
            left = (len(missing) - done) * spent / done / 60
            where = f"shard {number:05d}, {done} of {len(missing)}"
            log_line(f"trajectories: {where}, {speed:.2f} samples/s, {left:.1f} min left", log)
            if wanted.minutes and spent > 60 * wanted.minutes:
                log_line(f"trajectories: stopped after trajectories.minutes={wanted.minutes}", log)
                break


def _draw_shard(number: int, config: ml_collections.ConfigDict, draws: Draws, teacher: Teacher, folder: Path) -> None:
    size = config.trajectories.batch_size
    drawn = draws.shard(number, size, config.seed)
    text = teacher.bundle.text_encoder.encode([record.caption for record, _ in drawn]).to(teacher.device)
    identity = identities(teacher.bundle, [crops for _, crops in drawn], teacher.device)
    first = FIRST_SEED + (config.seed << 32) + number * size
    states = teacher.draw({"text": text}, range(first, first + size), identity)
    tensors = {"states": states, "text": text} | {IDENTITY + name: value for name, value in (identity or {}).items()}
    if not all(bool(value.isfinite().all()) for value in tensors.values()):
        raise UserError(f"the teacher's trajectories of shard {number} are not finite; use another --config.precision")
    with atomic_file(_file(folder, number)) as temporary:
        save_file({name: value.half().cpu().contiguous() for name, value in tensors.items()}, temporary)


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"


def captions_digest(records: Sequence[Record]) -> str:
    """Changes with the records' names and captions."""
    return hashlib.sha256("\n".join(f"{r.path.name} {r.caption}" for r in records).encode()).hexdigest()[:16]


def _agree(
    folder: Path, config: ml_collections.ConfigDict, bundle: Bundle, teacher: Teacher, records: Sequence[Record]
) -> None:
    """Write what shards are drawn with, or check that those already there were drawn with the same."""
    settings = {
        "model": model_digest(bundle),
        "timesteps": list(teacher.timesteps),
        "evaluations": teacher.fine,
        **teacher.how,
        "records": captions_digest(records),
        "seed": config.seed,
        "shard": config.trajectories.batch_size,
        "faces": list(config.trajectories.faces),
    }
    make_folder(folder)
    if not (folder / SETTINGS).is_file():
        with atomic_file(folder / SETTINGS) as temporary:
            write_json(temporary, settings)
    kept = json.loads(json.dumps({**NO_PAG, **read_settings(folder)}))
    other = [key for key in settings if kept.get(key) != json.loads(json.dumps(settings[key]))]
    if other:
        raise UserError(
            f"{folder}: its trajectories were drawn with another {', '.join(other)}; delete it or use another --workdir"
        )

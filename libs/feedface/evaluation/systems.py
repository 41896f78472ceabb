"""What is compared: models with their settings, and how one draws the pictures of all people.

An artist is anything with the attributes and methods of `Artist`; `ModelArtist` is a bundle with its face-controlnet.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, Field, TypeAdapter

from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.common.json_files import JsonFile
from feedface.common.validation import CLOSED, Text, check_as
from feedface.evaluation.draw import encode_faces
from feedface.evaluation.pictures import Kept, Request
from feedface.evaluation.protocols import Case
from feedface.faces.references import Reference
from feedface.inference.batching import default_batch_size, draw_batch, dtype_name, picture_settings
from feedface.inference.model_files import load_model, model_digest
from feedface.inference.outputs import PictureInfo, safe_name
from feedface.settings import Settings
from feedface.training.tracking import peak_memory

POOLS = ("concat", "mean", "first")
SETTINGS_KEYS = tuple(entry.name for entry in fields(Settings))
EXAMPLE = '[{"name": "guidance 4", "model": "models/mini", "settings": {"guidance": 4}}]'


@dataclass(frozen=True)
class System:
    """A model and how it is asked.

    Attributes:
        name: its label everywhere, and its folder's name.
        model, ckpt_path: see `model_files.load_model`.
        settings: None in it stands for the model's own default.
        pool: how several faces are joined: "concat", "mean" or "first".
        references: at most so many pictures of a person are shown; 0: none, the prompt alone.
    """

    name: str
    model: Path
    ckpt_path: Path | None = None
    settings: Settings = field(default_factory=Settings)
    pool: str = "concat"
    references: int = 4


class Artist(Protocol):
    name: str
    base: "Base | None"  # what it draws without a face; None: it has no such thing
    one_sample: bool  # whether further samples of a prompt would be the same

    def describe(self) -> dict:
        """For scores.json: {"model": {path, name, digest}, "settings": {…}}."""

    def crops(self, case: Case) -> tuple[np.ndarray, ...]:
        """The faces of the person that it is shown."""

    def info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        """How a picture is made; `prompt` and `sample` are numbers."""

    def draw(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Kept]]:
        """Draw pictures, in an order of its own."""


@dataclass(frozen=True)
class Base:
    """A model without its face: `name` says which weights and settings, so that equal ones are drawn once."""

    name: str
    info: Callable[[Case, int, int], PictureInfo]


class ModelArtist:
    """A loaded model that draws with the faces it is shown."""

    one_sample = False

    def __init__(
        self, system: System, bundle: Bundle, device: torch.device, dtype: torch.dtype, batch_size: int | None = None
    ):
        self.name, self.system, self.bundle, self.device, self.dtype = system.name, system, bundle, device, dtype
        adapter = bundle.few_step
        self.settings = system.settings.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, adapter)
        self.batch_size = batch_size or default_batch_size(self.settings, device)
        self.digest = model_digest(bundle)
        # Without a face neither its weights nor its strength matter.
        parts = {kind: path for kind, path in bundle.components.items() if kind != "method"}
        self._base_digest = model_digest(replace(bundle, components=parts))
        self._settings = picture_settings(self.settings, dtype, adapter)
        of_face = ("face_scale", "face_interval")
        self._base_settings = {key: value for key, value in self._settings.items() if key not in of_face}
        label = hashlib.sha256(json.dumps([self._base_digest, self._base_settings]).encode()).hexdigest()[:8]
        self.base = Base(f"{safe_name(bundle.name)}-{label}", self._base_info)

    def describe(self) -> dict:
        bundle = self.bundle
        own = {"references": self.system.references, "pool": self.system.pool, "batch_size": self.batch_size}
        ckpt = self.system.ckpt_path
        return {
            "model": {
                "path": str(self.system.model),
                "ckpt_path": None if ckpt is None else str(ckpt),
                "name": bundle.name,
                "digest": self.digest,
            },
            "settings": self.settings.as_json() | {"dtype": dtype_name(self.dtype), "device": str(self.device)} | own,
        }

    def crops(self, case: Case) -> tuple[np.ndarray, ...]:
        return tuple(case.crops[: self.system.references]) if self.settings.face_scale else ()

    def info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        crops = self.crops(case)
        if not crops:
            return self._base_info(case, prompt, sample)
        settings = self._settings | {"pool": self.system.pool}
        digests = tuple(Reference("", crop).digest for crop in crops)
        seed = case.seeds[prompt] + sample
        return PictureInfo(case.prompts[prompt], seed, self.bundle.name, self.digest, settings, digests)

    def draw(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Kept]]:
        """Faces are encoded once a person; a batch holds people whose faces have the same number of tokens."""
        groups: dict[int, list[Request]] = {}
        for request in requests:
            groups.setdefault(len(request.crops), []).append(request)
        for group in groups.values():
            tokens: dict[int, torch.Tensor] = {}
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                begun = time.perf_counter()
                faces = self._faces(batch, tokens)
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                pictures = draw_batch(
                    self.bundle,
                    [request.info.prompt for request in batch],
                    [request.info.seed for request in batch],
                    faces,
                    self.settings,
                    self.device,
                )
                seconds = (time.perf_counter() - begun) / len(batch)
                peak = peak_memory(self.device) / 2**20
                for request, image in zip(batch, pictures, strict=True):
                    yield request, Kept(image, seconds, peak)

    def _faces(self, batch: Sequence[Request], tokens: dict[int, torch.Tensor]) -> torch.Tensor | None:
        """[B, n, D]; fills `tokens`, case -> [1, n, D]."""
        if not batch[0].crops:
            return None
        for request in batch:
            if request.case not in tokens:
                crops = np.empty((1, len(request.crops)), dtype=object)
                for place, crop in enumerate(request.crops):  # numpy would take equal ones apart
                    crops[0, place] = crop
                tokens[request.case] = encode_faces(self.bundle, crops, self.device, self.dtype, self.system.pool)
        return torch.cat([tokens[request.case] for request in batch])

    def _base_info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        seed = case.seeds[prompt] + sample
        return PictureInfo(case.prompts[prompt], seed, self.bundle.name, self._base_digest, self._base_settings, ())


class Bundles:
    """Loads models, and keeps the last one: systems that differ in settings alone share it."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self._key, self._bundle = None, None

    def get(self, system: System) -> Bundle:
        key = (system.model, system.ckpt_path)
        if key != self._key:
            self._key, self._bundle = None, None  # before the next one is loaded, so that memory never holds two
            self._bundle = load_model(system.model, system.ckpt_path, self.device, self.dtype)
            self._key = key
        return self._bundle


def name_systems(
    models: Sequence[Path], counts: Sequence[int], settings: Settings, ckpt_path: Path | None
) -> list[System]:
    """The systems of a command line: every model with every number of references, named by what differs."""
    if len(set(models)) < len(models):
        raise UserError("--model: the same folder twice; use --systems to compare settings of one model")
    if ckpt_path is not None and len(models) > 1:
        raise UserError("--ckpt_path goes with one --model; use --systems for several")
    labels = {model: model.name or str(model) for model in models}
    if len(set(labels.values())) < len(models):
        labels = {model: str(model) for model in models}
    systems = []
    for model in models:
        for count in counts:
            shown = f"{count} reference{'' if count == 1 else 's'}"
            if len(models) == 1:
                name = shown if len(counts) > 1 else labels[model]
            else:
                name = labels[model] if len(counts) == 1 else f"{labels[model]}, {shown}"
            systems.append(System(name, model, ckpt_path, settings, references=count))
    return systems


def read_systems(file: Path, counts: Sequence[int], settings: Settings) -> list[System]:
    """Read a list of {"name", "model", "ckpt_path"?, "settings"?, "pool"?, "references"?}.

    Models are looked for beside the file, then in the working directory; the numbers and `settings` given here are
    for systems that have none of their own. `UserError` with the line for all else.
    """
    written = JsonFile(file)
    if not isinstance(written.data, list) or not written.data:
        raise UserError(f"{file}:1: not a list of systems; it looks like {EXAMPLE}")
    systems: list[System] = []
    for index, entry in enumerate(written.data):
        place = f"{file}:{written.line(index)}"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: not a system; one looks like {EXAMPLE[1:-1]}")
        checked = check_as(entry, _ENTRY, place, lambda: list(_Entry.model_fields))
        try:
            for system in _read_system(checked, file, counts, settings):
                if any(safe_name(system.name) == safe_name(other.name) for other in systems):
                    raise UserError(f"the name {system.name!r} is used twice")
                systems.append(system)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    return systems


class _Entry(BaseModel):
    """A system as it is written."""

    model_config = CLOSED
    name: Text
    model: Text
    ckpt_path: Text | None = None
    settings: dict[Literal[SETTINGS_KEYS], Any] = Field(default_factory=dict)
    pool: Literal[POOLS] = "concat"
    references: Annotated[int, Field(ge=0, le=32)] | None = None


_ENTRY = TypeAdapter(_Entry)


def _read_system(entry: _Entry, file: Path, counts: Sequence[int], settings: Settings) -> Iterator[System]:
    own = entry.settings
    if "size" in own:
        own = own | {"size": _size(own["size"])}
    model, ckpt = (_found(name, file) for name in (entry.model, entry.ckpt_path))
    for count in counts if entry.references is None else [entry.references]:
        several = entry.references is None and len(counts) > 1
        name = f"{entry.name}, {count} reference{'' if count == 1 else 's'}" if several else entry.name
        yield System(name, model, ckpt, Settings(**own).over(settings), entry.pool, count)


def _size(value: object) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise UserError('"size" is a number of pixels, or [width, height]')
    return tuple(sides)


def _found(name: str | None, file: Path) -> Path | None:
    if name is None:
        return None
    try:
        beside = file.parent / name
        return beside if beside.exists() else Path(name)
    except (OSError, ValueError) as error:  # a name too long, or with a NUL character
        raise UserError(f"{name!r:.60}: not the name of a file or folder ({error})") from None

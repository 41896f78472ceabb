"""Who draws the pictures of all people: a model with its settings, or the renderer of the mini world."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.common.person_words import named
from feedface.common.saving import safe_name
from feedface.diffusion.state import join
from feedface.evaluation.draw import encode_faces, through_vae
from feedface.evaluation.pictures import ImageRequest, SavedImage
from feedface.evaluation.protocols import Case
from feedface.evaluation.systems import System
from feedface.faces.references import Reference
from feedface.inference.batching import default_batch_size, draw_batch, dtype_name, picture_settings
from feedface.inference.model_files import load_model, model_digest
from feedface.inference.outputs import PictureInfo
from feedface.methods.base import Identity
from feedface.training.tracking import peak_memory

FACE_SETTINGS = ("face_scale", "face_interval")  # without a face neither its weights nor its strength matter


class Generator(Protocol):
    name: str
    base: "Base | None"  # what it draws without a face; None: it has no such thing
    one_sample: bool  # whether further samples of a prompt would be the same

    def describe(self) -> dict:
        """For scores.json: {"model": {path, name, digest}, "settings": {…}}."""

    def crops(self, case: Case) -> tuple[np.ndarray, ...]:
        """The faces of the person that it is shown."""

    def info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        """How a picture is made; `prompt` and `sample` are numbers."""

    def draw(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[ImageRequest, SavedImage]]:
        """Draw pictures, in an order of its own."""


@dataclass(frozen=True)
class Base:
    """A model without its face: `name` says which weights and settings, so that equal ones are drawn once."""

    name: str
    info: Callable[[Case, int, int], PictureInfo]


class ModelGenerator:
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
        parts = {kind: path for kind, path in bundle.components.items() if kind != "method"}
        self._base_digest = model_digest(replace(bundle, components=parts))
        self._settings = picture_settings(self.settings, dtype, adapter)
        self._base_settings = {key: value for key, value in self._settings.items() if key not in FACE_SETTINGS}
        label = hashlib.sha256(json.dumps([self._base_digest, self._base_settings]).encode()).hexdigest()[:8]
        self.base = Base(f"{safe_name(bundle.name)}-{label}", self._base_info)

    def describe(self) -> dict:
        system, ckpt = self.system, self.system.ckpt_path
        return {
            "model": {
                "path": str(system.model),
                "ckpt_path": None if ckpt is None else str(ckpt),
                "name": self.bundle.name,
                "digest": self.digest,
            },
            "settings": self.settings.as_json()
            | {"dtype": dtype_name(self.dtype), "device": str(self.device)}
            | {"references": system.references, "pool": system.pool, "batch_size": self.batch_size},
        }

    def crops(self, case: Case) -> tuple[np.ndarray, ...]:
        return tuple(case.crops[: self.system.references]) if self.settings.face_scale else ()

    def info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        base, crops = self._base_info(case, prompt, sample), self.crops(case)
        if not crops:
            return base
        digests = tuple(Reference("", crop).digest for crop in crops)
        settings = self._settings | {"pool": self.system.pool}
        word = self.bundle.method.subject_word
        said = base.prompt if word is None else named(base.prompt, word)
        return replace(base, prompt=said, model_digest=self.digest, settings=settings, references=digests)

    def _base_info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        seed = case.seeds[prompt] + sample
        return PictureInfo(case.prompts[prompt], seed, self.bundle.name, self._base_digest, self._base_settings, ())

    def draw(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[ImageRequest, SavedImage]]:
        """Faces are encoded once a person; a batch holds people of whom the same number of faces is shown."""
        groups: dict[int, list[ImageRequest]] = {}
        for request in requests:
            groups.setdefault(len(request.crops), []).append(request)
        for group in groups.values():
            known: dict[int, Identity] = {}
            for start in range(0, len(group), self.batch_size):
                batch = group[start : start + self.batch_size]
                begun = time.perf_counter()
                faces = self._faces(batch, known)
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                prompts, seeds = zip(*((request.info.prompt, request.info.seed) for request in batch), strict=True)
                pictures = draw_batch(self.bundle, list(prompts), list(seeds), faces, self.settings, self.device)
                seconds = (time.perf_counter() - begun) / len(batch)
                peak = peak_memory(self.device) / 2**20
                for request, image in zip(batch, pictures, strict=True):
                    yield request, SavedImage(image, seconds, peak)

    def _faces(self, batch: Sequence[ImageRequest], known: dict[int, Identity]) -> Identity | None:
        """Who is shown, a row a request; fills `known`, case -> one row."""
        if not batch[0].crops:
            return None
        for request in batch:
            if request.case not in known:
                crops = [request.crops]
                known[request.case] = encode_faces(self.bundle, crops, self.device, self.dtype, self.system.pool)
        return join(*(known[request.case] for request in batch))


class RealGenerator:
    """Shows what the prompts describe, as the renderer draws it: the best that can be reached.

    Through the VAE of `bundle`, where one is given: the best that a model behind it can reach.
    """

    base, one_sample = None, True

    def __init__(self, cases: Sequence[Case], device: torch.device, bundle: Bundle | None = None):
        self.cases, self.bundle, self.device = cases, bundle, device
        self.digest = "" if bundle is None else model_digest(bundle)
        self.name = "real other picture" + (" through the VAE" if bundle else "")

    def describe(self) -> dict:
        name = "the renderer" if self.bundle is None else f"the renderer, through the VAE of {self.bundle.name}"
        return {"model": {"path": None, "name": name, "digest": None}, "settings": {}}

    def crops(self, case: Case) -> tuple[np.ndarray, ...]:
        return ()

    def info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        picture = hashlib.sha256(case.real[prompt].tobytes()).hexdigest()[:16]
        return PictureInfo(case.prompts[prompt], case.seeds[prompt], self.name, self.digest, {}, (picture,))

    def draw(self, requests: Sequence[ImageRequest]) -> Iterator[tuple[ImageRequest, SavedImage]]:
        for request in requests:
            picture = self.cases[request.case].real[request.prompt]
            if self.bundle is not None:
                picture = through_vae(self.bundle, picture[None], 1, self.device)[0]
            yield request, SavedImage(picture, None, None)


class Bundles:
    """Loads models, and keeps the last one: systems that differ in settings alone share it."""

    def __init__(self, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype = device, dtype
        self._key, self._bundle = None, None

    def get(self, system: System) -> Bundle:
        key = (system.model, system.ckpt_path, system.together)
        if key != self._key:
            self._key, self._bundle = None, None  # before the next one is loaded, so that memory never holds two
            self._bundle = load_model(*key[:2], self.device, self.dtype, together=system.together)
            self._key = key
        return self._bundle

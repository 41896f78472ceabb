"""Measurements of one part of a miniature after another, as rows of figures that are kept as soon as they are there.

Letters: I people, S pictures a person, R references, n tokens, V width of a token, E embedding width.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from feedface.checkpoints.bundle import Bundle
from feedface.evaluation.cases import WORLD_SEED, Cases
from feedface.evaluation.draw import draw, encode_faces, through_vae
from feedface.evaluation.metrics import (
    bootstrap,
    mean_embedding,
    nearest_identity,
    similarity_to_own,
    similarity_to_strangers,
)
from feedface.evaluation.mini import Judge
from feedface.settings import Settings
from feedface.synthetic.world import make_portraits
from research.reproduction.denoise import through_base
from research.reproduction.probe import face_features

LEVELS = (200, 400, 600, 800, 1000)
FIGURES = {
    "nearest_identity": "nearest identity",
    "similarity_to_another_picture": "similarity to another picture",
    "similarity_to_strangers": "to strangers",
    "attribute_all": "prompt attributes shown",
}
REFERENCES = "references as embeddings"  # the group of `Parts.add_embeddings`


def portrait_cases(
    first: int, people: int, gallery: Sequence[int], references: Sequence[int], pictures: Sequence[int], size: int
) -> Cases:
    """`cases.make_cases` for the people from number `first` and any scenes; no attributes are asked for."""
    scenes = [*gallery, *references, *pictures]
    who = np.repeat(np.arange(first, first + people), len(scenes))
    world = make_portraits(who, np.tile(scenes, people), WORLD_SEED, size)
    ends = np.cumsum([len(gallery), len(references)])

    def per_person(values: np.ndarray) -> list[np.ndarray]:
        return np.split(values.reshape(people, len(scenes), *values.shape[1:]), ends, axis=1)

    gallery, shown, drawn = per_person(world.images)
    prompts = per_person(np.array(world.captions))[2].tolist()
    return Cases(shown, per_person(world.boxes)[1], gallery, drawn, prompts, asked={})


class Parts:
    """Measures parts of a bundle that has its image encoder.

    Rows: group of people or pictures -> what was done to them -> figure -> {value, low, high}, with 95 % intervals over
    people. A row that is there already is not measured again.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: Settings,
        *,
        seed: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        rows: dict[str, dict[str, dict]],
        seconds: dict[str, float],
        save: Callable[[], None],
    ):
        """settings: full ones (`Settings.for_model`). rows, seconds: filled; `save` is called after each new row."""
        self.bundle, self.settings, self.seed, self.batch_size = bundle, settings, seed, batch_size
        self.device, self.dtype = device, dtype
        self.rows, self.seconds, self.save = rows, seconds, save

    def timed(self, part: str, work: Callable, *args) -> Any:
        """`work(*args)`, its wall time added to that of `part`."""
        begun = time.perf_counter()
        result = work(*args)
        self.seconds[part] = round(self.seconds.get(part, 0.0) + time.perf_counter() - begun, 1)
        return result

    def add(self, group: str, label: str, judge: Judge, part: str, make: Callable[..., np.ndarray], *args) -> None:
        """A row for the pictures [I * S,H,W,3] that `make(*args)` returns."""
        if label in self.rows.setdefault(group, {}):
            return
        pictures = self.timed(part, make, *args)
        found, _ = judge.score(pictures.reshape(len(judge.gallery), -1, *pictures.shape[1:]), shown=1)
        self.rows[group][label] = {name: found[name].as_dict() for name in FIGURES if name in found}
        self.save()

    def add_embeddings(self, label: str, judge: Judge, embeddings: np.ndarray) -> None:
        """Rows for embeddings [I,R,E] of the references: of each picture alone, and of the mean of all."""
        together = {"1 picture": embeddings}
        if embeddings.shape[1] > 1:
            together[f"{embeddings.shape[1]} pictures"] = mean_embedding(embeddings)[:, None]
        for count, some in together.items():
            per_person = {
                "nearest_identity": nearest_identity(some, mean_embedding(judge.gallery)),
                "similarity_to_another_picture": similarity_to_own(some, judge.gallery),
                "similarity_to_strangers": similarity_to_strangers(some, judge.gallery),
            }
            row = {name: bootstrap(values).as_dict() for name, values in per_person.items()}
            self.rows.setdefault(REFERENCES, {})[f"{label}, {count}"] = row
        self.save()

    def add_vae(self, group: str, judge: Judge, cases: Cases) -> None:
        """The cases' pictures as they are and through the VAE."""
        pictures = flat(cases.pictures)
        self.add(group, "real pictures", judge, "judging", lambda: pictures)
        args = (self.bundle, pictures, self.batch_size, self.device)
        self.add(group, "through the VAE", judge, "VAE", through_vae, *args)

    def add_base(self, group: str, judge: Judge, cases: Cases) -> None:
        """The cases' pictures noised and denoised."""
        for level in LEVELS:
            args = (flat(cases.pictures), prompts_of(cases), level, self.settings.steps, self.seed, self.batch_size)
            label = f"noised to {level}, denoised"
            self.add(group, label, judge, "base", through_base, self.bundle, *args, self.device)

    def add_drawn(self, group: str, judge: Judge, cases: Cases, crops: np.ndarray | None, label: str) -> None:
        """Pictures drawn from the cases' prompts and face crops [I,R], None for no face."""

        def make() -> np.ndarray:
            faces = None
            if crops is not None:
                faces = encode_faces(self.bundle, crops, self.device, self.dtype)
                faces = faces.repeat_interleave(cases.pictures.shape[1], dim=0)
            args = (self.settings, self.seed, self.batch_size, self.device, f"{group}, {label}")
            return draw(self.bundle, prompts_of(cases), faces, *args)

        self.add(group, label, judge, "drawing", make)

    def features(self, crops: np.ndarray) -> Tensor:
        """The face encoder's states [I,R,n,V] of face crops [I,R]."""
        return face_features(self.bundle.method, crops.flat, self.device).unflatten(0, crops.shape)


def flat(pictures: np.ndarray) -> np.ndarray:
    """[I,S,H,W,3] -> [I * S,H,W,3]"""
    return pictures.reshape(-1, *pictures.shape[2:])


def prompts_of(cases: Cases) -> list[str]:
    """The prompts in the order of `flat` pictures."""
    return [prompt for person in cases.prompts for prompt in person]


def by_count(count: int) -> str:
    return f"{count} reference{'' if count == 1 else 's'}"

"""The people of a job as they are drawn: their faces, their regions, their likeness."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.faces.similarity import FaceSimilarity
from feedface.inference.person import Person, load_person
from feedface.inference.regions import box_mask, strips
from feedface.inference.somebody import Box, Somebody
from feedface.pipeline import Request

if TYPE_CHECKING:
    from feedface.faces.references import Reference
    from feedface.faces.types import FaceDetector
    from feedface.inference.start import Start
    from feedface.methods.base import Identity
    from feedface.pipeline import FeedFacePipeline
    from feedface.settings import Settings


@dataclass
class Shown:
    """Somebody with the faces that were found, or as a file had them."""

    who: Somebody
    references: list[Reference] = field(default_factory=list)
    person: Person | None = None

    def identity(self, pipe: FeedFacePipeline) -> Identity:
        """Of one row, on the CPU where it comes from a file."""
        return self.person.identity if self.person else pipe.identity(self.references)

    @property
    def faces(self) -> tuple[str, ...]:
        """Digests of the face crops."""
        return self.person.faces if self.person else tuple(one.digest for one in self.references)

    def similarity(self, detector: FaceDetector) -> FaceSimilarity:
        """Measures pictures against this person."""
        embeddings = self.person.embeddings if self.person and self.person.recogniser == detector.name else None
        return FaceSimilarity(detector, self.references, embeddings)


class Cast:
    """The people of a job, and where they are in each of its pictures. `UserError` where only some have a region.

    `start`: the picture that theirs begins with; `pose`: of the one person's head; `on_step`: see
    `FeedFacePipeline.draw`, of pictures without them.
    """

    def __init__(
        self,
        pipe: FeedFacePipeline,
        detector: FaceDetector,
        settings: Settings,
        people: Sequence[Shown],
        start: Start | None = None,
        pose: Sequence[float] | None = None,
        on_step: Callable[[int], object] | None = None,
    ):
        self._pipe, self._detector, self._settings, self.people = pipe, detector, settings, people
        self._start, self._pose, self._on_step = start, pose, on_step
        given = [shown.who.region is not None for shown in people]
        if len(people) > 1 and any(given) and not all(given):
            raise UserError(f"--region: give one for {people[given.index(False)].who.name} too, or for nobody")
        self._joint, self._found = len(people) > 1 or all(given), not all(given)
        if self._joint and pose is not None:
            raise UserError("--pose: turns the head of one person who is alone in the picture; leave it out")
        self._where: dict[tuple[str, int], list[Tensor]] = {}
        self.notes: list[str] = []

    @property
    def settings(self) -> dict[str, object]:
        """What changes a picture besides its settings, for its fingerprint."""
        if not self._joint:
            return {}
        regions = [self._detector.name] if self._found else [_digest(shown.who.region) for shown in self.people]
        return {"people": [list(shown.faces) for shown in self.people], "regions": regions}

    @cached_property
    def _identities(self) -> list[Identity]:
        return [shown.identity(self._pipe) for shown in self.people]

    @cached_property
    def _alone(self) -> Identity:
        [identity] = self._identities
        return identity if self._pose is None else self._pipe.posed(identity, self._pose)

    @property
    def looks_for_faces(self) -> bool:
        """Whether a picture without them is drawn first."""
        return self._joint and self._found

    def identity(self, prompt: str, seed: int) -> Identity:
        """Who is shown in the picture of this prompt and seed."""
        if not self._joint:
            return self._alone
        return self._pipe.together(self._identities, self.regions(prompt, seed))

    def regions(self, prompt: str, seed: int) -> list[Tensor]:
        """A mask [H,W] for each person."""
        if (prompt, seed) not in self._where:
            if self._found:
                request = Request(prompt, seed, start=self._start)
                count = len(self.people)
                boxes, note = find_regions(self._pipe, request, self._settings, self._detector, count, self._on_step)
                self.notes += [f"seed {seed}: {note}"] if note else []
            else:
                boxes = [shown.who.region for shown in self.people]
            self._where[prompt, seed] = [mask_of(box) for box in boxes]
        return self._where[prompt, seed]

    def measure(self, image: np.ndarray, prompt: str, seed: int) -> dict[str, float | None]:
        """By name, how alike the face in each region of a picture uint8 [H,W,3] is to its person."""
        masks = self.regions(prompt, seed) if self._joint else [None]
        return {
            shown.who.name: similarity.of(image if mask is None else in_region(image, mask))
            for shown, similarity, mask in zip(self.people, self._similarities, masks, strict=True)
        }

    @cached_property
    def _similarities(self) -> list[FaceSimilarity]:
        return [shown.similarity(self._detector) for shown in self.people]


def _digest(region: Box | Path) -> object:
    return hashlib.sha256(region.read_bytes()).hexdigest()[:16] if isinstance(region, Path) else list(region)


def load_people(pipe: FeedFacePipeline, people: Sequence[Somebody], find) -> tuple[list[Shown], list[str]]:
    """Everybody with their faces: `find(images) -> (references, notices)`."""
    shown, notices = [], []
    for who in people:
        if who.file is not None:
            shown.append(Shown(who, person=load_person(who.file, pipe)))
            continue
        references, more = find(who.images)
        shown.append(Shown(who, references))
        notices += more
    return shown, notices


def mask_of(region: Box | Path) -> Tensor:
    """A region as a mask [H,W] of 0 … 1."""
    if isinstance(region, Path):
        return torch.from_numpy(read_image(region).mean(axis=2) / 255).float()
    return box_mask(region)


def find_regions(
    pipe: FeedFacePipeline,
    request: Request,
    settings: Settings,
    detector: FaceDetector,
    count: int,
    on_step: Callable[[int], object] | None = None,
) -> tuple[list[Box], str]:
    """Regions for so many people from the left, and a note: a picture without them is drawn, and its faces are found.

    Strips, cut half way between neighbouring faces; equal ones where too few faces are seen.
    """
    [image] = pipe.draw_batch([request], settings, on_step=on_step)
    faces = detector.detect(np.asarray(image))
    middles = sorted(float(face.box[0] + face.box[2]) / 2 / image.width for face in faces[:count])
    if len(middles) < count:
        note = f"the picture without faces shows {len(middles)} of {count} faces; each person gets an equal strip of it"
        return strips(count), note
    cuts = [0.0, *((left + right) / 2 for left, right in pairwise(middles)), 1.0]
    return [(left, 0.0, right, 1.0) for left, right in pairwise(cuts)], ""


def in_region(image: np.ndarray, mask: Tensor) -> np.ndarray:
    """A picture uint8 [H,W,3] cut to the box around a region: where its person is looked for."""
    rows, columns = np.nonzero(mask.numpy() > 0.5)
    if not len(rows):
        return image
    down, across = image.shape[0] / mask.shape[0], image.shape[1] / mask.shape[1]
    top, bottom = round(rows.min() * down), round((rows.max() + 1) * down)
    return image[top:bottom, round(columns.min() * across) : round((columns.max() + 1) * across)]

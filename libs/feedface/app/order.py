"""What a visitor asks for: who, where in the picture, how it begins, and how it is drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from feedface.common.errors import UserError
from feedface.inference.beginnings import Beginnings
from feedface.inference.people import Shown
from feedface.inference.person import load_person
from feedface.inference.regions import strips
from feedface.inference.somebody import Box, Somebody
from feedface.settings import MAX_SEED, Settings, check_prompt, check_range

if TYPE_CHECKING:
    from feedface.app.people import Someone
    from feedface.app.session import Session
    from feedface.faces.types import FaceDetector
    from feedface.inference.beginnings import Pose
    from feedface.inference.start import Start
    from feedface.pipeline import FeedFacePipeline

MOST_PICTURES = 64  # of one order
FOUND, PLACES = "found", ("left", "middle", "right")


@dataclass(frozen=True)
class Said:
    """What is said of one of the people: the name in the prompt, the word it stands for, and one of `PLACES`."""

    name: str = ""
    word: str = "person"
    place: str = FOUND


@dataclass(frozen=True)
class Beginning:
    """A picture to begin with.

    Attributes:
        picture: uint8 RGB [H,W,3].
        mask: uint8 [H,W], white where it is kept; None: kept nowhere, or but for the face.
        face: only the face in it is drawn anew, as large as a picture.
        strength: how much is drawn anew, above 0 to 1.
    """

    picture: np.ndarray
    mask: np.ndarray | None = None
    face: bool = False
    strength: float = 1.0

    @property
    def files(self) -> dict[str, np.ndarray]:
        """The pictures as a job names them."""
        files = {f"{'base' if self.face else 'init'}.png": self.picture}
        return files if self.mask is None else files | {"mask.png": self.mask}

    @property
    def job(self) -> dict[str, object]:
        """What a job says of it."""
        return {name.removesuffix(".png"): name for name in self.files} | {"strength": self.strength}

    def start(
        self, pipe: FeedFacePipeline, detector: FaceDetector, settings: Settings, session: Session
    ) -> tuple[Start, Pose | None]:
        """As a job with these files would begin."""
        folder = session.folder / "begin"
        folder.mkdir(exist_ok=True)
        for name, pixels in self.files.items():
            Image.fromarray(pixels).save(folder / name)
        mask = None if self.mask is None else str(folder / "mask.png")
        begin = Beginnings(pipe, detector, settings, None, self.strength, mask)
        named = {key: folder / name for key, name in self.job.items() if key in ("init", "base")}
        start, pose, notices = begin.of(named.get("base"), named.get("init"))
        if notices:
            session.notes.append(
                "The picture to begin with has several faces; the largest is drawn anew. Brush over another one to "
                "have that drawn, without the tick."
            )
        return start, pose


@dataclass(frozen=True)
class Order:
    """What a visitor asks for.

    Attributes:
        models, strengths: every one of the models at every one of the strengths of the face; no strength: its own.
        settings: but for the strength.
        seed: of the first picture; -1: any.
        said: of the people, in their order.
        begin: a picture to begin with.
        format: of the files, one of `provenance.SUFFIXES`.
    """

    prompt: str
    models: Sequence[str]
    strengths: Sequence[float | None] = (None,)
    settings: Settings = field(default_factory=Settings)
    seed: int = -1
    number: int = 1
    said: Sequence[Said] = ()
    begin: Beginning | None = None
    format: str = "png"

    def checked(self) -> Order:
        """The same with the seed that "any" stands for; `UserError` for what cannot be drawn."""
        check_prompt(self.prompt)
        if self.number * len(self.models) * len(self.strengths) > MOST_PICTURES:
            raise UserError(f"these are more than {MOST_PICTURES} pictures at once; ask for fewer")
        if self.seed == -1:
            return replace(self, seed=int(torch.randint(2**31, ()).item()))
        check_range("seed", self.seed, 0, MAX_SEED - self.number)
        return self

    def people(self, people: Sequence[Someone]) -> list[tuple[Somebody, Someone]]:
        """Who is in the picture, under names and in places. `UserError` for names that the prompt cannot use."""
        said = [*self.said, *[Said()] * len(people)]
        there = [
            (number, one, what) for number, (one, what) in enumerate(zip(people, said, strict=False), 1) if one.there
        ]
        if len(there) == 1 and not there[0][2].name:  # who needs none gets one that the prompt does not say
            [(number, one, what)] = there
            name = "somebody"
            while name in self.prompt:
                name += "_"
            there = [(number, one, replace(what, name=name))]
        for number, _, what in there:
            if not re.fullmatch(r"\w+", what.name):
                raise UserError(
                    f"Person {number}: each of several people needs a name, one word of letters and digits, that the "
                    "prompt says too; open “Name, place, saved person” and write it"
                )
        names = [what.name for _, _, what in there]
        if len(set(names)) < len(names):
            raise UserError("Two people have the same name; give them different ones.")
        if self.begin and self.begin.face and len(there) > 1:
            raise UserError(
                "One face is drawn anew in the picture to begin with; show one person, or take the tick away"
            )
        places = [what.place for _, _, what in there if what.place != FOUND]
        if len(set(places)) < len(places):
            raise UserError(f"Two people cannot both be {max(places, key=places.count)}; choose another place.")
        if places and len(places) < len(there):
            raise UserError("Choose a place for each person, or for nobody.")
        found = [
            (Somebody(what.name, (), one.file, what.word.strip() or "person", region(what.place, places)), one)
            for _, one, what in there
        ]
        for who, _ in found if len(found) > 1 else ():
            if not re.search(rf"\b{re.escape(who.name)}\b", self.prompt):
                raise UserError(f"The prompt does not say {who.name!r}; write where in the picture {who.name} is")
        return found


def region(place: str, places: Sequence[str]) -> Box | None:
    """Where a place is: halves, or thirds where somebody is in the middle; None where it is to be found."""
    if place == FOUND:
        return None
    order = PLACES if "middle" in places else ("left", "right")
    return strips(len(order))[order.index(place)]


def shown(pipe: FeedFacePipeline, people: Sequence[tuple[Somebody, Someone]]) -> list[Shown]:
    """They as that model draws them. `UserError` for a file of another model."""
    return [
        Shown(who, person=load_person(who.file, pipe)) if who.file else Shown(who, one.references)
        for who, one in people
    ]

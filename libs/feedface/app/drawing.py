"""From what the page's fields say to pictures, one step after the other."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from feedface.app.background import events
from feedface.app.session import Drawn, Photo, Session, small
from feedface.common.errors import UserError
from feedface.faces.choose import choose
from feedface.faces.identity import same_person
from feedface.faces.references import NoFaceError, all_faces, as_rgb
from feedface.faces.similarity import FaceSimilarity
from feedface.inference.batching import batches
from feedface.inference.outputs import PictureInfo
from feedface.inference.provenance import save_picture
from feedface.inference.stages import Batch, Request
from feedface.settings import MAX_SEED, WITHOUT_PROMPT, Settings, check_prompt, check_range

if TYPE_CHECKING:
    from feedface.app.models import Models
    from feedface.faces.references import Reference
    from feedface.faces.types import FaceDetector
    from feedface.pipeline import FeedFacePipeline

MOST_PICTURES = 64  # of one order


def add_photos(session: Session, files: Sequence[str | Path], detector: FaceDetector) -> list[str]:
    """Find the faces of photos, delete their files, and choose the person's anew; one line for each without a face."""
    notices = []
    for file in map(Path, files):
        try:
            image = as_rgb(file)
            found = sorted(all_faces(image, detector, file.name), key=lambda face: face.box[0] + face.box[2])
            session.photos.append(Photo(file.name, *small(image), found))
        except NoFaceError:
            notices.append(f"{file.name}: no face was found in this picture; it is left out.")
        except UserError as error:
            notices.append(str(error).replace(str(file), file.name))
        finally:
            file.unlink(missing_ok=True)
    session.chosen = _person(session.photos, detector)
    return notices


def _person(photos: Sequence[Photo], detector: FaceDetector) -> set[int]:
    """The numbers of one person's faces, one in each photo: who is in most of them, else the largest face."""
    if not photos:
        return set()
    largest_first = [sorted(photo.faces, key=_area, reverse=True) for photo in photos]
    how = "most-like" if getattr(detector, "has_recogniser", False) and len(photos) > 1 else "largest"
    names = [photo.name for photo in photos]
    chosen = [
        faces[number]
        for faces, number in zip(
            largest_first, choose(names, largest_first, how, same_person(detector.name)), strict=True
        )
    ]
    everybody = [face for photo in photos for face in photo.faces]
    return {number for number, face in enumerate(everybody) if any(face is one for one in chosen)}


def _area(face: Reference) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)


@dataclass(frozen=True)
class Order:
    """What a visitor asks for.

    Attributes:
        models, strengths: every one of the models at every one of the strengths of the face; no strength: its own.
        settings: but for the strength.
        seed: of the first picture; -1: any.
    """

    prompt: str
    models: Sequence[str]
    strengths: Sequence[float | None] = (None,)
    settings: Settings = field(default_factory=Settings)
    seed: int = -1
    number: int = 1

    def checked(self) -> Order:
        """The same with the seed that "any" stands for; `UserError` for what cannot be drawn."""
        check_prompt(self.prompt)
        if self.number * len(self.models) * len(self.strengths) > MOST_PICTURES:
            raise UserError(f"these are more than {MOST_PICTURES} pictures at once; ask for fewer")
        if self.seed == -1:
            return replace(self, seed=int(torch.randint(2**31, ()).item()))
        check_range("seed", self.seed, 0, MAX_SEED - self.number)
        return self


@dataclass(frozen=True)
class _Wish:
    """One picture of an order."""

    pipe: FeedFacePipeline
    settings: Settings  # complete
    request: Request
    strength: str  # as the caption says it


def draw(
    session: Session, models: Models, detector: FaceDetector, order: Order
) -> Iterator[tuple[int, int, Drawn | None]]:
    """Draw what is ordered, with the session's person: (steps done, of how many, picture or None), as they come.

    Pictures go into the session's history. Setting `session.stop` ends it. `UserError` for what cannot be drawn.
    """
    references = session.references
    session.stop.clear()
    order = order.checked()

    def work(emit) -> None:
        emit(("total", 0))
        wishes = _wishes(models, references, order)
        emit(("total", sum(wish.settings.steps for wish in wishes)))
        similarity = FaceSimilarity(detector, references) if references else None
        done = 0

        def step(pictures: int) -> None:
            nonlocal done
            done += pictures
            emit(("step", done))

        for pipe, own in groupby(wishes, key=lambda wish: wish.pipe):
            groups = batches(own, lambda wish: pipe.batch_size(wish.settings), lambda wish: wish.settings)  # noqa: B023
            wanted = (Batch([wish.request for wish in group], group[0].settings, group) for group in groups)
            for batch, images in pipe.draw_batches(wanted, step):
                if isinstance(images, UserError):
                    raise images
                for wish, image in zip(batch.items, images, strict=True):
                    likeness = similarity.of(np.asarray(image)) if similarity else None
                    emit(("image", _kept(session, wish, image, references, likeness, len(order.models) > 1)))

    done = total = 0
    for kind, value in events(work, session.stop):
        if kind == "image":
            session.history.insert(0, value)
            yield done, total, value
        else:
            done, total = (done, value) if kind == "total" else (value, total)
            yield done, total, None


def _wishes(models: Models, references: Sequence[Reference], order: Order) -> list[_Wish]:
    wishes = []
    for name, strength in product(order.models, order.strengths):
        pipe = models.load(name)
        settings = replace(order.settings, face_scale=strength)
        own = pipe.settings()
        if settings.negative_prompt and own.uncond in WITHOUT_PROMPT:
            settings = replace(settings, uncond="empty_token")  # what a negative prompt takes the place of
        full = pipe.settings(settings)
        identity = pipe.identity(references) if references else None
        wishes += [
            _Wish(pipe, full, Request(order.prompt, seed, identity), f"{full.face_scale:g}")
            for seed in range(order.seed, order.seed + order.number)
        ]
    return wishes


def _kept(
    session: Session,
    wish: _Wish,
    image: Image.Image,
    references: Sequence[Reference],
    likeness: float | None,
    several: bool,
) -> Drawn:
    pipe, prompt, seed = wish.pipe, wish.request.prompt, wish.request.seed
    faces = tuple(reference.digest for reference in references)
    info = PictureInfo(prompt, seed, pipe.bundle.name, pipe.digest, pipe.picture_settings(wish.settings), faces)
    file = session.file(f"seed{seed}.png")
    save_picture(image, file, info.said(), "png")
    caption = f"seed {seed} · strength {wish.strength}"
    if likeness is not None:
        caption += f" · likeness {likeness:.2f}"
    if several:
        caption = f"{pipe.bundle.name} · {caption}"
    job = {"id": file.stem, "caption_list": [prompt]}
    job["source_group"] = [{"path": f"face_{number}.png"} for number, _ in enumerate(references, 1)]
    job |= {"seed": seed, "n_samples": 1, "detect": False} | wish.settings.as_json()
    return Drawn(file, caption, job, list(references), Path(pipe.bundle.path), seed)


def as_zip(drawn: Drawn, path: Path) -> Path:
    """The picture, the faces and the job that makes it again, in one file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(drawn.file, drawn.file.name)
        archive.writestr("job.json", json.dumps(drawn.job, indent=2) + "\n")
        for number, reference in enumerate(drawn.references, 1):
            stored = io.BytesIO()
            Image.fromarray(reference.crop).save(stored, "PNG")
            archive.writestr(f"face_{number}.png", stored.getvalue())
    return path

"""From what a visitor asks for to pictures, one step after the other."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby, product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feedface.app.background import events
from feedface.app.order import shown
from feedface.app.session import Drawn, Session
from feedface.common.errors import UserError
from feedface.inference.batching import batches
from feedface.inference.job_run import RunPlan
from feedface.inference.outputs import PictureInfo
from feedface.inference.people import Cast
from feedface.inference.provenance import SUFFIXES, save_picture
from feedface.inference.somebody import described
from feedface.inference.stages import Batch, Request
from feedface.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from feedface.app.models import Models
    from feedface.app.order import Order
    from feedface.app.people import Someone
    from feedface.faces.types import FaceDetector
    from feedface.inference.somebody import Somebody
    from feedface.inference.start import Start
    from feedface.pipeline import FeedFacePipeline


@dataclass(frozen=True)
class _Way:
    """One model at one strength of the face, and the people as it draws them."""

    pipe: FeedFacePipeline
    plan: RunPlan  # with complete settings
    cast: Cast | None

    @property
    def settings(self) -> Settings:
        return self.plan.settings

    @property
    def start(self) -> Start | None:
        return self.plan.start


@dataclass(frozen=True)
class _Wish:
    """One picture of an order."""

    way: _Way
    prompt: str  # as the model reads it
    seed: int

    def request(self) -> Request:
        """Asked who is shown, it may first draw a picture without the people, to find their places."""
        cast = self.way.cast
        who = cast and partial(cast.identity, self.prompt, self.seed)
        return Request(self.prompt, self.seed, who, self.way.start)


def draw(
    session: Session, models: Models, detector: FaceDetector, order: Order
) -> Iterator[tuple[int, int, Drawn | None]]:
    """Draw what is ordered, with the session's people: (steps done, of how many, picture or None), as they come.

    Pictures go into the session's history, what is to be told of them into its notes. Setting `session.stop` ends it.
    `UserError` for what cannot be drawn.
    """
    session.stop.clear()
    session.notes = []
    order = order.checked()
    people = order.people(session.people)
    attached, job = _job(order, people)

    def work(emit) -> None:
        done = 0

        def step(pictures: int) -> None:
            nonlocal done
            done += pictures
            emit(("step", done))

        emit(("total", 0))
        ways = _ways(session, models, detector, order, people, step)
        seeds = range(order.seed, order.seed + order.number)
        prompt = described(order.prompt, [who for who, _ in people])
        wishes = [_Wish(way, prompt, seed) for way in ways for seed in seeds]
        twice = {id(way) for way in ways if way.cast and way.cast.looks_for_faces}
        emit(("total", sum(wish.way.settings.steps * (1 + (id(wish.way) in twice)) for wish in wishes)))
        for pipe, own in groupby(wishes, key=lambda wish: wish.way.pipe):
            for batch, images in pipe.draw_batches(_batches(own), step):
                if isinstance(images, UserError):
                    raise images
                for wish, image in zip(batch.items, images, strict=True):
                    emit(("image", _kept(session, order, wish, image, attached, job)))
        session.notes += [note for way in ways if way.cast for note in way.cast.notes]

    done = total = 0
    for kind, value in events(work, session.stop):
        if kind == "image":
            session.history.insert(0, value)
            yield done, total, value
        else:
            done, total = (done, value) if kind == "total" else (value, total)
            yield done, total, None


def _batches(wishes: Iterable[_Wish]) -> Iterator[Batch]:
    for group in batches(wishes, lambda wish: wish.way.pipe.batch_size(wish.way.settings), lambda wish: id(wish.way)):
        yield Batch([wish.request() for wish in group], group[0].way.settings, group)


def _ways(
    session: Session,
    models: Models,
    detector: FaceDetector,
    order: Order,
    people: Sequence[tuple[Somebody, Someone]],
    step: Callable[[int], object],
) -> list[_Way]:
    ways = []
    for name, strength in product(order.models, order.strengths):
        pipe = models.load(name)
        settings = replace(order.settings, face_scale=strength)
        full = pipe.settings(settings)
        start, pose = order.begin.start(pipe, detector, full, session) if order.begin else (None, None)
        who = shown(pipe, people)
        cast = Cast(pipe, detector, full, who, start, pose, step) if who else None
        ways.append(_Way(pipe, RunPlan(full, start=start, pose=pose), cast))
    return ways


def _kept(session: Session, order: Order, wish: _Wish, image: Image.Image, attached: dict, job: dict) -> Drawn:
    way, cast, pipe = wish.way, wish.way.cast, wish.way.pipe
    settings = pipe.picture_settings(way.settings) | way.plan.drawn_so | (cast.settings if cast else {})
    faces = tuple(face for one in cast.people for face in one.faces) if cast else ()
    info = PictureInfo(wish.prompt, wish.seed, pipe.bundle.name, pipe.digest, settings, faces)
    file = session.file(f"seed{wish.seed}{SUFFIXES[order.format]}")
    save_picture(image, file, info.said(), order.format)
    caption = f"seed {wish.seed} · strength {way.settings.face_scale:g}"
    each = cast.measure(np.asarray(image), wish.prompt, wish.seed) if cast else {}
    if any(value is not None for value in each.values()):
        said = {name: "—" if value is None else f"{value:.2f}" for name, value in each.items()}
        several = len(said) > 1
        caption += " · likeness " + ", ".join(f"{name} {value}" if several else value for name, value in said.items())
    if len(order.models) > 1:
        caption = f"{pipe.bundle.name} · {caption}"
    job = {"id": file.stem} | job | {"seed": wish.seed, "n_samples": 1, "detect": False} | way.settings.as_json()
    return Drawn(file, caption, job, attached, Path(pipe.bundle.path), wish.seed)


def _job(order: Order, people: Sequence[tuple[Somebody, Someone]]) -> tuple[dict[str, np.ndarray | bytes], dict]:
    """What a job that draws this order names, by file name, and what it says of prompt, people and beginning."""
    attached: dict[str, np.ndarray | bytes] = {}
    said: dict[str, dict] = {}
    for who, one in people:
        entry: dict[str, object] = {}
        if who.file is not None:
            entry["person"] = f"{len(said) + 1}_{who.file.name}"
            attached[entry["person"]] = who.file.read_bytes()
        else:
            names = [f"face_{len(attached) + number}.png" for number, _ in enumerate(one.references, 1)]
            attached |= {name: face.crop for name, face in zip(names, one.references, strict=True)}
            entry["source_group"] = [{"path": name} for name in names]
        entry["class_word"] = who.word
        if who.region is not None:
            entry["region"] = list(who.region)
        said[who.name] = entry
    job: dict[str, object] = {"caption_list": [order.prompt]}
    alone = next(iter(said.values())) if len(said) == 1 else {}
    if not said:
        job["source_group"] = []
    elif alone.keys() == {"source_group", "class_word"} and described(order.prompt, [people[0][0]]) == order.prompt:
        job["source_group"] = alone["source_group"]
    else:
        job["people"] = said
    if order.begin is not None:
        attached |= order.begin.files
        job |= order.begin.job
    return attached, job


def as_zip(drawn: Drawn, path: Path) -> Path:
    """The picture, the faces and the job that makes it again, in one file."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(drawn.file, drawn.file.name)
        archive.writestr("job.json", json.dumps(drawn.job, indent=2) + "\n")
        for name, content in drawn.attached.items():
            if isinstance(content, np.ndarray):
                stored = io.BytesIO()
                Image.fromarray(content).save(stored, "PNG")
                content = stored.getvalue()
            archive.writestr(name, content)
    return path

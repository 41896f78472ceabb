"""What happens on the page when something is pressed, but for what is done with a person (`person_actions`)."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from feedface.app.batch import run_batch
from feedface.app.drawing import as_zip, draw
from feedface.app.layout import Fields
from feedface.app.order import Beginning, Order, Said
from feedface.app.people import add_photos
from feedface.app.session import Session, Sessions
from feedface.app.words import bar, fitting_size, messages, numbers, one_number, said, size_choices, whole
from feedface.common.errors import UserError
from feedface.inference.job_run import RunPlan
from feedface.settings import Settings, parse_size

if TYPE_CHECKING:
    from feedface.app.models import Models
    from feedface.faces.types import FaceDetector


class Actions:
    """Of all visitors. Each is called with values of fields, and a request, which says whose page it is."""

    def __init__(self, models: Models, detector: FaceDetector, root: Path):
        self.models, self.detector, self.sessions = models, detector, Sessions(root)

    # -------------------------------------------------------------------------------------------------------- drawing

    def draw(self, request: gr.Request, *values: Any) -> Iterator[list]:
        """Draw, and show how far it is: (bar, messages, pictures, draw button, stop button).

        `values`: of `Fields`, and name, word and place of each person.
        """
        session = self.sessions.visitor(request)
        idle = [gr.update(interactive=True), gr.update(interactive=False)]
        busy = [gr.update(interactive=False), gr.update(interactive=True)]
        yield [bar(0, 0, "Waiting for its turn…"), "", gr.skip(), *busy]
        drawn = 0
        try:
            order = order_of(values)
            for done, total, picture in draw(session, self.models, self.detector, order):
                drawn += picture is not None
                text = f"step {done} of {total}" if total else "Getting ready…"
                shown = _gallery(session) if picture else gr.skip()
                yield [bar(done, total, text), gr.skip(), shown, *[gr.skip()] * 2]
        except Exception as error:
            if not session.folder.exists():  # the visitor has left, and all that is theirs with them
                return
            yield [bar(0, 0, ""), messages(said(error, session.folder)), gr.skip(), *idle]
            return
        notices = list(session.notes)
        if not any(someone.there for someone in session.people):
            notices.append("No face was given: this shows nobody in particular.")
        text = "Stopped." if session.stop.is_set() and not drawn else f"{drawn} picture{'s' * (drawn != 1)} drawn."
        yield [bar(0, 0, text), messages("", notices), gr.skip(), *idle]

    def stop(self, request: gr.Request) -> None:
        """End what this visitor is waiting for at its next step."""
        self.sessions.visitor(request).stop.set()

    def select(self, event: gr.SelectData, request: gr.Request) -> list:
        """Show what can be done with a picture: (panel, text, JSON, download)."""
        session = self.sessions.visitor(request)
        if not 0 <= event.index < len(session.history):
            return [gr.update(visible=False), "", "", None]
        one = session.selected = session.history[event.index]
        archive = as_zip(one, one.file.with_suffix(".zip"))
        text = f"**{html.escape(one.job['caption_list'][0])}**  \n{one.caption}"
        return [gr.update(visible=True), text, json.dumps(one.job, indent=2), str(archive)]

    def again(self, request: gr.Request) -> list:
        """The seed of the selected picture, for one picture."""
        one = self.sessions.visitor(request).selected
        return [gr.skip(), gr.skip()] if one is None else [one.seed, 1]

    def sizes(self, model: str) -> list:
        """What the fields offer for another model: (sizes, strength)."""
        try:
            pipe = self.models.load(model)
        except UserError as error:
            raise gr.Error(said(error)) from None
        choices = size_choices(pipe.bundle.image_size, pipe.bundle.size_multiple)
        return [gr.update(choices=choices, value=choices[0]), pipe.settings().face_scale]

    def fit(self, picture: dict | None, model: str) -> Any:
        """The size that has the shape of the picture to begin with."""
        if not picture or picture["background"] is None:
            return gr.skip()
        bundle = self.models.load(model).bundle
        height, width = picture["background"].shape[:2]
        return fitting_size(bundle.image_size, bundle.size_multiple, (width, height))

    # ---------------------------------------------------------------------------------------------------------- batch

    def batch(
        self, files: list[str] | None, model: str, preset: str, number: float, request: gr.Request
    ) -> Iterator[list]:
        """Run job files: (table, messages, pictures, download, run button, stop button, files)."""
        session = self.sessions.visitor(request)
        busy = [gr.update(interactive=False), gr.update(interactive=True), gr.skip()]
        idle = [gr.update(interactive=True), gr.update(interactive=False), None]
        yield [gr.skip(), "", gr.skip(), gr.skip(), *busy]
        try:
            if not files:
                raise UserError("Upload job files (.json) and the photos that they name.")
            plan = RunPlan(Settings(preset=preset or None), n_samples=whole(number, "Number"))
            state: tuple = ()
            for state in run_batch(session, self.models, model, self.detector, files, plan):
                yield [state[0], *[gr.skip()] * 6]
            table, output = state
            pictures = sorted(output.glob("*/[0-9]*.png")) if output else []
            archive = shutil.make_archive(str(output), "zip", output) if pictures else None
            shown = [(str(path), path.parent.name) for path in pictures]
            yield [table, "", shown, gr.update(value=archive, visible=archive is not None), *idle]
        except Exception as error:
            yield [gr.skip(), messages(said(error)), gr.skip(), gr.skip(), *idle]

    # ------------------------------------------------------------------------------------------------------------ API

    def api_draw(
        self,
        photos: list[gr.FileData],
        prompt: str,
        n_samples: int = 1,
        seed: int = -1,
        face_scale: float = -1.0,
        preset: str = "",
        negative_prompt: str = "",
        model: str = "",
    ) -> list[gr.FileData]:
        """Draw the person of some photos: PNG files. Without a seed, of any; face_scale -1 is the model's own."""
        session = self.sessions.of(f"api-{id(photos)}")
        try:
            [someone, *_] = session.people
            notices = add_photos(someone, [photo["path"] for photo in photos], self.detector)
            if photos and not someone.photos:
                raise UserError(" ".join(notices))
            settings = Settings(preset=preset or None, negative_prompt=negative_prompt or None)
            strength = None if face_scale < 0 else face_scale
            order = Order(prompt, [model or self.models.names[0]], [strength], settings, seed, n_samples)
            files = [one.file for _, _, one in draw(session, self.models, self.detector, order) if one]
            kept = self.sessions.of("api")  # for the client to fetch
            files = [Path(shutil.move(file, kept.file(file.name))) for file in files]
            return [gr.FileData(path=str(file)) for file in files]
        except Exception as error:
            raise gr.Error(said(error), print_exception=False) from None
        finally:
            self.sessions.forget(f"api-{id(photos)}")

    def leave(self, request: gr.Request) -> None:
        """A visitor has closed or reloaded the page."""
        self.sessions.forget(request.session_hash)


def _gallery(session: Session) -> Any:
    return gr.update(value=[(str(one.file), one.caption) for one in session.history], selected_index=None)


def order_of(values: tuple) -> Order:
    """What the fields say; `UserError` for what makes no order."""
    fields = Fields(*values[: len(Fields._fields)])
    people = values[len(Fields._fields) :]
    return Order(
        (fields.prompt or "").strip(),
        fields.others or [fields.model],
        numbers(fields.strengths or "") or [float(fields.strength)],
        Settings(
            guidance=one_number(fields.guidance or "", "Guidance"),
            preset=fields.preset or None,
            size=parse_size(fields.size),
            negative_prompt=(fields.negative or "").strip() or None,
            rescale=float(fields.rescale),
            pag_scale=one_number(fields.pag_scale or "", "Clean-up"),
        ),
        seed=whole(fields.seed, "Seed"),
        number=whole(fields.number, "Number"),
        said=[
            Said((name or "").strip(), word or "", place) for name, word, place in zip(*[iter(people)] * 3, strict=True)
        ],
        begin=beginning(fields),
        format=fields.format,
    )


def beginning(fields: Fields) -> Beginning | None:
    """The picture to begin with; what was brushed over is drawn anew, without a stroke all of it."""
    if not fields.picture or fields.picture["background"] is None:
        return None
    picture = np.ascontiguousarray(fields.picture["background"][..., :3])
    brushed = np.zeros(picture.shape[:2], bool)
    for layer in fields.picture["layers"]:
        if layer.shape[:2] == brushed.shape:
            brushed |= layer[..., 3] > 0
    if not fields.only_face and brushed.all():
        brushed[:] = False
    mask = np.where(brushed, 0, 255).astype(np.uint8) if brushed.any() else None
    return Beginning(picture, mask, bool(fields.only_face), float(fields.change))

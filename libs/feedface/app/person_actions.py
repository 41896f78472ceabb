"""What happens on the page with one of the people: photos, faces, a person's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import gradio as gr

from feedface.app.people import Someone, add_file, add_photos, keep_file
from feedface.app.words import messages, said
from feedface.common.errors import UserError
from feedface.inference.photo_notice import photo_notice

if TYPE_CHECKING:
    from feedface.app.models import Models
    from feedface.app.session import Sessions
    from feedface.faces.types import FaceDetector


class PersonActions:
    """Of every visitor's person with that number, from 0. Each returns new values of fields."""

    def __init__(self, models: Models, detector: FaceDetector, sessions: Sessions, number: int):
        self.models, self.detector, self.sessions, self.number = models, detector, sessions, number

    def _someone(self, request: gr.Request) -> Someone:
        return self.sessions.visitor(request).people[self.number]

    def add(self, photos: list, request: gr.Request) -> list:
        """Take uploaded photos over, and show whose faces are in them."""
        someone = self._someone(request)
        files = [photo[0] for photo in photos or []]
        notices, problem = [], ""
        try:
            notices = add_photos(someone, files, self.detector)
        except Exception as error:
            problem = said(error)
        pipe = self.models.load(self.models.names[0])
        if notice := photo_notice(pipe.bundle, self.detector, someone.references):
            notices.append(notice)
        return [None, *_faces(someone), messages(problem, notices)]

    def choose(self, chosen: list[int], request: gr.Request) -> list:
        """Use these faces and no others."""
        someone = self._someone(request)
        someone.chosen = set(chosen) & set(range(len(someone.faces)))
        return _faces(someone)

    def clear(self, request: gr.Request) -> list:
        """Start with somebody else."""
        someone = self._someone(request)
        someone.clear()
        return [*_faces(someone), ""]

    def load(self, file: str, model: str, name: str | None, request: gr.Request) -> list:
        """Take a person's file over: (faces, …, messages, name)."""
        someone = self._someone(request)
        try:
            count = add_file(someone, Path(file), self.models.load(model))
        except Exception as error:
            return [*_faces(someone), messages(said(error)), name]
        stem = someone.file.stem
        text = f"{someone.file.name} is used, made of {count} face{'s' * (count != 1)}, for the method {model} alone."
        return [*_faces(someone), messages("", [text]), name or (stem if re.fullmatch(r"\w+", stem) else "")]

    def keep(self, model: str, name: str | None, request: gr.Request) -> list:
        """Write somebody's file, to be downloaded: (button, messages)."""
        someone = self._someone(request)
        name = (name or "").strip() or "person"
        try:
            if not re.fullmatch(r"\w+", name):
                raise UserError(f"Name {name!r}: one word of letters and digits, please.")
            file = keep_file(someone, name, self.models.load(model), self.detector)
        except Exception as error:
            return [gr.update(visible=False), messages(said(error))]
        return [gr.update(value=str(file), label=f"Download {file.name}", visible=True), ""]


def _faces(someone: Someone) -> list:
    there = bool(someone.photos)
    return [
        gr.update(value=someone.shown(), visible=there),
        gr.update(choices=someone.choices(), value=sorted(someone.chosen), visible=there),
        gr.update(visible=there or someone.file is not None),
    ]

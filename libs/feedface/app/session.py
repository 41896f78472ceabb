"""What the page keeps of each visitor: their people, their pictures, whether they said stop. It goes when they do."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feedface.app.people import Someone

if TYPE_CHECKING:
    import gradio as gr

MOST_PEOPLE = 3  # in one picture


@dataclass
class Drawn:
    """A picture that was drawn: its file, what stands under it, and the job that makes it again.

    `attached`: what the job names, by file name: pictures uint8 [H,W,3] or [H,W], and people's files.
    """

    file: Path
    caption: str
    job: dict
    attached: dict[str, np.ndarray | bytes]
    model: Path
    seed: int


@dataclass
class Session:
    """One visitor."""

    folder: Path
    people: list[Someone] = field(init=False)
    history: list[Drawn] = field(default_factory=list)  # the newest first
    notes: list[str] = field(default_factory=list)  # on the last order
    selected: Drawn | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    def __post_init__(self):
        self.people = [Someone(self.folder / f"person{number}") for number in range(1, MOST_PEOPLE + 1)]
        for someone in self.people:
            someone.folder.mkdir()

    def file(self, name: str) -> Path:
        """A new file of this visitor's: `name` after a number that no other has."""
        self.count += 1
        return self.folder / f"{self.count:03d}_{name}"


class Sessions:
    """All visitors, by the key of their open page."""

    def __init__(self, root: Path):
        self._root, self._known, self._lock = root, {}, threading.Lock()

    def of(self, key: str) -> Session:
        """The visitor with that key, new if there is none."""
        with self._lock:
            if key not in self._known:
                self._known[key] = Session(Path(tempfile.mkdtemp(prefix="visitor-", dir=self._root)))
            return self._known[key]

    def visitor(self, request: gr.Request) -> Session:
        """Who has sent that."""
        return self.of(request.session_hash or "api")

    def forget(self, key: str) -> None:
        """Stop what a visitor who has left is waiting for, and delete all that is theirs."""
        with self._lock:
            session = self._known.pop(key, None)
        if session is not None:
            session.stop.set()
            shutil.rmtree(session.folder, ignore_errors=True)

"""Captions of pictures: one text for all, text files beside the pictures, one file for all, or LLaVA.

captioner = make_captioner("sidecar")
captioner.caption("anna/1.jpg", Path("photos/anna/1.jpg"))      # -> "a woman in a red coat", or NoCaption
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.common.reading import read_text
from feedface.common.registry import imported
from feedface.preparation.tables import CAPTIONS, Table

DEFAULT_TEXT = "a photo of a person"
DEFAULT_LLAVA = "llava-hf/llava-1.5-13b-hf"  # the one that the paper used
CAPTIONERS = {
    "none": "feedface.preparation.captions:FixedCaptioner",
    "sidecar": "feedface.preparation.captions:SidecarCaptioner",
    "file": "feedface.preparation.captions:FileCaptioner",
    "llava": "feedface.preparation.llava:LlavaCaptioner",  # brings in torch and transformers
}
# Path below the data folder, path, and uint8 RGB [H, W, 3], which only LLaVA looks at.
Picture = tuple[str, Path, np.ndarray | None]


class NoCaption(UserError):
    """One picture has no caption; the message says why, and names no folder that could change."""


class Captioner:
    """What says what a picture shows.

    Attributes:
        kind: its name in `CAPTIONERS`.
        unused: names that captions were given for and that no picture has.
    """

    kind: str
    unused: Sequence[str] = ()

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        """The caption of one picture, one line; raises `NoCaption`. For the arguments see `Picture`."""
        raise NotImplementedError

    def caption_many(self, pictures: Sequence[Picture]) -> list[str | NoCaption]:
        """The captions of several pictures; those that have none have the reason in its place."""
        results: list[str | NoCaption] = []
        for picture in pictures:
            try:
                results.append(self.caption(*picture))
            except NoCaption as reason:
                results.append(reason)
        return results


class FixedCaptioner(Captioner):
    """The same text for every picture; `UserError` if it is empty."""

    kind = "none"

    def __init__(self, text: str = DEFAULT_TEXT):
        self.text = one_line(text)
        if not self.text:
            raise UserError("--caption_text: is empty; every record needs a caption")

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        return self.text


class SidecarCaptioner(Captioner):
    """A text file beside the picture: for anna/1.jpg it is anna/1.jpg.txt, or else anna/1.txt."""

    kind = "sidecar"

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        names = [f"{path.name}.txt", f"{path.stem}.txt"]
        file = next((path.with_name(name) for name in names if path.with_name(name).exists()), None)
        if file is None:
            raise NoCaption(f"no caption: neither {names[0]} nor {names[1]} is beside it")
        try:
            text = one_line(read_text(file))
        except UserError as error:
            raise NoCaption(f"no caption: {str(error).replace(str(file), file.name)}") from None
        if not text:
            raise NoCaption(f"no caption: {file.name} is empty")
        return text


class FileCaptioner(Captioner):
    """One file with the captions of all pictures, see `tables`; `pictures` as there."""

    kind = "file"

    def __init__(self, file: str | Path | None, pictures: Sequence[str]):
        if file is None:
            raise UserError("--caption file: needs --caption_file, a .json, .jsonl, .csv or .tsv file of captions")
        self._table = Table(Path(file), CAPTIONS, pictures)
        self.unused = self._table.unused

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        try:
            return one_line(self._table.get(rel))
        except UserError as error:
            raise NoCaption(f"no caption: {error}") from None


def make_captioner(kind: str = "none", *arguments: object, **named: object) -> Captioner:
    """The captioner of a kind, with its own arguments; `UserError`: no such kind, or what it needs is not there."""
    if kind not in CAPTIONERS:
        raise UserError(f"--caption {kind!r}: must be one of {', '.join(CAPTIONERS)}")
    return imported(CAPTIONERS[kind])(*arguments, **named)


def caption_or_reason(answer: str | NoCaption) -> tuple[str, str]:
    """The caption, or why there is none: one of the two is empty."""
    return ("", one_line(str(answer))) if isinstance(answer, NoCaption) else (answer, "")


def one_line(text: str) -> str:
    """Any white space, line breaks too, to single spaces."""
    return " ".join(text.split())

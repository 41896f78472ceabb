"""Captions of pictures: one text for all, text files beside the pictures, one file for all, or LLaVA.

captioner = make_captioner("sidecar")
captioner.caption("anna/1.jpg", Path("photos/anna/1.jpg"))      # -> "a woman in a red coat", or NoCaption
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from feedface.common.errors import UserError
from feedface.common.reading import read_text
from feedface.preparation.tables import CAPTIONS, Table

KINDS = ("none", "sidecar", "file", "llava")
DEFAULT_TEXT = "a photo of a person"
DEFAULT_LLAVA = "llava-hf/llava-1.5-13b-hf"  # the one that the paper used
# Path below the data folder, path, and uint8 RGB [H, W, 3], which only LLaVA looks at.
Picture = tuple[str, Path, np.ndarray | None]


class NoCaption(UserError):
    """One picture has no caption; the message says why, and names no folder that could change."""


class Captioner(Protocol):
    kind: str

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        """The caption of one picture, one line; raises `NoCaption`.

        `rel`: its path below the data folder; `path`: where it is; `image`: uint8 RGB [H, W, 3], needed by "llava".
        """
        ...

    def caption_many(self, pictures: Sequence[Picture]) -> list[str | NoCaption]:
        """The captions of several pictures; those that have none have the reason in its place."""
        ...


class _OneByOne:
    """Captioners that gain nothing from seeing several pictures at once."""

    def caption_many(self, pictures: Sequence[Picture]) -> list[str | NoCaption]:
        """See `Captioner`."""
        results: list[str | NoCaption] = []
        for rel, path, image in pictures:
            try:
                results.append(self.caption(rel, path, image))
            except NoCaption as reason:
                results.append(reason)
        return results


class FixedCaptioner(_OneByOne):
    """The same text for every picture; `UserError` if it is empty."""

    kind = "none"

    def __init__(self, text: str = DEFAULT_TEXT):
        self.text = one_line(text)
        if not self.text:
            raise UserError("--caption_text: is empty; every record needs a caption")

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        """See `Captioner`."""
        return self.text


class SidecarCaptioner(_OneByOne):
    """A text file beside the picture: for anna/1.jpg it is anna/1.jpg.txt, or else anna/1.txt."""

    kind = "sidecar"

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        """See `Captioner`."""
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


class FileCaptioner(_OneByOne):
    """One file with the captions of all pictures, see `tables`.

    Args:
        file: .json, .jsonl, .csv or .tsv.
        pictures: paths of all pictures below the data folder: whether a name is clear depends on all of them.

    Attributes:
        unused: names in the file that no picture has.

    Raises:
        UserError: the file cannot be used; names the line.
    """

    kind = "file"

    def __init__(self, file: str | Path, pictures: Sequence[str]):
        self._table = Table(Path(file), CAPTIONS, pictures)
        self.unused = self._table.unused

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        """See `Captioner`."""
        try:
            return one_line(self._table.get(rel))
        except UserError as error:
            raise NoCaption(f"no caption: {error}") from None


def make_captioner(
    kind: str = "none",
    text: str = DEFAULT_TEXT,
    file: str | Path | None = None,
    pictures: Sequence[str] | None = None,
    llava_model: str | Path = DEFAULT_LLAVA,
    device: str = "auto",
    dtype: str | None = None,
    batch_size: int = 8,
) -> Captioner:
    """Build a captioner; arguments that belong to another kind are not looked at.

    Args:
        kind: one of `KINDS`.
        text: for "none".
        file, pictures: for "file", see `FileCaptioner`.
        llava_model, device, dtype, batch_size: for "llava", see `llava.LlavaCaptioner`.

    Raises:
        UserError: an unknown kind, a file that cannot be used, weights that are missing.
    """
    if kind == "none":
        return FixedCaptioner(text)
    if kind == "sidecar":
        return SidecarCaptioner()
    if kind == "file":
        if file is None:
            raise UserError("--caption file: needs --caption_file, a .json, .jsonl, .csv or .tsv file of captions")
        if pictures is None:
            raise ValueError("captions from a file need the names of all pictures")
        return FileCaptioner(file, pictures)
    if kind == "llava":
        # Brings in torch and transformers, which only this one needs.
        from feedface.preparation.llava import LlavaCaptioner

        return LlavaCaptioner(llava_model, device, dtype, batch_size)
    raise UserError(f"--caption {kind!r}: must be one of {', '.join(KINDS)}")


def one_line(text: str) -> str:
    """Any white space, line breaks too, to single spaces."""
    return " ".join(text.split())

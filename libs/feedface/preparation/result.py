"""What became of one picture, in memory and as the JSON files that a run leaves and goes on from.

A picture `REL` (its path below the data folder, with its suffix, "/" between folders) ends in one of four folders:

    single/REL.json, REL.png              one face; it becomes a record
    multi/REL_0.json, REL_0.png, REL_1…   several faces, a pair of files for each
    filtered/REL.json, REL.png            one face that a filter rejected
    error/REL.json                        unreadable, or no face

Keys of each JSON file. Of the picture: path (REL), stamp, outcome, reason, img_size [w, h], faces (how many), and where
it passed the filters caption and caption_by. Of the face: face (its number), rect and bbox (the detected box x0, y0,
x1, y1), square_bbox, mask_bbox, point (5 x [x, y] or null), scores, resize_s, embedding (or null) and those of
`filters.measure`: face_px, blur, yaw, pitch, roll. Errors have the picture's keys only. All coordinates are in pixels
of the upright picture, so resize_s, the authors' factor between picture and coordinates, is always 1.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, Required

import numpy as np
from annotated_types import Len
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from feedface.common.errors import UserError
from feedface.common.reading import read_text
from feedface.common.saving import save_ascii
from feedface.common.validation import OPEN, parse_line_as

SINGLE, MULTI, ERROR, FILTERED = KINDS = ("single", "multi", "error", "filtered")
MAX_ROW_BYTES = 16 << 20
Stamp = list[int]  # size in bytes and mtime in ns of the picture's file

_Number = Annotated[float, Field(ge=-1e6, le=1e6)]
_Measure = Annotated[float, Field(ge=0, le=1e6)]
_Box = Annotated[list[_Number], Len(4, 4)]
_Size = Annotated[list[Annotated[int, Field(ge=1)]], Len(2, 2)]


class _Row(TypedDict, total=False):
    """What any of the JSON files holds."""

    __pydantic_config__ = OPEN
    path: Required[str]
    stamp: Required[Annotated[Stamp, Len(2, 2)] | None]
    outcome: Required[Literal[KINDS]]
    reason: Required[str]
    faces: Required[Annotated[int, Field(ge=0, le=10_000)]]
    img_size: _Size | None
    caption: str
    caption_by: str


class _FaceRow(_Row, total=False):
    """What the JSON file of a face holds."""

    img_size: Required[_Size]
    bbox: Required[_Box]
    square_bbox: Required[_Box]
    mask_bbox: _Box | None
    point: Annotated[list[Annotated[list[_Number | None], Len(2, 2)]], Len(5, 5)] | None
    scores: _Measure | None
    face_px: _Measure | None
    blur: _Measure | None
    yaw: _Number | None
    pitch: _Number | None
    roll: _Number | None
    embedding: list[_Number | None] | None


_ROW, _FACE_ROW = TypeAdapter(_Row), TypeAdapter(_FaceRow)


@dataclass
class Result:
    """One picture, all steps done.

    Attributes:
        rel: path below the data folder, "/" between its parts.
        stamp: of the file that was read; None if it could not be opened: it is then tried again by every run.
        size: width, height in pixels; None if it could not be read.
        kind: one of `KINDS`.
        reason: why it is not a single; empty for singles.
        faces: the face's keys of the JSON files, one dictionary for each face.
        masks: uint8 [H, W] LaPa classes of each face.
        caption: of a single.
        caption_by: where the caption is from; empty if none was asked for.
    """

    rel: str
    stamp: Stamp | None
    size: tuple[int, int] | None
    kind: str
    reason: str = ""
    faces: list[dict] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    caption: str = ""
    caption_by: str = ""

    def rows(self) -> list[dict]:
        """The content of each JSON file of the picture."""
        picture = {
            "path": self.rel,
            "stamp": self.stamp,
            "outcome": self.kind,
            "reason": self.reason,
            "img_size": list(self.size) if self.size else None,
            "faces": len(self.faces),
        }
        if self.caption_by:
            picture |= {"caption": self.caption, "caption_by": self.caption_by}
        return [picture | {"face": number} | face for number, face in enumerate(self.faces)] or [picture]


def stems(rel: str, kind: str, faces: int) -> list[str]:
    """Paths of the picture's files below the output folder, without ".json" and ".png".

    The JSON file of the first is written last: where it is whole, the picture is done.
    """
    return [f"{kind}/{rel}_{number}" for number in range(faces)] if kind == MULTI else [f"{kind}/{rel}"]


def file_names(row: dict) -> list[str]:
    """All files of a picture, below the output folder; `row` is its first JSON file."""
    suffixes = (".json",) if row["outcome"] == ERROR else (".json", ".png")
    return [stem + suffix for stem in stems(row["path"], row["outcome"], row["faces"]) for suffix in suffixes]


def write_row(path: Path, row: dict) -> None:
    """Write one JSON file, whole or not at all, a line for each key. `OutputError` names the file."""
    lines = (f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in row.items())
    save_ascii("{\n" + ",\n".join(lines) + "\n}\n", path)


def read_row(path: Path) -> dict | None:
    """One of the JSON files; None if it is not there or not one."""
    try:
        text, place = read_text(path, most_bytes=MAX_ROW_BYTES), f"{path}:1"
        row = parse_line_as(text, _ROW, place)
        return row if row["outcome"] == ERROR else parse_line_as(text, _FACE_ROW, place)
    except UserError:
        return None


def read_rows(out_folder: Path, first: dict) -> Iterator[dict]:
    """All JSON files of the picture whose first one holds `first`; those that are missing are left out."""
    yield first
    for stem in stems(first["path"], first["outcome"], first["faces"])[1:]:
        if row := read_row(out_folder / f"{stem}.json"):
            yield row


def rounded(values, digits: int = 2) -> list:
    """Numbers or nested sequences of them as lists, rounded: the same text on every run."""
    return (np.asarray(values, np.float64).round(digits) + 0.0).tolist()  # + 0.0: no "-0.0"


def plain(value: float | None, digits: int = 4) -> float | None:
    """A measured value for JSON: rounded, no numpy types; not-a-number becomes None."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits) + 0.0

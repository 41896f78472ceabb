"""The one JSONL schema of the project: a line is a picture with its caption, its face and its parsing mask.

    {"path": str, "caption": str, "width": int, "height": int,
     "bbox": [x0, y0, x1, y1], "square_bbox": [x0, y0, x1, y1],
     "mask_path": str, "ref": [{"path": str, "square_bbox": [x0, y0, x1, y1]}, ...], "identity": str}

Dense-Face's training also reads what is there of these:

    {"pose": [yaw, pitch, roll], "landmarks": [[x, y], ...], "depth_path": str, "attributes": {name: 0 ... 1, ...}}

`pose` is in degrees, see `head_pose`; `landmarks` in pixels of the picture; `depth_path` a grey picture of the same
proportions, 0 where no face is, else the brighter the nearer; `attributes` how likely each is.

Training also reads the rows of open FlashFace (`faceless`), whose `ref` are face crops, without boxes and masks:

    {"path": str, "size": [width, height], "caption": str, "ref": [str, ...]}

Boxes are in pixels of the picture; `square_bbox` is `bbox` expanded 1.1 times and squared, and may pass the border.
`ref` (other pictures of the same person) and `identity` are optional; other keys are ignored. Relative paths are
relative to the JSONL file. The first seven keys are those of the authors' release (spec, section 6).
"""

import codecs
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from annotated_types import Len
from pydantic import BaseModel, Field, TypeAdapter

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.reading import check_file
from feedface.common.validation import STRICT, Text, parse_line_as
from feedface.data.tar_records import expand_ranges, is_tar, sample_line, sample_lines, sample_name

MAX_LINE_BYTES = 16 << 20
# Sides of a face crop: below the first it is a few equal pixels, above the second more than the face of any picture.
MIN_SQUARE_PX, MAX_SQUARE_PX = 4, 12_000
MAX_PX = 1_000_000

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class RecordReference:
    """Another picture of the same person: its path and the square face box in its pixels; None: it is a face crop."""

    path: Path
    square_bbox: Box | None


@dataclass(frozen=True, slots=True)
class Record:
    """One line. `origin` is "file:line" for messages (empty when made in code); it is not written.

    Without a `mask_path`, a row of open FlashFace: all of the picture counts as face in masks, and there is no face to
    cut out of it (its boxes are the whole picture).
    """

    path: Path
    caption: str
    width: int
    height: int
    bbox: Box
    square_bbox: Box
    mask_path: Path | None
    ref: tuple[RecordReference, ...] = ()
    identity: str | None = None
    origin: str = ""
    pose: tuple[float, float, float] | None = None
    landmarks: tuple[tuple[float, float], ...] = ()
    depth_path: Path | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)


_Side = Annotated[int, Field(ge=1, le=MAX_PX)]
_Coordinate = Annotated[float, Field(ge=-MAX_PX, le=MAX_PX)]
_Degrees = Annotated[float, Field(ge=-180, le=180)]
_Box = tuple[_Coordinate, _Coordinate, _Coordinate, _Coordinate]


class _Reference(BaseModel):
    model_config = STRICT
    path: Text
    square_bbox: _Box


class FaceRow(BaseModel):
    """A line as it is written."""

    model_config = STRICT
    path: Text
    caption: Text
    width: _Side
    height: _Side
    bbox: _Box
    square_bbox: _Box
    mask_path: Text
    ref: list[_Reference] | None = None
    identity: str | None = None
    pose: tuple[_Degrees, _Degrees, _Degrees] | None = None
    landmarks: Annotated[list[tuple[_Coordinate, _Coordinate]], Len(1, 1024)] | None = None
    depth_path: Text | None = None
    attributes: dict[Text, Annotated[float, Field(ge=0, le=1)]] | None = None


class FacelessRow(BaseModel):
    """A line of open FlashFace."""

    model_config = STRICT
    path: Text
    size: tuple[_Side, _Side]
    caption: str
    ref: list[Text] | None = None


Row = FaceRow | FacelessRow
_ROW, _FACELESS_ROW = TypeAdapter(FaceRow), TypeAdapter(FacelessRow)
_BOX_HINT = f"must be four numbers [x0, y0, x1, y1], from -{MAX_PX} to {MAX_PX}"
_SIDE_HINT = f"must be a whole number of pixels from 1 to {MAX_PX}"
_TEXT_HINT = "must be a string with something in it"
_POSE_HINT = "must be three angles in degrees [yaw, pitch, roll], from -180 to 180"
HINTS = {
    **dict.fromkeys(("bbox", "square_bbox"), _BOX_HINT),
    **dict.fromkeys(("width", "height"), _SIDE_HINT),
    **dict.fromkeys(("path", "caption", "mask_path", "depth_path"), _TEXT_HINT),
    "pose": _POSE_HINT,
    "landmarks": "must be a list of points [x, y] in pixels, 1 to 1024",
    "attributes": "must be an object of numbers from 0 to 1 by name",
}
_FACELESS_HINTS = {
    "size": f"must be two whole numbers of pixels [width, height], from 1 to {MAX_PX}",
    "ref": "must be a list of paths of face crops",
    "path": _TEXT_HINT,
}


def read_records(paths: str | os.PathLike | Sequence[str | os.PathLike], faceless: bool = False) -> list[Record]:
    """Records of one file, or of several one after the other: JSONL, whose empty lines are passed over, or tar
    (`tar_records`; "shard-{00000..00099}.tar" is a hundred).

    `faceless`: rows of open FlashFace are taken too.

    Raises `UserError`, naming file, line and key, for a line that breaks the schema, and for a file without records.
    The pictures themselves are not opened here.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    records = []
    for path in expand_ranges(paths):
        before = len(records)
        records += _read_file(path, faceless)
        if len(records) == before:
            raise no_records(path)
    if not records:
        raise UserError("no record files were given; name at least one JSONL file")
    return records


def no_records(path: Path) -> UserError:
    """What is said of a file with nothing in it."""
    return UserError(f"{path}: holds no records; each line must be a JSON object (see feedface/data/records.py)")


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Write a JSONL file, whole or not at all. Paths below its folder become relative to it, others absolute."""
    path = Path(path)
    folder = Path(os.path.abspath(path.parent))
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(row_of(record, lambda path: _portable(path, folder)), ensure_ascii=False) + "\n")


def row_of(record: Record, named: Callable[[Path], str]) -> dict[str, object]:
    """A record as its line has it; `named` says what a file is called there."""
    row = {
        "path": named(record.path),
        "caption": record.caption,
        "width": record.width,
        "height": record.height,
        "bbox": list(record.bbox),
        "square_bbox": list(record.square_bbox),
        "mask_path": named(record.mask_path),
    }
    if record.ref:
        row["ref"] = [{"path": named(ref.path), "square_bbox": list(ref.square_bbox)} for ref in record.ref]
    if record.identity is not None:
        row["identity"] = record.identity
    dense = {
        "pose": record.pose and list(record.pose),
        "landmarks": [list(point) for point in record.landmarks],
        "depth_path": record.depth_path and named(record.depth_path),
        "attributes": dict(record.attributes),
    }
    return row | {key: value for key, value in dense.items() if value}


def _portable(path: Path, folder: Path) -> str:
    path = Path(os.path.abspath(path))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _read_file(path: Path, faceless: bool) -> Iterator[Record]:
    for begin, number, line in lines_of(path):
        origin = origin_of(path, begin, number)
        yield make_record(parse_row(line, faceless, origin), folder_of(path), origin)


def folder_of(path: Path) -> Path:
    """What the paths in a file of records are relative to: the folder it is in, or the tar itself."""
    return Path(os.path.abspath(path if is_tar(path) else path.parent))


def origin_of(path: Path, begin: int, number: int) -> str:
    """A line as `lines_of` gives it, for messages: "records.jsonl:3"; "shard.tar/000012.json:1"."""
    return f"{sample_name(path, begin)}:1" if is_tar(path) else f"{path}:{number}"


def read_line(path: Path, begin: int) -> bytes:
    """The line that begins there, as `lines_of` says."""
    if is_tar(path):
        return sample_line(path, begin)
    with open(path, "rb") as file:  # each time: workers share nothing that has a position
        file.seek(begin)
        return file.readline()


def lines_of(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Lines with something in them: where each begins in the file, its number from 1, and itself.

    Of a tar, the records of its samples; they begin at a number among its members.
    """
    check_file(path)
    if is_tar(path):
        yield from ((begin, number, line) for number, (begin, line) in enumerate(sample_lines(path), start=1))
        return
    begin = 0
    with open(path, "rb") as file:
        # Lines end at "\n" only: a caption may hold other characters that break lines, such as U+2028.
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES), b""), start=1):
            if len(line) == MAX_LINE_BYTES:
                raise UserError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB, so not a record")
            if line.removeprefix(codecs.BOM_UTF8).strip():
                yield begin, number, line
            begin += len(line)


def parse_row(line: bytes, faceless: bool, origin: str) -> Row:
    """A line, with or without its end, as it is written; `UserError` where it breaks the schema."""
    line = line.removeprefix(codecs.BOM_UTF8)  # of the first line
    if faceless and b'"bbox"' not in line and b'"size"' in line:
        return parse_line_as(line, _FACELESS_ROW, origin, _FACELESS_HINTS)
    row = parse_line_as(line, _ROW, origin, HINTS)
    size = row.width, row.height
    for key in ("bbox", "square_bbox"):
        _check_box(getattr(row, key), origin, key, size)
    for i, ref in enumerate(row.ref or ()):
        _check_box(ref.square_bbox, origin, f"ref[{i}].square_bbox")
    return row


def make_record(row: Row, folder: Path, origin: str) -> Record:
    """The record of a line, with paths relative to the folder."""

    def at(path: str) -> Path:
        # One name for a file in a tar, whatever tar it is named in.
        return Path(os.path.normpath(folder / path)) if is_tar(folder) else folder / path

    if isinstance(row, FacelessRow):
        width, height = row.size
        whole = (0.0, 0.0, float(width), float(height))
        refs = tuple(RecordReference(at(path), None) for path in row.ref or ())
        return Record(at(row.path), row.caption, width, height, whole, whole, None, refs, origin=origin)
    return Record(
        path=at(row.path),
        caption=row.caption,
        width=row.width,
        height=row.height,
        bbox=row.bbox,
        square_bbox=row.square_bbox,
        mask_path=at(row.mask_path),
        ref=tuple(RecordReference(at(ref.path), ref.square_bbox) for ref in row.ref or ()),
        identity=row.identity,
        origin=origin,
        pose=row.pose,
        landmarks=tuple(row.landmarks or ()),
        depth_path=None if row.depth_path is None else at(row.depth_path),
        attributes=row.attributes or {},
    )


def _check_box(box: Box, origin: str, key: str, size: tuple[int, int] | None = None) -> None:
    """`UserError` unless it can be the box of a face in a picture of `size` (None: not known here)."""
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise UserError(f"{origin}: {key}: {[*box]} is empty; x1 must be above x0 and y1 above y0")
    if size and (x1 <= 0 or y1 <= 0 or x0 >= size[0] or y0 >= size[1]):
        raise UserError(f"{origin}: {key}: {[*box]} lies outside the picture of {size[0]} x {size[1]} pixels")
    if key != "bbox" and not MIN_SQUARE_PX <= max(x1 - x0, y1 - y0) <= MAX_SQUARE_PX:
        raise UserError(
            f"{origin}: {key}: {[*box]} has a side of {max(x1 - x0, y1 - y0):g} px; a face crop has {MIN_SQUARE_PX} to "
            f"{MAX_SQUARE_PX}"
        )

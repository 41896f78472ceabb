"""The one JSONL schema of the project: a line is a picture with its caption, its face and its parsing mask.

    {"path": str, "caption": str, "width": int, "height": int,
     "bbox": [x0, y0, x1, y1], "square_bbox": [x0, y0, x1, y1],
     "mask_path": str, "ref": [{"path": str, "square_bbox": [x0, y0, x1, y1]}, ...], "identity": str}

Boxes are in pixels of the picture; `square_bbox` is `bbox` expanded 1.1 times and squared, and may pass the border.
`ref` (other pictures of the same person) and `identity` are optional; other keys are ignored. Relative paths are
relative to the JSONL file. The first seven keys are those of the authors' release (spec, section 6).
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from feedface.errors import UserError
from feedface.files import atomic_file

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Reference:
    """Another picture of the same person: its path and the square face box in its pixels."""

    path: Path
    square_bbox: Box


@dataclass(frozen=True, slots=True)
class Record:
    """One line. `origin` is "file:line" for messages (empty when made in code); it is not written."""

    path: Path
    caption: str
    width: int
    height: int
    bbox: Box
    square_bbox: Box
    mask_path: Path
    ref: tuple[Reference, ...] = ()
    identity: str | None = None
    origin: str = ""


def read_records(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[Record]:
    """Records of one JSONL file, or of several one after the other; empty lines are passed over.

    Raises `UserError`, naming file, line and key, for a line that breaks the schema, and for a file without records.
    The pictures themselves are not opened here.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    records = []
    for path in map(Path, paths):
        before = len(records)
        records += _read_file(path)
        if len(records) == before:
            raise UserError(f"{path}: holds no records; each line must be a JSON object (see feedface/data/records.py)")
    if not records:
        raise UserError("no record files were given; name at least one JSONL file")
    return records


def write_records(path: str | os.PathLike, records: Iterable[Record]) -> None:
    """Write a JSONL file, whole or not at all. Paths below its folder become relative to it, others absolute."""
    path = Path(path)
    folder = Path(os.path.abspath(path.parent))
    with atomic_file(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for record in records:
            row = {
                "path": _portable(record.path, folder),
                "caption": record.caption,
                "width": record.width,
                "height": record.height,
                "bbox": list(record.bbox),
                "square_bbox": list(record.square_bbox),
                "mask_path": _portable(record.mask_path, folder),
            }
            if record.ref:
                row["ref"] = [
                    {"path": _portable(ref.path, folder), "square_bbox": list(ref.square_bbox)} for ref in record.ref
                ]
            if record.identity is not None:
                row["identity"] = record.identity
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _portable(path: Path, folder: Path) -> str:
    path = Path(os.path.abspath(path))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _read_file(path: Path) -> list[Record]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; name a JSONL file of records") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a JSONL file of records") from None
    folder = Path(os.path.abspath(path.parent))
    # Split at "\n" only: `splitlines` also breaks at characters that a caption may hold, such as U+2028.
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), start=1)
    return [_parse(line, folder, f"{path}:{number}") for number, line in lines if line.strip()]


def _parse(line: str, folder: Path, origin: str) -> Record:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{origin}: not JSON ({error}); each line must be one JSON object") from None
    if not isinstance(row, dict):
        raise UserError(f"{origin}: a {type(row).__name__}, but each line must be one JSON object")
    width, height = _size(row, "width", origin), _size(row, "height", origin)
    refs = row.get("ref") or []
    if not isinstance(refs, list) or not all(isinstance(ref, dict) for ref in refs):
        raise UserError(f"{origin}: ref: must be a list of objects with path and square_bbox")
    identity = row.get("identity")
    if identity is not None and not isinstance(identity, str):
        raise UserError(f"{origin}: identity: must be a string, not {identity!r}")
    return Record(
        path=folder / _text(row, "path", origin),
        caption=_text(row, "caption", origin),
        width=width,
        height=height,
        bbox=_box(row, "bbox", origin, within=(width, height)),
        square_bbox=_box(row, "square_bbox", origin, within=(width, height)),
        mask_path=folder / _text(row, "mask_path", origin),
        ref=tuple(
            Reference(
                folder / _text(ref, "path", f"{origin}: ref[{i}]"), _box(ref, "square_bbox", f"{origin}: ref[{i}]")
            )
            for i, ref in enumerate(refs)
        ),
        identity=identity,
        origin=origin,
    )


def _value(row: dict[str, Any], key: str, origin: str) -> Any:
    if key not in row:
        raise UserError(f"{origin}: {key}: missing; every record needs it")
    return row[key]


def _text(row: dict[str, Any], key: str, origin: str) -> str:
    value = _value(row, key, origin)
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{origin}: {key}: must be a string with something in it, not {value!r:.60}")
    return value


def _size(row: dict[str, Any], key: str, origin: str) -> int:
    value = _value(row, key, origin)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{origin}: {key}: must be a whole number of pixels above 0, not {value!r:.60}")
    return value


def _box(row: dict[str, Any], key: str, origin: str, within: tuple[int, int] | None = None) -> Box:
    value = _value(row, key, origin)
    numbers = isinstance(value, list) and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    if not numbers or len(value) != 4:
        raise UserError(f"{origin}: {key}: must be four numbers [x0, y0, x1, y1], not {value!r:.60}")
    x0, y0, x1, y1 = map(float, value)
    if x1 <= x0 or y1 <= y0:
        raise UserError(f"{origin}: {key}: {value} is empty; x1 must be above x0 and y1 above y0")
    if within and (x1 <= 0 or y1 <= 0 or x0 >= within[0] or y0 >= within[1]):
        raise UserError(f"{origin}: {key}: {value} lies outside the picture of {within[0]} x {within[1]} pixels")
    return x0, y0, x1, y1

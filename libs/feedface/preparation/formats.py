"""What a run hands over: records.jsonl, and the data formats of open FlashFace and of AdaFace.

    records.jsonl                       the project's schema, always (`data.records`)
    flashface.jsonl, crops/REL.png      {"path", "size": [w, h], "caption", "ref": [face crops of the same person]}
    adaface/PERSON/NAME.png, NAME_mask.png    square pictures and their masks, face and hair 255, a folder a person

Paths below the folder of a JSONL file are relative to it. The pictures of the last two are cut here, by any number of
processes, each file by one of them.
"""

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.images import read_image
from feedface.common.saving import safe_name, save_png
from feedface.data.records import Record, RecordReference, write_records
from feedface.faces.crop import crop_square
from feedface.preparation.process import square_inside
from feedface.preparation.result import SINGLE, stems

FORMATS = ("feedface", "flashface", "adaface")
MAX_REFS = 16  # per record: 100 pictures of one person need not list 99 others each
RECORDS, FLASHFACE, CROPS, ADAFACE = "records.jsonl", "flashface.jsonl", "crops", "adaface"


@dataclass(frozen=True)
class Cut:
    """One file to be cut out of another, for picture `rel`: `box` (x0, y0, x1, y1 px) of `source`, to `target`."""

    rel: str
    source: Path
    target: Path
    box: tuple[float, float, float, float]
    is_mask: bool = False


def check_formats(formats: Iterable[str], identity: str) -> None:
    """`UserError` for formats that need to know who is in a picture."""
    if "adaface" in formats and identity == "none":
        raise UserError("--format adaface: keeps a folder for each person; say who they are by --identity")


def make_records(
    rows: Iterable[dict], identities: Mapping[str, str], data: Path, out: Path, dense: bool = False
) -> list[Record]:
    """Records of the rows (see `result`) that are singles, in their order; `identities`: of paths below `data`.

    A record's references are the person's next pictures, around the end. `dense`: with pose and landmarks, where the
    detector finds these.
    """
    rows = [row for row in rows if row["outcome"] == SINGLE]
    people, places = defaultdict(list), {}
    for row in rows:
        person = people[identities.get(row["path"])]
        places[row["path"]] = len(person)
        person.append(row)
    records = []
    for row in rows:
        rel, identity = row["path"], identities.get(row["path"])
        person = [] if identity is None else people[identity]
        refs = [person[(places[rel] + step) % len(person)] for step in range(1, min(len(person), MAX_REFS + 1))]
        records.append(
            Record(
                path=data / rel,
                caption=row["caption"],
                width=row["img_size"][0],
                height=row["img_size"][1],
                bbox=tuple(row["bbox"]),
                square_bbox=tuple(row["square_bbox"]),
                mask_path=out / f"{stems(rel, SINGLE, 1)[0]}.png",
                ref=tuple(RecordReference(data / other["path"], tuple(other["square_bbox"])) for other in refs),
                identity=identity,
                **(_dense(row) if dense else {}),
            )
        )
    return records


def _dense(row: Mapping[str, Any]) -> dict[str, Any]:
    """Pose and landmarks of a row's face; poses of records are counted the other way round, see `head_pose`."""
    if row["yaw"] is None:
        return {}
    return {
        "pose": (-row["yaw"], -row["pitch"], row["roll"]),
        "landmarks": tuple((float(x), float(y)) for x, y in row["point"]),
    }


def plan_cuts(records: Iterable[Record], formats: Iterable[str], data: Path, out: Path) -> list[Cut]:
    """The files that the formats need besides the JSONL files."""
    cuts = []
    for record in records:
        rel = record.path.relative_to(data).as_posix()
        if "flashface" in formats:
            cuts.append(Cut(rel, record.path, crop_path(record.path, data, out), record.square_bbox))
        if "adaface" in formats and record.identity is not None:
            folder, name = out / ADAFACE / safe_name(record.identity), safe_name(rel)
            box = square_around(record.bbox, record.width, record.height)
            cuts.append(Cut(rel, record.path, folder / f"{name}.png", box))
            cuts.append(Cut(rel, record.mask_path, folder / f"{name}_mask.png", box, is_mask=True))
    return cuts


def crop_path(picture: Path, data: Path, out: Path) -> Path:
    return out / CROPS / f"{picture.relative_to(data).as_posix()}.png"


def is_made(cut: Cut, made_from: Path) -> bool:
    """Whether the file is there and newer than `made_from`, the JSON file of its picture."""
    try:
        return cut.target.stat().st_mtime_ns >= made_from.stat().st_mtime_ns
    except OSError:
        return False


def make_cut(cut: Cut) -> None:
    """Write one file, whole or not at all."""
    image = read_image(cut.source)
    if cut.is_mask:
        image = np.where(image[:, :, 0] > 0, 255, 0).astype(np.uint8)
    save_png(Image.fromarray(crop_square(image, cut.box)), cut.target)


def square_around(box: tuple[float, ...], width: int, height: int) -> tuple[int, ...]:
    """The largest square of the picture with the face as near its middle as can be, on whole pixels."""
    return tuple(map(round, square_inside(box, min(width, height), width, height)))


def write_all(records: list[Record], formats: Iterable[str], data: Path, out: Path) -> None:
    """Write the JSONL files; the pictures of `plan_cuts` are there already."""
    if "flashface" in formats:
        with atomic_file(out / FLASHFACE) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for record in records:
                row = {
                    "path": _portable(record.path, out),
                    "size": [record.width, record.height],
                    "caption": record.caption,
                    "ref": [_portable(crop_path(ref.path, data, out), out) for ref in record.ref],
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_records(out / RECORDS, records)


def _portable(path: Path, folder: Path) -> str:
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()

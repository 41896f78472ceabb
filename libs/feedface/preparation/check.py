"""`make_data.py --check`: does every record have its files, and do they say the same?"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.common.images import open_image, read_image
from feedface.data.records import Record, read_records
from feedface.faces.crop import square_box
from feedface.faces.types import LAPA_VALUES
from feedface.preparation.formats import RECORDS
from feedface.preparation.result import SINGLE, read_row

TOLERANCE_PX = 0.02  # coordinates are written with two digits
SQUARE_PX = 0.05


def check_folder(out: Path, threads: int = 4) -> int:
    """Check the records in `out` and print a line for each problem; returns how many there are.

    `UserError`: no such folder, or records.jsonl is missing or breaks the schema.
    """
    if not out.is_dir():
        raise UserError(f"--check {out}: no such folder; name one that make_data.py has written to")
    path = out / RECORDS
    kept_nothing = path.is_file() and path.stat().st_size < 100 and not path.read_bytes().strip()
    records = [] if kept_nothing else read_records(path)
    first: dict[Path, Record] = {}
    for record in records:
        first.setdefault(record.path, record)
    problems = [
        f"{record.origin}: path: {record.path} is in {first[record.path].origin} already"
        for record in records
        if first[record.path] is not record
    ]
    with ThreadPoolExecutor(threads) as pool:
        for record, found in zip(
            records, pool.map(lambda record: list(_problems(record, first)), records), strict=True
        ):
            problems += [f"{record.origin}: {problem}" for problem in found]
    recorded = {record.mask_path for record in records}
    for row in sorted(Path(out, SINGLE).absolute().rglob("*.json")):
        if row.is_file() and row.with_suffix(".png") not in recorded:
            problems.append(f"{row}: has no record")
    for problem in problems:
        print(problem)
    print(f"{len(records)} record(s) checked, {len(problems)} problem(s)")
    return len(problems)


def _problems(record: Record, records: dict[Path, Record]) -> Iterator[str]:
    """Everything that is wrong with one record; `records`: all, by their pictures."""
    where = record.origin
    try:
        height, width = read_image(record.path).shape[:2]
        if (width, height) != (record.width, record.height):
            yield f"{where}: {record.path}: is {width} x {height}, recorded as {record.width} x {record.height}"
    except UserError as error:
        yield f"{where}: path: {error}"
    yield from (f"{where}: {record.mask_path}: {problem}" for problem in _mask_problems(record))
    yield from (f"{where}: square_bbox: {problem}" for problem in _square_problems(record))
    for index, ref in enumerate(record.ref):
        if not ref.path.is_file():
            yield f"{where}: ref[{index}]: {ref.path}: no such picture"
        elif ref.path == record.path:
            yield f"{where}: ref[{index}]: is the picture itself"
        elif not _same(ref.square_bbox, records.get(ref.path, ref).square_bbox, TOLERANCE_PX):
            yield f"{where}: ref[{index}]: square_bbox is not that of the record of {ref.path}"
    yield from (f"{where}: {record.mask_path.with_suffix('.json')}: {problem}" for problem in _row_problems(record))


def _mask_problems(record: Record) -> Iterator[str]:
    if not record.mask_path.exists():
        yield "no such mask"
        return
    try:
        with open_image(record.mask_path, ("PNG",)) as image:
            image.load()
            mode, mask = image.mode, np.asarray(image)
    except UserError as error:
        yield f"not a mask that can be read ({error})"
        return
    if mode != "L":
        yield f"must be 8-bit grey, is {mode}"
    elif mask.shape != (record.height, record.width):
        yield f"is {mask.shape[1]} x {mask.shape[0]}, the picture {record.width} x {record.height}"
    elif len(strange := np.setdiff1d(mask, LAPA_VALUES)):
        yield f"value {strange[0]} is of no class"
    elif not mask.any():
        yield "is empty"


def _square_problems(record: Record) -> Iterator[str]:
    box = x0, y0, x1, y1 = record.square_bbox
    side, wanted = x1 - x0, square_box(record.bbox)
    if abs(side - (y1 - y0)) > SQUARE_PX:
        yield f"{list(box)} is not a square"
    inside = x0 >= 0 and y0 >= 0 and x1 <= record.width and y1 <= record.height
    largest = min(wanted[2] - wanted[0], record.width, record.height)
    if not _same(box, wanted, SQUARE_PX) and not (inside and abs(side - largest) <= SQUARE_PX):
        yield f"{list(box)} is not bbox x 1.1, squared, as it is or moved into the picture"


def _same(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(a, b, strict=True))


def _row_problems(record: Record) -> Iterator[str]:
    """The JSON file beside the mask."""
    row = read_row(record.mask_path.with_suffix(".json"))
    if row is None:
        yield "missing, or not the JSON file of a picture"
        return
    recorded = {
        "outcome": SINGLE,
        "img_size": [record.width, record.height],
        "bbox": list(record.bbox),
        "square_bbox": list(record.square_bbox),
        "caption": record.caption,
    }
    for key, value in recorded.items():
        if row.get(key) != value:
            yield f"{key} is {json.dumps(row.get(key))}, recorded as {json.dumps(value)}"

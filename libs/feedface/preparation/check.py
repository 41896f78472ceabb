"""`make_data.py --check`: does every record have its files, and do they say the same?"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.common.images import open_image, read_image
from feedface.data.records import Record, read_records
from feedface.data.transforms import LAPA_VALUES
from feedface.faces.crop import square_box
from feedface.preparation.formats import RECORDS
from feedface.preparation.outcome import SINGLE, read_row

TOLERANCE_PX = 0.02  # coordinates are written with two digits
SQUARE_PX = 0.05


def check_folder(out: Path, threads: int = 4) -> int:
    """Check the records in `out` and print a line for each problem; returns how many there are.

    `UserError`: no such folder, or records.jsonl is missing or breaks the schema.
    """
    if not out.is_dir():
        raise UserError(f"--check {out}: no such folder; name one that make_data.py has written to")
    path = out / RECORDS
    if path.is_file() and path.stat().st_size < 100 and not path.read_bytes().strip():
        records = []  # a run that kept nothing
    else:
        records = read_records(path)
    problems = list(_duplicates(records))
    boxes = {record.path: record.square_bbox for record in records}
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda record: list(_problems(record, out, boxes)), records):
            problems += found
    problems += _unlisted(records, out)
    for problem in problems:
        print(problem)
    print(f"{len(records)} record(s) checked, {len(problems)} problem(s)")
    return len(problems)


def _duplicates(records: Sequence[Record]) -> Iterator[str]:
    first: dict[Path, str] = {}
    for record in records:
        if record.path in first:
            yield f"{record.origin}: path: {record.path} is in {first[record.path]} already"
        first.setdefault(record.path, record.origin)


def _problems(record: Record, out: Path, boxes: dict[Path, tuple]) -> Iterator[str]:
    """Everything that is wrong with one record."""
    where, size = record.origin, (record.width, record.height)
    try:
        height, width = read_image(record.path).shape[:2]
        if (width, height) != size:
            yield f"{where}: {record.path}: is {width} x {height}, recorded as {size[0]} x {size[1]}"
    except UserError as error:
        yield f"{where}: path: {error}"
    yield from (f"{where}: {record.mask_path}: {problem}" for problem in _mask_problems(record.mask_path, size))
    yield from (f"{where}: square_bbox: {problem}" for problem in _square_problems(record))
    for index, ref in enumerate(record.ref):
        if not ref.path.is_file():
            yield f"{where}: ref[{index}]: {ref.path}: no such picture"
        elif ref.path == record.path:
            yield f"{where}: ref[{index}]: is the picture itself"
        elif not _same(ref.square_bbox, boxes.get(ref.path, ref.square_bbox), TOLERANCE_PX):
            yield f"{where}: ref[{index}]: square_bbox is not that of the record of {ref.path}"
    yield from (f"{where}: {problem}" for problem in _row_problems(record))


def _mask_problems(path: Path, size: tuple[int, int]) -> Iterator[str]:
    if not path.exists():
        yield "no such mask"
        return
    try:
        with open_image(path, ("PNG",)) as image:
            image.load()
            mode, mask = image.mode, np.asarray(image)
    except UserError as error:
        yield f"not a mask that can be read ({error})"
        return
    if mode != "L":
        yield f"must be 8-bit grey, is {mode}"
    elif mask.shape != size[::-1]:
        yield f"is {mask.shape[1]} x {mask.shape[0]}, the picture {size[0]} x {size[1]}"
    elif len(strange := np.setdiff1d(mask, LAPA_VALUES)):
        yield f"value {strange[0]} is of no class"
    elif not mask.any():
        yield "is empty"


def _square_problems(record: Record) -> Iterator[str]:
    x0, y0, x1, y1 = record.square_bbox
    side, wanted = x1 - x0, square_box(record.bbox)
    if abs(side - (y1 - y0)) > SQUARE_PX:
        yield f"{list(record.square_bbox)} is not a square"
    inside = x0 >= 0 and y0 >= 0 and x1 <= record.width and y1 <= record.height
    same = _same(record.square_bbox, wanted, SQUARE_PX)
    largest = min(wanted[2] - wanted[0], record.width, record.height)
    if not same and not (inside and abs(side - largest) <= SQUARE_PX):
        yield f"{list(record.square_bbox)} is not bbox x 1.1, squared, as it is or moved into the picture"


def _same(a: Sequence[float], b: Sequence[float], tolerance: float) -> bool:
    return all(abs(one - other) <= tolerance for one, other in zip(a, b, strict=True))


def _row_problems(record: Record) -> Iterator[str]:
    """The JSON file beside the mask."""
    path = record.mask_path.with_suffix(".json")
    row = read_row(path)
    if row is None:
        yield f"{path}: missing, or not the JSON file of a picture"
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
            yield f"{path}: {key} is {json.dumps(row.get(key))}, recorded as {json.dumps(value)}"


def _unlisted(records: Sequence[Record], out: Path) -> list[str]:
    """Singles without a record, and masks without a JSON file."""
    recorded = {record.mask_path for record in records}
    folder = Path(out, SINGLE).absolute()
    problems = []
    for path in sorted(folder.rglob("*.json")):
        if path.is_file() and path.with_suffix(".png") not in recorded:
            problems.append(f"{path}: has no record")
    return problems

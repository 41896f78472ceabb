"""Records with small random pictures, for tests of what reads them."""

from pathlib import Path

import numpy as np
from PIL import Image

from feedface.data.records import Record, RecordReference, write_records
from feedface.data.transforms import HAIR_VALUE, LAPA_VALUES


def make_records(folder: Path, people: int = 4, per_person: int = 3, size: int = 64, dense: bool = False) -> Path:
    """Write `people * per_person` pictures with masks, each listing the person's others; returns the JSONL file.

    `dense`: with poses.
    """
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    records, poses = [], np.random.default_rng(1).uniform(-20, 20, (people * per_person, 3))
    box = (16.0, 14.0, 46.0, 44.0)
    names = [f"{person}_{picture}.png" for person in range(people) for picture in range(per_person)]
    for name in names:
        coarse = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC).save(folder / "images" / name)
        mask = np.zeros((size, size), np.uint8)
        mask[8:20, 16:44] = HAIR_VALUE
        mask[20:44, 16:44] = LAPA_VALUES[1]
        Image.fromarray(mask).save(folder / "masks" / name)
        others = [n for n in names if n.split("_")[0] == name.split("_")[0] and n != name]
        records.append(
            Record(
                path=folder / "images" / name,
                caption=f"person number {int(rng.integers(3))}",
                width=size,
                height=size,
                bbox=box,
                square_bbox=box,
                mask_path=folder / "masks" / name,
                pose=tuple(map(float, poses[len(records)])) if dense else None,
                ref=tuple(RecordReference(folder / "images" / other, box) for other in others),
            )
        )
    write_records(folder / "records.jsonl", records)
    return folder / "records.jsonl"

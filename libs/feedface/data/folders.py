"""Records out of AdaFace's folders: `NAME.png` beside `NAME_mask.png`, in a folder a person, or many people's in one.

    VGGface2_HQ_masks/n000002/0001_01.png        a folder with folders: each is a person
    FFHQ_masks/00000.png                         a folder of pictures: each is somebody else

A mask is 255 where the person is and 0 elsewhere. The box of a face is that of its mask. Captions are empty: such
training has prompts of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.data.records import Record, RecordReference
from feedface.faces.crop import square_box

MASK = "_mask.png"
PICTURES = (".png", ".jpg", ".jpeg")
MOST = 20  # pictures of a person


def folder_records(folder: Path) -> list[Record]:
    """All of a folder's, in the order of their names.

    `UserError` for a folder without such pairs, a picture without a mask, and a mask of another size or of nobody.
    """
    people = sorted(path for path in folder.iterdir() if path.is_dir())
    records = list(_strangers(folder))
    for person in people:
        records += _person(person)
    if not records:
        raise UserError(f"{folder}: has no NAME.png with a NAME{MASK}, nor folders of them")
    return records


def _strangers(folder: Path) -> Iterator[Record]:
    for picture in _pictures(folder):
        yield _record(picture, f"{folder.name}/{picture.stem}")


def _person(folder: Path) -> list[Record]:
    """The first `MOST` of one person, each with the others as references."""
    alone = [_record(picture, folder.name) for picture in _pictures(folder)[:MOST]]
    references = [RecordReference(record.path, record.square_bbox) for record in alone]
    return [replace(one, ref=tuple(other for other in references if other.path != one.path)) for one in alone]


def _pictures(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.endswith(MASK))


def _record(picture: Path, identity: str) -> Record:
    mask = picture.with_name(picture.stem + MASK)
    if not mask.is_file():
        raise UserError(f"{picture}: has no {mask.name} beside it")
    shown = np.asarray(read_image(mask, convert=lambda image: np.asarray(image.convert("L")))) > 127
    try:
        with Image.open(picture) as image:
            size = image.size
    except OSError as error:
        raise UserError(f"{picture}: cannot be read as a picture ({error})") from None
    if size != shown.shape[::-1]:
        raise UserError(f"{mask}: of {shown.shape[1]} x {shown.shape[0]} px for a picture of {size[0]} x {size[1]}")
    rows, columns = (np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        raise UserError(f"{mask}: shows nobody: it has no value above 127")
    box = tuple(float(edge) for edge in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Record(picture, "", *size, box, square_box(box), mask, identity=identity, origin=str(picture))

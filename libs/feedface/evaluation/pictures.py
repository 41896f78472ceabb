"""The pictures of an evaluation on disk: each knows how it was made, so what is there is not drawn again.

`<prompt>_<sample>.png` of a case's folder, numbers from 0. A file that is missing, damaged or made otherwise (other
weights, settings, references, seed) is drawn anew in its place.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.images import open_image
from feedface.common.saving import save_png
from feedface.inference.outputs import PictureInfo

COSTS = ("seconds", "peak_memory_mib")


@dataclass(frozen=True)
class ImageRequest:
    """One picture that is wanted.

    Attributes:
        path: where it is, or will be.
        info: how it is made.
        case: number of the case among those of this process.
        prompt, sample: numbers of the prompt, and of the picture of it.
        crops: the faces shown, uint8 RGB squares; none: drawn without the face-controlnet.
    """

    path: Path
    info: PictureInfo
    case: int
    prompt: int
    sample: int
    crops: tuple[np.ndarray, ...] = ()


@dataclass(frozen=True)
class SavedImage:
    """A finished picture: uint8 RGB [H, W, 3]; its share of the time its batch took, in seconds; and the most memory,
    in MiB, that drawing it took."""

    image: np.ndarray
    seconds: float | None
    peak_memory_mib: float | None


def picture_name(prompt: int, sample: int) -> str:
    return f"{prompt:03d}_{sample:03d}.png"


def read_saved(path: Path, info: PictureInfo) -> SavedImage | None:
    """The picture at `path` if it is whole and made as `info` says; `UserError` where the folder cannot be read."""
    if os.path.lexists(path) and not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read (permission denied); name another --out")
    try:
        with open_image(path, ("PNG",)) as image:
            image.load()
            text = image.text
            if text.get("fingerprint") != info.fingerprint:
                return None
            return SavedImage(
                np.array(image.convert("RGB")), *(float(text[key]) if key in text else None for key in COSTS)
            )
    except UserError:  # Whatever is wrong with the file: it is not a finished picture.
        return None


def save(path: Path, saved: SavedImage, info: PictureInfo) -> None:
    """Write a picture with all that `read_saved` asks for, whole or not at all. `OutputError` names the file."""
    metadata = info.metadata()
    for key in COSTS:
        if getattr(saved, key) is not None:
            metadata.add_itxt(key, f"{getattr(saved, key):.6g}")
    save_png(Image.fromarray(saved.image), path, metadata)

"""Parsing masks are read as they are stored: their values are classes, not colours."""

import os

import numpy as np
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.images import read_image, upright
from feedface.data.transforms import LAPA_VALUES

KNOWN = f"{', '.join(map(str, LAPA_VALUES))}, or class numbers 0 to {len(LAPA_VALUES) - 1}"


def read_mask(path: str | os.PathLike) -> np.ndarray:
    """A mask file as uint8 [H,W] of `LAPA_VALUES`.

    It holds these values, or the numbers of the classes: as one grey channel, as equal ones, or as a palette's indices
    (but where the colours that these stand for are `LAPA_VALUES`, those count). Or it is black and white, 0 and 255, as
    AdaFace's are: then all that is white is face. `UserError`: as `read_image`; colours; any other value, named.
    """
    mask = read_image(path, convert=_as_stored)
    if mask.ndim != 2:
        raise UserError(f"{path}: a mask in colours; save it as one grey channel of values {KNOWN}")
    present = np.flatnonzero(np.bincount(mask.ravel())) if mask.dtype == np.uint8 else np.unique(mask)
    if np.array_equal(present, (0, 255)):
        return np.where(mask == 255, np.uint8(LAPA_VALUES[1]), np.uint8(0))
    numbers = tuple(range(len(LAPA_VALUES)))
    kind = max((LAPA_VALUES, numbers), key=lambda known: np.isin(present, known).sum())
    if np.isin(present, kind).all():
        return np.array(LAPA_VALUES, np.uint8)[mask.astype(np.uint8)] if kind == numbers else mask.astype(np.uint8)
    row, column = np.argwhere(~np.isin(mask, kind))[0]
    raise UserError(
        f"{path}: value {mask[row, column]} (at x {column}, y {row}) is none of a mask's, which are {KNOWN}; "
        f"JPEG and smooth resizing make such values, PNG and nearest neighbours do not"
    )


def _as_stored(image: Image.Image) -> np.ndarray:
    """[H,W], or [H,W,C] for a picture in colours."""
    image = upright(image)
    stored = np.asarray(image)
    if image.mode == "1":
        return stored.astype(np.uint8)
    if image.mode in ("P", "PA"):
        indices = stored if stored.ndim == 2 else stored[..., 0]
        return _greys(indices, image.getpalette("RGB"))
    grey = image.mode in ("LA", "La") or (image.mode in ("RGB", "RGBA") and _equal(stored[..., :3]))
    return stored[..., 0] if grey else stored


def _greys(indices: np.ndarray, palette: list[int]) -> np.ndarray:
    """What the indices stand for where that is all greys of a mask, as programs that save space write it; else they."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette) // 3] = np.array(palette, np.uint8).reshape(-1, 3)
    used = colours[np.unique(indices)]
    return colours[indices, 0] if _equal(used) and np.isin(used, LAPA_VALUES).all() else indices


def _equal(channels: np.ndarray) -> bool:
    return bool((channels[..., :1] == channels[..., 1:]).all())

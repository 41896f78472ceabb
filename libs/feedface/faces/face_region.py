"""The region of a picture that in-painting draws anew: of a face, or given as a mask; and putting it back.

Masks are grey: white is kept, black is drawn anew, as Dense-Face's are.
"""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from feedface.common.errors import UserError

KEPT = 0.75  # share of a cell that must be white for it to be kept
HAIR = 10  # as `faces.parse` numbers it
GROWN, BLURRED = 0.04, 0.03  # of a face's longer side: how far the region goes beyond the face, how softly it ends


def keep_mask(grey: np.ndarray, latent_size: Sequence[int]) -> np.ndarray:
    """A mask uint8 [H,W] on the latent's grid of (h, w): bool [h,w], whether a cell is kept."""
    small = cv2.resize(grey, (latent_size[1], latent_size[0]), interpolation=cv2.INTER_AREA)
    return small / 255 >= KEPT


def region_of(classes: np.ndarray, hair: bool = False) -> np.ndarray:
    """The mask of a parsed face, [H,W] of classes: black on it and a little around, white elsewhere.

    `hair`: drawn anew with the face. `UserError` where there is no face in it.
    """
    face = (classes > 0) & ((classes != HAIR) | hair)
    if not face.any():
        raise UserError("the parser finds no face in the base picture; give a --mask, black where the face is")
    rows, columns = np.flatnonzero(face.any(axis=1)), np.flatnonzero(face.any(axis=0))
    side = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    grown = 2 * round(GROWN * side) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (grown, grown))
    return np.where(cv2.dilate(face.astype(np.uint8), kernel) > 0, 0, 255).astype(np.uint8)


def composited(drawn: np.ndarray, base: np.ndarray, grey: np.ndarray) -> np.ndarray:
    """`drawn` where the mask is black, `base` where it is white, exactly; all [H,W,3], the mask [H,W].

    The border is blended inside the black region.
    """
    black = (grey < 255 * KEPT).astype(np.uint8)
    rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
    if not len(rows):
        return base.copy()
    width = max(1.0, BLURRED * (max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1))
    share = np.clip(cv2.distanceTransform(black, cv2.DIST_L2, 5) / width, 0, 1)[..., None]
    return np.rint(share * drawn + (1 - share) * base).astype(np.uint8)


def check_mask(grey: np.ndarray, source: object, size: tuple[int, int]) -> None:
    """`UserError` for a mask of another (width, height) than the base picture's, all white, or all black."""
    if grey.shape[::-1] != size:
        raise UserError(
            f"{source}: a mask of {grey.shape[1]}x{grey.shape[0]}, but the base picture has {size[0]}x{size[1]}"
        )
    black = grey < 255 * KEPT
    if not black.any():
        raise UserError(f"{source}: the mask is white everywhere: nothing is drawn anew; make it black on the face")
    if black.all():
        raise UserError(f"{source}: the mask is black everywhere: nothing is kept; leave out --base and --mask then")


def resized(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H,W] or [H,W,3] at (width, height), averaged where it becomes smaller."""
    if picture.shape[1::-1] == size:
        return picture
    return np.array(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))

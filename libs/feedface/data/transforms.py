"""From picture and mask files to what training sees: the centre square, its face mask, the face crops."""

import numpy as np
from PIL import Image

from feedface.faces.types import LAPA_VALUES

HAIR_VALUE = LAPA_VALUES[10]


def centre_square(width: int, height: int) -> tuple[float, float, float, float]:
    """The largest square in the middle of a picture, x0, y0, x1, y1 in pixels."""
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def centre_crop(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [H,W,3] -> uint8 [size,size,3]: short side resized (bicubic, antialiased), centre cropped."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    box = centre_square(width, height)
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=box))


def face_masks(mask: np.ndarray, size: int) -> np.ndarray:
    """LaPa mask uint8 [H,W] -> float32 [2,size,size] in 0…1 on the latent grid of the centre square.

    Row 0 leaves hair out, row 1 counts it as face. A cell holds the share of its area that is face.
    """
    height, width = mask.shape
    return face_masks_in(mask, centre_square(width, height), (size, size))


def face_masks_in(mask: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """The same of what is in `box`, on a grid of `size` (columns, rows): [2,rows,columns]."""
    face = np.stack([(mask > 0) & (mask != HAIR_VALUE), mask > 0])
    # Averaging by Pillow's box filter in float: exact shares also where cells do not fall on whole pixels.
    shares = [Image.fromarray(m.astype(np.float32)).resize(size, Image.Resampling.BOX, box=box) for m in face]
    return np.stack([np.asarray(share) for share in shares])

"""The square face crop every part of FeedFace uses: box x 1.1, squared on its longer side, padded at the borders."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

EXPAND = 1.1
TILT = 30.0  # degrees between the line of the eyes and the horizontal


def square_box(bbox: Sequence[float], expand: float = EXPAND) -> tuple[float, float, float, float]:
    """Expand a face box about its centre and square it on its longer side (FeedFace, section 2).

    Args:
        bbox: x0, y0, x1, y1 in pixels, x to the right, y down; x1 > x0 and y1 > y0.
        expand: factor on the longer side.

    Returns:
        x0, y0, x1, y1 of a square in pixels; it may reach past the picture, see `crop_square`.

    Raises:
        ValueError: the box is not four finite numbers with a positive width and height.
    """
    x0, y0, x1, y1 = _checked_box(bbox)
    half = expand * max(x1 - x0, y1 - y0) / 2
    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
    return center_x - half, center_y - half, center_x + half, center_y + half


def crop_square(image: np.ndarray, box: Sequence[float], size: int | None = None) -> np.ndarray:
    """Cut a square out of a picture; what lies outside the picture repeats its nearest edge pixel.

    Args:
        image: uint8 [H, W, 3] RGB, or [H, W] (a mask: then resizing takes the nearest value).
        box: x0, y0, x1, y1 in pixels, as from `square_box`; the longer side counts.
        size: side of the result in pixels; None keeps the box's own, rounded, at least 1.

    Returns:
        uint8 [S, S, 3] or [S, S]; never empty, wherever the box lies.
    """
    x0, y0, x1, y1 = _checked_box(box)
    side = max(1, round(max(x1 - x0, y1 - y0)))
    left, top = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
    height, width = image.shape[:2]
    # Clipped indices repeat the border, also for a box that lies wholly outside.
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    crop = image[rows[:, None], columns]
    if size is None or size == side:
        return crop
    resample = Image.Resampling.NEAREST if image.ndim == 2 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(crop).resize((size, size), resample))


def crop_upright(image: np.ndarray, box: Sequence[float], landmarks: np.ndarray | None) -> np.ndarray:
    """`crop_square` at `square_box` of a face, turned upright where the head is tilted by more than `TILT`.

    Args:
        image: uint8 [H, W, 3] RGB.
        box: x0, y0, x1, y1 in pixels.
        landmarks: [5, 2] in insightface's order, or None.
    """
    square = square_box(box)
    if landmarks is None:
        return crop_square(image, square)
    right, down = landmarks[1] - landmarks[0]  # from eye to eye
    tilt = float(np.degrees(np.arctan2(down, right)))
    if abs(tilt) <= TILT:
        return crop_square(image, square)
    import cv2

    x0, y0, x1, y1 = square
    side = max(1, round(x1 - x0))
    matrix = cv2.getRotationMatrix2D(((x0 + x1) / 2, (y0 + y1) / 2), tilt, 1)
    matrix[:, 2] += (side - x0 - x1) / 2, (side - y0 - y1) / 2
    return cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE)


def _checked_box(box: Sequence[float]) -> tuple[float, float, float, float]:
    values = [float(value) for value in box]
    if len(values) != 4 or not np.isfinite(values).all() or values[2] <= values[0] or values[3] <= values[1]:
        raise ValueError(f"not a box of x0, y0, x1, y1 with x1 > x0 and y1 > y0: {values}")
    return values[0], values[1], values[2], values[3]

"""Pictures of several aspect ratios: a few sizes of about the same area, and each picture at that nearest to its own.

Sizes are (width, height) in pixels. Source: NovelAI 2022, "NovelAI Improvements on Stable Diffusion", aspect ratio
bucketing; the numbers are those of the open FlashFace.
"""

import numpy as np
from PIL import Image

Size = tuple[int, int]
FAR = 0.5  # a picture whose aspect ratio differs from the nearest by so much or more is left out


def bucket_sizes(base: int = 512, low: int = 256, high: int = 768, step: int = 64) -> list[Size]:
    """For each side from `low` to `high` the longest other side, of at most `base` x `high` pixels; and the square."""
    most = base * high
    tall = {(side, min(high, most // side // step * step)) for side in range(low, high + 1, step)}
    return sorted(tall | {(height, width) for width, height in tall} | {(base, base)})


def bucket_of(size: Size, sizes: list[Size]) -> Size | None:
    """The one of nearest aspect ratio; None for a picture that is far from all."""
    aspect = size[0] / size[1]
    nearest = min(sizes, key=lambda other: abs(aspect - other[0] / other[1]))
    return nearest if abs(aspect - nearest[0] / nearest[1]) < FAR else None


def covering_crop(image: np.ndarray, size: Size, offset: Size = (0, 0)) -> np.ndarray:
    """uint8 RGB [H,W,3] -> [height,width,3] of `size`: resized to cover it (Lanczos), cut at `offset` (x, y)."""
    height, width = image.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    resized = Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    return np.array(resized.crop((*offset, offset[0] + size[0], offset[1] + size[1])))

"""Pictures of several aspect ratios: a few sizes of about the same area, and each picture at that nearest to its own.

`Buckets` deals them so that all pictures of a step have one size. Sizes are (width, height) in pixels.
Source: NovelAI 2022, "NovelAI Improvements on Stable Diffusion", aspect ratio bucketing; the numbers are those of the
open FlashFace.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from PIL import Image

from feedface.common.errors import UserError

Size = tuple[int, int]
_DEAL = 4  # first of the generators' seeds, as in `draws`
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


def covering(size: Size, of: Size) -> Size:
    """The picture size that covers `size`, with the aspect ratio of a picture `of` that size."""
    scale = max(size[0] / of[0], size[1] / of[1])
    return round(of[0] * scale), round(of[1] * scale)


def offset_of(whole: Size, size: Size, place: tuple[float, float]) -> Size:
    """Where `size` is cut out of `whole`, (x, y), by two numbers in 0 … 1, below 1."""
    return tuple(int(share * (full - side + 1)) for share, full, side in zip(place, whole, size, strict=True))


def covering_crop(image: np.ndarray, size: Size, offset: Size = (0, 0)) -> np.ndarray:
    """uint8 RGB [H,W,3] -> [height,width,3] of `size`: resized to cover it (Lanczos), cut at `offset` (x, y)."""
    height, width = image.shape[:2]
    resized = Image.fromarray(image).resize(covering(size, (width, height)), Image.Resampling.LANCZOS)
    return np.array(resized.crop((*offset, offset[0] + size[0], offset[1] + size[1])))


def covering_box(of: Size, size: Size, offset: Size) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of that cut, in pixels of the picture as it was."""
    whole = covering(size, of)
    across, down = of[0] / whole[0], of[1] / whole[1]
    return offset[0] * across, offset[1] * down, (offset[0] + size[0]) * across, (offset[1] + size[1]) * down


class Buckets:
    """Which picture each sample is, and at which size: a step's pictures have one size, whoever computes it.

    An epoch takes every picture once, in an order of its own: those of a size fill whole steps; the rest of all sizes
    fills steps of the square size, and what is too few for a step waits for the next epoch. Pictures that are far from
    all sizes, or no larger than the smallest side, are in none.

    Args:
        pictures: their sizes, by row: [N,2].
        step: samples of a step, of all processes together.
        base: side of the square; `multiple`: what all sides are a multiple of.
    """

    def __init__(self, seed: int, pictures: Sequence[Size], step: int, base: int = 512, multiple: int = 64):
        grain = -(-base // 8 // multiple) * multiple
        low = -(-base // 2 // grain) * grain
        self.seed, self.step, self.base = seed, step, (base, base)
        self.sizes = bucket_sizes(base, low, base * 3 // 2 // grain * grain, grain)
        different, which = np.unique(np.asarray(pictures).reshape(-1, 2), axis=0, return_inverse=True)
        found = [bucket_of(size, self.sizes) if max(size) > low else None for size in map(tuple, different.tolist())]
        number = np.array([-1 if size is None else self.sizes.index(size) for size in found], dtype=np.int64)[which]
        self.rows = np.flatnonzero(number >= 0)
        self._by_size = {size: np.flatnonzero(number == one) for one, size in enumerate(self.sizes)}
        self.left_out = len(pictures) - len(self.rows)
        if len(self.rows) < step:
            raise UserError(
                f"config.data.buckets: {len(self.rows)} of {len(pictures)} pictures are larger than {low} px and fit a "
                f"size, fewer than the {step} of a step; use a smaller config.train.batch_size, or other pictures"
            )
        self._epoch = lru_cache(maxsize=2)(self._deal)

    def __len__(self) -> int:
        """Samples of an epoch."""
        return len(self.rows) // self.step * self.step

    def __getitem__(self, sample: int) -> tuple[int, Size]:
        """Row and size of sample number `sample`."""
        epoch, place = divmod(sample, len(self))
        rows, size = self._epoch(epoch)[place // self.step]
        return int(rows[place % self.step]), size

    def _deal(self, epoch: int) -> list[tuple[np.ndarray, Size]]:
        """The steps of an epoch: rows, and their size."""
        rng = np.random.default_rng([_DEAL, self.seed, epoch, 0])
        steps, rest = [], []
        for size, rows in self._by_size.items():
            rows = rng.permutation(rows)
            whole = len(rows) // self.step * self.step
            steps += [(part, size) for part in rows[:whole].reshape(-1, self.step)]
            rest.append(rows[whole:])
        rest = rng.permutation(np.concatenate(rest))
        whole = len(rest) // self.step * self.step
        steps += [(part, self.base) for part in rest[:whole].reshape(-1, self.step)]
        return [steps[number] for number in rng.permutation(len(steps))]

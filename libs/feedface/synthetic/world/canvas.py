"""The picture being painted: soft-edged layers over one another, and the label map that goes with them.

Shape letters: N portraits, H and W pixels of the (supersampled) canvas. A per-portrait number is [N]; `col` makes it
[N, 1, 1] so that it meets an [N, H, W] map.
"""

import torch
from torch import Tensor

# LaPa classes, as facer and the release number them. "Right" is the person's right: the picture's left.
(BACKGROUND, SKIN, RIGHT_BROW, LEFT_BROW, RIGHT_EYE, LEFT_EYE, NOSE, UPPER_LIP, INNER_MOUTH, LOWER_LIP, HAIR) = range(
    11
)


def col(value: Tensor) -> Tensor:
    """[N] -> [N, 1, 1]."""
    return value[:, None, None]


def smoothstep(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, a smooth cubic between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


class Canvas:
    """`rgb` [N, 3, H, W] float in [0, 1] and `labels` [N, H, W] uint8 LaPa classes, painted back to front."""

    def __init__(self, count: int, size: int):
        self.pixel = 2.0 / size  # side of a pixel; the picture spans [-1, 1] in both directions, y downwards
        axis = (torch.arange(size) + 0.5) * self.pixel - 1
        self.x = axis[None, None, :].expand(count, size, size)
        self.y = axis[None, :, None].expand(count, size, size)
        self.rgb = torch.zeros(count, 3, size, size)
        self.labels = torch.zeros(count, size, size, dtype=torch.uint8)

    def inside(self, distance: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        """Coverage in [0, 1] of a shape from its signed distance (negative inside) in units of `scale`."""
        scale = scale[:, None, None] if isinstance(scale, Tensor) else scale
        return (0.5 - distance * scale / self.pixel).clamp(0, 1)

    def paint(self, colour: Tensor, coverage: Tensor, label: int | None = None) -> None:
        """Lay `colour` ([N, 3] or [N, 3, H, W]) over the picture with [N, H, W] coverage; label where it is > 1/2."""
        colour = colour[:, :, None, None] if colour.ndim == 2 else colour
        self.rgb = torch.lerp(self.rgb, colour.expand_as(self.rgb), coverage[:, None])
        if label is not None:
            self.labels = torch.where(coverage > 0.5, label, self.labels)

    def shade(self, factor: Tensor, coverage: Tensor | None = None) -> None:
        """Multiply the picture by [N, H, W] `factor`, only as far as `coverage` goes."""
        if coverage is not None:
            factor = 1 + (factor - 1) * coverage
        self.rgb = self.rgb * factor[:, None]

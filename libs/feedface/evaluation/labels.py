"""Names beside the points of a plot, where they cover neither each other nor the points, whiskers and lines.

Boxes are [x0, y0, x1, y1] in pixels, y upwards, as matplotlib counts them.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

# Directions from a point, the ones that read best first, and distances in points.
DIRECTIONS = [(1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (0, 1), (-1, 0), (0, -1)]
DISTANCES_PT = (5, 12, 22, 34, 48, 64)
MARKER_PX, LINE_PX = 9.0, 3.0  # half the side of a point's box; half the width of a whisker's or line's
SWEEPS = 4
INK = 0.65  # names have the colour of their points, this much darker: light colours make poor letters


def place_labels(
    figure,
    axes,
    names: Mapping[str, str],
    numbers: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]],
    colours: Mapping[str, str],
    lines: Sequence[Sequence[str]] = (),
) -> None:
    """Write `names` (key -> text) beside the points of `axes`.

    numbers: key -> ((x, low, high), (y, low, high)) in the units of the axes; lines: keys joined in their order.
    A name that had to go far from its point is joined to it by a thin line.
    """
    from matplotlib.colors import to_rgb

    if not names:
        return
    figure.draw_without_rendering()  # the layout engine has then given the axes their place
    figure.set_layout_engine("none")
    to_px = axes.transData.transform
    centres = np.array([to_px((x[0], y[0])) for x, y in (numbers[key] for key in names)])
    obstacles = np.concatenate([_boxes(numbers[key], to_px) for key in names])
    for line in lines:
        corners = [to_px((numbers[key][0][0], numbers[key][1][0])) for key in line]
        for start, end in pairwise(corners):
            along = np.linspace(0, 1, max(2, int(np.hypot(*(end - start)) / LINE_PX)))[:, None]
            middle = start + along * (end - start)
            obstacles = np.concatenate([obstacles, np.hstack([middle - LINE_PX, middle + LINE_PX])])
    dark = {key: np.array(to_rgb(colours[key])) * INK for key in names}
    texts = [axes.text(0, 0, text, fontsize=9, color=dark[key], ha="left", va="bottom", zorder=5)
             for key, text in names.items()]  # fmt: skip
    renderer = figure.canvas.get_renderer()
    sizes = np.array([[box.width, box.height] for box in (text.get_window_extent(renderer) for text in texts)])
    pixel = figure.dpi / 72
    room = np.array(axes.bbox.extents)
    placed, chosen = best_boxes(centres, sizes, obstacles, room, np.array(DISTANCES_PT) * pixel)
    back = axes.transData.inverted().transform
    for text, box, centre, (key, _), far in zip(texts, placed, centres, names.items(), chosen, strict=True):
        text.set_position(back(box[:2]))
        if far:
            nearest = np.clip(centre, box[:2], box[2:])
            axes.plot(*np.array([back(centre), back(nearest)]).T, color=dark[key], linewidth=0.8,
                      scalex=False, scaley=False, zorder=1)  # fmt: skip


def best_boxes(
    centres: np.ndarray, sizes: np.ndarray, obstacles: np.ndarray, room: np.ndarray, distances: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [N, 4] of `sizes` [N, 2] around `centres` [N, 2], inside `room` [4], and which are far from theirs [N].

    Greedy, then every label once more with the others where they are, until nothing moves.
    """
    offers = [_offers(centre, size, distances) for centre, size in zip(centres, sizes, strict=True)]
    steps = np.repeat(np.arange(len(distances)), len(DIRECTIONS))
    preference = np.tile(np.arange(len(DIRECTIONS)), len(distances))
    fixed = []
    for boxes, size in zip(offers, sizes, strict=True):
        outside = np.prod(size) - _overlap(boxes, room[None])[:, 0]
        fixed.append(4 * outside + _overlap(boxes, obstacles).sum(axis=1) + 12 * steps + preference)
    choice: list[int | None] = [None] * len(offers)
    for _ in range(SWEEPS):
        before = list(choice)
        for index, boxes in enumerate(offers):
            others = [offers[other][choice[other]] for other in range(len(offers))
                      if other != index and choice[other] is not None]  # fmt: skip
            cost = fixed[index]
            if others:
                cost = cost + 6 * _overlap(boxes, np.array(others)).sum(axis=1)
            choice[index] = int(cost.argmin())
        if choice == before:
            break
    placed = np.array([boxes[index] for boxes, index in zip(offers, choice, strict=True)])
    return placed, steps[choice] > 1


def _offers(centre: np.ndarray, size: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """[distances x directions, 4]: the box's nearest corner or edge is that far from the point."""
    boxes = []
    for distance in distances:
        for direction in DIRECTIONS:
            # Diagonals are shorter sideways than straight ones: the same distance to the eye.
            away = np.array(direction) * (distance if 0 in direction else 0.75 * distance)
            corner = centre + away - size * (1 - np.array(direction)) / 2
            boxes.append([*corner, *(corner + size)])
    return np.array(boxes)


def _boxes(point: tuple[tuple[float, float, float], tuple[float, float, float]], to_px) -> np.ndarray:
    """[3, 4]: the marker, the whisker along x, the whisker along y."""
    (x, left, right), (y, low, high) = point
    centre = to_px((x, y))
    across, up = to_px([(left, y), (right, y)]), to_px([(x, low), (x, high)])
    return np.array(
        [
            [*(centre - MARKER_PX), *(centre + MARKER_PX)],
            [across[0, 0], centre[1] - LINE_PX, across[1, 0], centre[1] + LINE_PX],
            [centre[0] - LINE_PX, up[0, 1], centre[0] + LINE_PX, up[1, 1]],
        ]
    )


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Shared areas [N, M] of boxes [N, 4] and [M, 4]."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(0).prod(axis=-1)

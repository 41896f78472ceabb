"""Plots with intervals: sizes, what is drawn of what was measured, names that cover nothing."""

import warnings

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from research.plots import bars, curves

from feedface.evaluation.labels import best_boxes
from feedface.evaluation.metrics import Figure
from feedface.evaluation.plots import COLOURS, DPI, SIZE_IN, scatter


def exactly(value: float) -> Figure:
    return Figure(value, value, value)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def pixels_of(path, number: int) -> np.ndarray:
    """bool [H, W]: where the picture has colour `number` of the palette."""
    colour = np.round(np.array(to_rgb(COLOURS[number])) * 255)
    return (np.abs(pixels(path) - colour) <= 2).all(axis=-1)


def height_of(mask: np.ndarray) -> int:
    rows = np.flatnonzero(mask.any(axis=1))
    return rows[-1] - rows[0] + 1


def frame(low: float, high: float) -> list:
    """Points that hold the limits of an axis, whatever else is drawn."""
    return [(0.0, exactly(low)), (1.0, exactly(high))]


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # missing letters, a layout that does not fit
        yield


def test_every_plot_is_a_picture_of_the_agreed_size_and_the_same_each_time(tmp_path):
    for number, draw in enumerate(
        (
            lambda path: curves(path, {"a": frame(0, 1), "_b $x_1$": frame(1, 0)}, "x", "y"),
            lambda path: bars(path, {"group": {"a": Figure(1, 0.5, 1.5), "_b $x_1$": None}}, "y"),
            lambda path: scatter(path, {"_b $x_1$": (exactly(1), Figure(1, 0, 2))}, "x", "y"),
        )
    ):
        first, second = tmp_path / f"{number}.png", tmp_path / f"{number}_again.png"
        draw(first), draw(second)
        assert pixels(first).shape[1::-1] == tuple(int(side * DPI) for side in SIZE_IN)
        assert first.read_bytes() == second.read_bytes()


def test_intervals_of_a_curve_are_as_long_as_they_are(tmp_path):
    heights = []
    for half in (0.1, 0.2, 0.4):
        path = tmp_path / "curve.png"
        curves(path, {"frame": frame(0, 1), "one": [(0.5, Figure(0.5, 0.5 - half, 0.5 + half))]}, "x", "y")
        heights.append(height_of(pixels_of(path, 1)[:430]))  # without the legend
    assert heights[1] == pytest.approx(2 * heights[0], abs=4) and heights[2] == pytest.approx(4 * heights[0], abs=8)


def test_an_interval_shows_in_a_scatter_in_both_directions(tmp_path):
    path = tmp_path / "scatter.png"
    ends = {"low": (exactly(0), exactly(0)), "high": (exactly(1), exactly(1))}
    scatter(path, ends | {"": (Figure(0.5, 0.1, 0.9), Figure(0.5, 0.4, 0.6))}, "x", "y")
    drawn = pixels_of(path, 2)
    assert height_of(drawn.T) > 3 * height_of(drawn)


def test_what_was_not_measured_is_not_drawn(tmp_path):
    path, nan = tmp_path / "plot.png", Figure(np.nan, np.nan, np.nan)
    bars(path, {"g": {"a": Figure(1, 0.5, 1.5), "b": None, "c": nan}, "h": {"a": None, "b": None, "c": None}}, "y")
    mixed = [height_of(pixels_of(path, number)) if pixels_of(path, number).any() else 0 for number in range(3)]
    assert mixed[1:] == [0, 0]
    scatter(path, {"a": (None, exactly(1)), "b": (exactly(1), nan)}, "x", "y")
    assert not any(pixels_of(path, number).any() for number in range(2))
    curves(path, {"a": [(1, None), (2, nan)], "b": []}, "x", "y", logx=True)
    assert not any(pixels_of(path, number).any() for number in range(2))
    curves(path, {"a": [(1, None)], "b": [(1, exactly(1))]}, "x", "y")
    assert pixels_of(path, 0).any() and not pixels_of(path, 1).any(), "the first series that is there is the first"


def test_zero_has_a_place_on_a_logarithmic_axis(tmp_path):
    path = tmp_path / "curve.png"
    curves(path, {"a": [(x, exactly(1)) for x in (0, 1000, 10_000, 100_000)]}, "samples", "y", logx=True)
    columns = np.flatnonzero(pixels_of(path, 0)[:540].sum(axis=0) >= 8)  # markers stand out of the line
    places = np.array([part.mean() for part in np.split(columns, np.flatnonzero(np.diff(columns) > 5) + 1)])
    assert len(places) == 4
    assert np.diff(places)[1:] == pytest.approx([np.diff(places)[1]] * 2, abs=4), "decades are equally wide"


def test_lines_join_what_they_are_asked_to(tmp_path):
    path = tmp_path / "scatter.png"
    points = {str(number): (exactly(number % 2), exactly(number)) for number in range(4)}

    def share_drawn(connect) -> float:
        scatter(path, points, "x", "y", connect=connect)
        return float((pixels(path).mean(axis=-1) < 200).mean())

    alone, chains, one = share_drawn(False), share_drawn([["0", "1"], ["2", "3"]]), share_drawn(True)
    assert alone < chains < one


def test_a_label_stands_at_the_upper_right_and_leaves_only_what_would_be_covered():
    centre, size, room = np.array([[100.0, 100.0]]), np.array([[20.0, 10.0]]), np.array([0, 0, 200, 200])
    distances = np.array([8.0, 20.0, 40.0])
    boxes, far = best_boxes(centre, size, np.zeros((0, 4)), room, distances)
    assert boxes.tolist() == [[106, 106, 126, 116]] and not far[0]
    boxes, far = best_boxes(centre, size, np.array([[75.0, 75, 125, 125]]), room, distances)
    assert boxes.tolist() == [[130, 130, 150, 140]] and far[0]


def test_labels_of_a_crowd_do_not_cover_each_other_nor_points_and_stay_inside():
    centres = np.array([[150.0, 100.0], [154, 101], [150, 106], [156, 97], [148, 99], [290, 190], [5, 5]])
    sizes = np.tile([40.0, 12.0], (len(centres), 1))
    room = np.array([0, 0, 300, 200])
    points = np.hstack([centres - 3, centres + 3])
    boxes, _ = best_boxes(centres, sizes, points, room, np.array([6.0, 12, 24, 36, 48, 60]))
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= room[2:]).all()

    def shared(others: np.ndarray) -> np.ndarray:
        high, low = np.minimum(boxes[:, None, 2:], others[:, 2:]), np.maximum(boxes[:, None, :2], others[:, :2])
        return (high - low).clip(0).prod(axis=-1)

    assert not np.triu(shared(boxes), 1).any()
    assert shared(points).max() < 4, "square pixels: the corner of a marker at most"

"""The square crop: its geometry, its padding, and that it is never empty."""

import numpy as np
import pytest

from feedface.faces.crop import crop_square, square_box


@pytest.fixture
def ramp():
    """A picture whose red counts columns and whose green counts rows."""
    rows, columns = np.mgrid[0:40, 0:60].astype(np.uint8)
    return np.stack([columns, rows, np.zeros_like(rows)], -1)


def test_box_is_expanded_about_its_centre_and_squared_on_the_longer_side():
    assert square_box((10, 20, 30, 60)) == pytest.approx((-2, 18, 42, 62))
    assert square_box((10, 20, 30, 60), expand=1.0) == pytest.approx((0, 20, 40, 60))


@pytest.mark.parametrize("box", [(0, 0, 0, 10), (0, 10, 10, 0), (0, 0, float("nan"), 1), (0, 0, 1)])
def test_an_impossible_box_is_refused(box):
    with pytest.raises(ValueError, match="not a box"):
        square_box(box)


def test_inside_the_picture_it_is_a_plain_cut(ramp):
    np.testing.assert_array_equal(crop_square(ramp, (5, 10, 25, 30)), ramp[10:30, 5:25])


def test_outside_the_picture_the_nearest_edge_pixel_repeats(ramp):
    crop = crop_square(ramp, (-10, 30, 10, 50))
    assert crop.shape == (20, 20, 3)
    np.testing.assert_array_equal(crop[0, :, 0], [0] * 10 + list(range(10)))
    np.testing.assert_array_equal(crop[:, 0, 1], list(range(30, 40)) + [39] * 10)


@pytest.mark.parametrize(
    "box", [(500, 500, 520, 520), (-90, -90, -80, -80), (10.2, 10.2, 10.3, 10.3), (0, 0, 300, 300)]
)
def test_it_is_never_empty_wherever_the_box_lies(ramp, box):
    crop = crop_square(ramp, box)
    assert crop.shape[0] == crop.shape[1] == max(1, round(box[2] - box[0]))
    assert crop_square(ramp, box, size=16).shape == (16, 16, 3)


def test_a_mask_keeps_its_class_values_when_resized(ramp):
    mask = np.where(ramp[..., 0] < 30, 23, 231).astype(np.uint8)
    crop = crop_square(mask, (10, 0, 50, 40), size=17)
    assert crop.shape == (17, 17)
    assert set(np.unique(crop)) == {23, 231}

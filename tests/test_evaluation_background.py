"""What a face changes in the rest of a picture, on pairs whose answer is known and on the committed mini models."""

from pathlib import Path

import numpy as np
import pytest

from feedface.evaluation.background import background_changes, face_masks, masks_of_faces
from feedface.faces.detect import Face, InsightFaceDetector
from feedface.faces.parse import MiniParser
from feedface.synthetic.world import make_portraits

MINI = Path(__file__).parents[1] / "models/mini"


def background_change(with_face, without_face, mask_a, mask_b, clip=None):
    return background_changes([with_face], [without_face], [mask_a], [mask_b], clip)[0]


def picture(size: int = 12) -> np.ndarray:
    return np.random.default_rng(0).integers(50, 150, (size, size, 3), dtype=np.uint8)


def square(size: int, start: int, stop: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start:stop, start:stop] = True
    return mask


class MeanColour:
    """Stands for CLIP: the direction of a picture's mean colour. Remembers what it saw."""

    def images(self, pictures):
        self.seen = np.stack(pictures)
        means = self.seen.reshape(len(pictures), -1, 3).mean(1)
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def test_the_same_picture_has_not_changed():
    mask = square(12, 4, 8)
    change = background_change(picture(), picture(), mask, mask, MeanColour())
    assert change == {"background_pixels": 0.0, "background_clip": 0.0}


def test_a_change_inside_the_masks_and_one_pixel_around_them_does_not_count():
    changed = picture()
    changed[3:9, 3:9] = 255
    change = background_change(changed, picture(), square(12, 4, 8), square(12, 5, 6), MeanColour())
    assert change == {"background_pixels": 0.0, "background_clip": 0.0}
    # One pixel further it does: 28 of the 108 pixels outside, by 51 of 255 in every colour.
    changed[2:10, 2:10] = picture()[2:10, 2:10] + 51
    change = background_change(changed, picture(), square(12, 4, 8), square(12, 5, 6))
    assert change == {"background_pixels": pytest.approx(28 / 108 * 51 / 255)}


def test_both_masks_count():
    changed = picture()
    changed[:4, :4] = 0  # in the one mask
    changed[8:, 8:] = 255  # in the other
    pair = (square(12, 0, 4), square(12, 8, 12))
    assert background_change(changed, picture(), *pair)["background_pixels"] == 0
    assert background_change(changed, picture(), pair[0], pair[0])["background_pixels"] > 0.01


@pytest.mark.parametrize("step", (40, -40))
def test_a_change_of_known_size_outside_is_that_number(step):
    change = background_change(
        (picture() + np.int16(step)).astype(np.uint8), picture(), square(12, 4, 8), square(12, 4, 8)
    )
    assert change["background_pixels"] == pytest.approx(40 / 255)


def test_one_colour_that_is_swapped_for_another_counts_by_its_channels():
    red, blue = np.zeros((2, 12, 12, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    mask = square(12, 4, 8)
    assert background_change(red, blue, mask, mask)["background_pixels"] == pytest.approx(2 / 3)


def test_clip_sees_both_pictures_with_both_faces_painted_grey():
    red, blue = np.zeros((2, 12, 12, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    clip = MeanColour()
    change = background_change(red, blue, square(12, 0, 3), square(12, 1, 5), clip)
    assert clip.seen.shape == (2, 12, 12, 3)
    assert (clip.seen[:, :4, :4] == 128).all() and (clip.seen[:, 1:6, 1:6] == 128).all()
    assert (clip.seen[0, 7:, 7:] == red[7:, 7:]).all() and (clip.seen[1, 7:, 7:] == blue[7:, 7:]).all()
    a, b = clip.seen.reshape(2, -1, 3).mean(1)
    assert change["background_clip"] == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert 0.1 < change["background_clip"] < 1


def test_without_a_mask_or_with_nothing_left_outside_there_is_no_figure():
    mask = square(12, 4, 8)
    pairs = [
        (mask, mask),
        (None, mask),
        (mask, None),
        (None, None),
        (square(12, 0, 12), mask),
        (square(12, 1, 11),) * 2,
    ]
    clip = MeanColour()
    changes = background_changes([picture() + 10] * 6, [picture()] * 6, *zip(*pairs, strict=True), clip)
    assert [change is not None for change in changes] == [True, False, False, False, False, False]
    assert len(clip.seen) == 2  # nothing else is worth embedding
    assert background_changes([picture()], [picture()], [None], [None], clip) == [None]


def test_pairs_are_kept_apart():
    mask = square(12, 4, 8)
    brighter = [picture() + step for step in (0, 10, 20, 30)]
    changes = background_changes(brighter, [picture()] * 4, [mask] * 4, [mask, None, mask, mask], MeanColour())
    assert [change and round(change["background_pixels"] * 255, 6) for change in changes] == [0, None, 20, 30]
    assert changes[0]["background_clip"] == 0 and changes[3]["background_clip"] > 0


def test_pictures_and_masks_of_another_size_are_refused():
    mask = square(12, 4, 8)
    with pytest.raises(ValueError, match="cannot be compared"):
        background_change(picture(), picture(16), mask, mask)
    with pytest.raises(ValueError, match="does not belong"):
        background_change(picture(), picture(), mask, square(16, 4, 8))


class NoFaceInTheParser:
    name = "blind"

    def parse_many(self, pictures):
        return [[np.zeros(image.shape[:2], np.uint8) for _ in faces] for image, faces in pictures]


def test_a_face_that_the_parser_does_not_see_has_no_mask():
    face = Face(np.array([2, 2, 9, 9], np.float32), 1.0)
    assert masks_of_faces([picture(), picture()], [face, None], NoFaceInTheParser()) == [None, None]


def test_the_mini_models_mask_faces_and_hair_and_leave_the_background():
    portraits = make_portraits(np.arange(30_000, 30_012), np.zeros(12, int))
    grey = np.full((40, 64, 3), 127, np.uint8)
    detector, parser = InsightFaceDetector("mini", MINI / "faces", threads=1), MiniParser(MINI / "parser")
    masks = face_masks([*portraits.images, grey], detector, parser)
    assert masks[-1] is None  # of another size, too
    overlap = [
        (mask & (truth > 0)).sum() / (mask | (truth > 0)).sum()
        for mask, truth in zip(masks[:-1], portraits.masks, strict=True)
    ]
    assert np.mean(overlap) > 0.85

    # A new background, the same face: everything outside the face has changed, and nothing but that is measured.
    image, mask = portraits.images[0], masks[0]
    outside = np.where(mask[..., None], image, 255 - image)
    assert background_change(outside, image, mask, mask)["background_pixels"] == pytest.approx(
        np.abs(255 - 2.0 * image[~dilated(mask)]).mean() / 255
    )
    inside = np.where(mask[..., None], 255 - image, image)
    assert background_change(inside, image, mask, mask)["background_pixels"] == 0


def dilated(mask: np.ndarray) -> np.ndarray:
    """By hand: a pixel counts where it or one of its eight neighbours does."""
    wide = np.pad(mask, 1)
    return np.any([wide[y : y + mask.shape[0], x : x + mask.shape[1]] for y in range(3) for x in range(3)], axis=0)

"""Measures of a face against the renderer's truth, and thresholds that reject by them."""

import cv2
import numpy as np
import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.faces.pose import HEAD, head_pose
from feedface.preparation.filters import Thresholds, blur, measure, reject
from feedface.synthetic.world import make_portraits

MEASURES = {"scores": 0.8, "face_px": 41.0, "blur": 20.5, "yaw": -33.0, "pitch": 4.0, "roll": 12.0}


@pytest.fixture(scope="module")
def portraits():
    people = np.repeat(np.arange(500_000, 500_016), 3)
    return make_portraits(people, np.tile(np.arange(3), 16), size=128, framing="wide")


def turned_head(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """Weak-perspective picture [5, 2] of the mean head, turned; angles in degrees."""
    a, b, c = np.radians([yaw, pitch, roll])
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    nod = np.array([[1, 0, 0], [0, np.cos(b), np.sin(b)], [0, -np.sin(b), np.cos(b)]])
    tilt = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return (HEAD @ (tilt @ nod @ turn).T)[:, :2] * 40 + [200, 100]


@pytest.mark.parametrize("pose", [(0, 0, 0), (40, 0, 0), (-25, 0, 0), (0, 20, 0), (0, -15, 0), (0, 0, 30), (-60, 0, 0)])
def test_pose_of_the_model_itself_is_exact(pose):
    assert head_pose(turned_head(*pose)) == pytest.approx(pose, abs=1e-6)


def test_pose_of_a_head_turned_every_way():
    yaw, pitch, roll = head_pose(turned_head(30, -10, 15))
    assert (yaw, pitch) == pytest.approx((30, -10), abs=1e-6)
    assert roll == pytest.approx(15, abs=6)  # the line through the eyes tilts with yaw and pitch, too


def test_pose_against_the_renderer(portraits):
    errors = np.abs([head_pose(points) for points in portraits.landmarks] - portraits.pose).mean(0)
    assert errors[0] < 2 and errors[2] < 2.5  # pitch: the portraits' noses differ too much, see `head_pose`
    straight = np.abs(portraits.pose).max(1) < 9
    assert abs(np.median([head_pose(points)[1] for points in portraits.landmarks[straight]])) < 10


def test_pose_of_landmarks_in_one_point_is_finite():
    assert np.isfinite(head_pose(np.full((5, 2), 7.0))).all()


def test_size_is_the_shorter_side_of_the_box(portraits):
    box = portraits.boxes[0]
    assert measure(portraits.images[0], box, None)["face_px"] == pytest.approx(min(box[2:] - box[:2]), abs=0.01)


def test_blur_falls_as_the_picture_is_blurred(portraits):
    for image, box in zip(portraits.images[:20], portraits.boxes[:20], strict=True):
        steps = [blur(cv2.GaussianBlur(image, (0, 0), sigma) if sigma else image, box) for sigma in (0, 1, 2, 4)]
        assert steps == sorted(steps, reverse=True) and steps[2] < 0.2 * steps[0]


def test_blur_does_not_depend_on_resolution(portraits):
    image, box = portraits.images[0], portraits.boxes[0]
    large = [np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for side in (512, 1024)]
    once, twice = (blur(picture, box * len(picture) / 128) for picture in large)
    assert once == pytest.approx(twice, rel=0.05)


def test_blur_does_not_depend_on_exposure(portraits):
    image, box = portraits.images[0], portraits.boxes[0]
    dark = (image * 0.3 + 0.5).astype(np.uint8)
    assert blur(dark, box) == pytest.approx(blur(image, box), rel=0.1)
    assert blur(np.full_like(image, 90), box) == 0


def test_box_past_the_border_is_measured(portraits):
    assert np.isfinite(measure(portraits.images[0], (-30, -20, 40, 60), None)["blur"])


def test_without_landmarks_there_is_no_pose(portraits):
    measures = measure(portraits.images[0], portraits.boxes[0], None)
    assert [measures[name] for name in ("yaw", "pitch", "roll")] == [None] * 3


@pytest.mark.parametrize(
    "thresholds, reason",
    [
        ({"min_face_px": 64}, "face 41 px, smaller than --min_face_px 64"),
        ({"min_blur": 30}, "blur 20.5, less sharp than --min_blur 30"),
        ({"max_yaw": 30}, "yaw -33 degrees, more than --max_yaw 30"),
        ({"max_roll": 10}, "roll 12 degrees, more than --max_roll 10"),
        ({"min_score": 0.9}, "score 0.8, lower than --min_score 0.9"),
        ({"max_pitch": 10, "min_face_px": 41, "min_blur": 20.5, "max_yaw": 33, "min_score": 0.8}, ""),
        ({"min_face_px": 0, "max_yaw": 0, "min_score": None}, ""),
        ({}, ""),
    ],
)
def test_reasons(thresholds, reason):
    assert reject(MEASURES, Thresholds(**thresholds)) == reason


def test_unknown_pose_does_not_pass_a_limit_on_it():
    unknown = MEASURES | {"yaw": None, "pitch": None, "roll": None}
    assert "yaw not known" in reject(unknown, Thresholds(max_yaw=30))
    assert reject(unknown, Thresholds(min_face_px=10)) == ""


@pytest.mark.parametrize("name", ["max_yaw", "max_pitch", "max_roll", "min_score"])
def test_thresholds_a_detector_cannot_judge_are_refused_up_front(name):
    with pytest.raises(UserError, match=f"--{name}: the detector 'opencv'"):
        Thresholds(**{name: 0.5}).check("opencv")
    Thresholds(**{name: 0.5}).check("buffalo_l")
    Thresholds(min_face_px=64, min_blur=30).check("opencv")


@pytest.mark.parametrize(
    "wrong", [{"min_face_px": -1}, {"max_yaw": 200}, {"min_score": 1.5}, {"min_blur": float("nan")}]
)
def test_values_out_of_range(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))} "):
        Thresholds(**wrong).check("buffalo_l")

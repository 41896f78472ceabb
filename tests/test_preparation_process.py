"""One picture: read, detected, sorted by the number of faces, filtered, described."""

import numpy as np
import pytest
from preparation_tools import nobody, save

from feedface.faces.crop import square_box
from feedface.faces.detect import Face
from feedface.preparation.filters import Thresholds, reject
from feedface.preparation.process import Loaded, Rules, detect, drop_duplicates, judge, load, overlap, squared
from feedface.preparation.result import plain, read_row, rounded, stems, write_row

LANDMARKS = np.array([[30, 36], [50, 36], [40, 46], [32, 56], [48, 56]], np.float32)


def face(x=20.0, y=20.0, side=40.0, score=0.9, landmarks=LANDMARKS):
    return Face(np.array([x, y, x + side, y + side], np.float32), score, landmarks, np.ones(4, np.float32) / 2)


def classes(x0, y0, x1, y1, size=96):
    whole = np.zeros((size, size), np.uint8)
    whole[y0:y1, x0:x1] = 1
    return whole


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    return load(save(noise, tmp_path / "a.png").parent, "a.png")


def test_reading(tmp_path):
    save(nobody(), tmp_path / "sub" / "a.png")
    loaded = load(tmp_path, "sub/a.png")
    assert loaded.image.shape == (96, 96, 3) and loaded.stamp and not loaded.problem


def test_what_cannot_be_read_says_why_without_its_folder(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    problems = [load(tmp_path, name) for name in ("text.png", "folder.png", "none.png")]
    assert [loaded.problem for loaded in problems] == [
        "not a picture that can be read here; use PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF or HEIC",
        "a directory, not a picture",
        "no such picture",
    ]
    assert problems[2].stamp is None
    outcome = judge(problems[0], [], [], Rules())
    assert (outcome.kind, outcome.size, outcome.rows()[0]["faces"]) == ("error", None, 0)


class Fixed:
    name = "fixed"

    def __init__(self, faces):
        self.faces = faces

    def detect(self, image):
        return self.faces


def test_faces_that_count():
    faces = [face(), face(score=0.3), face(x=-60), face(x=200), face(side=0.001)]
    assert detect(nobody(), Fixed(faces), 0.5) == faces[:1]
    assert detect(nobody(), Fixed(faces)) == faces[:2]


def test_one_face(picture):
    outcome = judge(picture, [face()], [classes(10, 5, 70, 80)], Rules())
    assert (outcome.kind, outcome.reason, outcome.size) == ("single", "", (96, 96))
    (row,) = outcome.rows()
    assert row["img_size"] == [96, 96] and row["rect"] == row["bbox"] == [20, 20, 60, 60]
    assert row["square_bbox"] == [18, 18, 62, 62] and row["mask_bbox"] == [10, 5, 70, 80]
    assert row["point"] == LANDMARKS.tolist() and row["scores"] == 0.9 and row["resize_s"] == 1
    assert row["face_px"] == 40 and row["roll"] == 0 and row["embedding"] == [0.5] * 4
    assert "caption" not in row


def test_no_face(picture):
    assert judge(picture, [], [], Rules()).reason == "no face found"
    outcome = judge(picture, [face()], [np.zeros((96, 96), np.uint8)], Rules())
    assert outcome.kind == "error" and "the parser sees no face" in outcome.reason and not outcome.masks


def test_two_faces(picture):
    faces = [face(), face(x=60, side=30)]
    outcome = judge(picture, faces, [classes(10, 5, 50, 80), classes(55, 5, 96, 80)], Rules())
    assert (outcome.kind, outcome.reason, len(outcome.masks)) == ("multi", "2 faces", 2)
    assert [row["face"] for row in outcome.rows()] == [0, 1] and outcome.rows()[1]["faces"] == 2
    assert stems(outcome.rel, outcome.kind, 2) == ["multi/a.png_0", "multi/a.png_1"]


def test_a_face_found_twice_counts_once(picture):
    faces = [face(score=0.6), face(x=22, side=38, score=0.8)]
    outcome = judge(picture, faces, [classes(10, 5, 70, 80), classes(11, 5, 70, 82)], Rules())
    assert (outcome.kind, outcome.faces[0]["scores"]) == ("single", 0.8)
    assert judge(picture, faces, [classes(10, 5, 70, 80), classes(11, 5, 70, 82)], Rules(0.99)).kind == "multi"


def test_duplicates_keep_their_order_and_the_first_of_equals():
    a, b, c = (0.5, (0, 0, 40, 40)), (0.9, (50, 50, 90, 90)), (0.5, (1, 0, 40, 40))
    empty = (0.1, None)
    for faces, kept in (([a, b, c], [0, 1]), ([c, b, a], [0, 1]), ([b, a, c], [0, 1]), ([empty, empty], [0, 1])):
        assert drop_duplicates(*zip(*faces, strict=True), 0.7) == kept
    better = (0.6, (1, 0, 40, 40))
    assert drop_duplicates(*zip(a, b, better, strict=True), iou=0.7) == [1, 2]


def test_filters(picture):
    rules = Rules(thresholds=Thresholds(min_face_px=50))
    outcome = judge(picture, [face()], [classes(10, 5, 70, 80)], rules)
    assert outcome.kind == "filtered" and "40 px" in outcome.reason and len(outcome.masks) == 1
    assert reject(outcome.rows()[0], rules.thresholds) == outcome.reason
    assert reject(outcome.rows()[0], Thresholds(min_face_px=40)) == ""


def test_overlap():
    assert overlap((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 1, 1), (2, 2, 3, 3)) == overlap(None, (0, 0, 1, 1)) == 0


@pytest.mark.parametrize(
    "box", [(20, 20, 60, 50), (-10, 5, 30, 40), (70, 80, 99, 120), (0, 0, 96, 64), (-50, 0, 90, 9)]
)
@pytest.mark.parametrize("width, height", [(96, 64), (64, 96), (300, 200)])
def test_square_rules(box, width, height):
    free = square_box(box)
    assert squared(box, width, height, "pad") == free
    x0, y0, x1, y1 = squared(box, width, height, "inside")
    assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
    assert x1 - x0 == pytest.approx(y1 - y0) == pytest.approx(min(free[2] - free[0], width, height))
    if free[0] >= 0 and free[1] >= 0 and free[2] <= width and free[3] <= height:
        assert (x0, y0, x1, y1) == pytest.approx(free)


def test_numbers_for_json():
    assert rounded(np.array([[-0.001, 1.005]], np.float32)) == [[0.0, 1.0]]
    assert str(rounded([-0.0001])) == "[0.0]"
    assert plain(np.float32(0.1)) == 0.1 and plain(np.int64(3)) == 3 and plain(None) is None and plain(np.nan) is None


def test_rows_on_disk(picture, tmp_path):
    (row,) = judge(picture, [face()], [classes(10, 5, 70, 80)], Rules()).rows()
    write_row(tmp_path / "row.json", row)
    assert read_row(tmp_path / "row.json") == row
    assert (tmp_path / "row.json").read_text().count("\n") == len(row) + 2
    text = (tmp_path / "row.json").read_text()
    wrong = [
        text.replace(*change)
        for change in (
            ('"single"', '"other"'), ('"faces": 1', '"faces": "1"'), ('"faces": 1', '"faces": 99999'),
            ('"bbox": [', '"bbox": [1e400, '), ('"square_bbox"', '"sqare_bbox"'), ('"blur": ', '"blur": -'),
            ('"stamp": ', '"stamp": {}, "was": '), ('"img_size": [', '"img_size": [0, '),
            ('"yaw": ', '"yaw": [], "was": '),
        )
    ]  # fmt: skip
    assert all(change != text for change in wrong)
    for broken in (text[:100], "", "[1]", "{}", "[" * 10**5, *wrong):
        (tmp_path / "broken.json").write_text(broken)
        assert read_row(tmp_path / "broken.json") is None
    assert read_row(tmp_path / "none.json") is None


def test_an_unreadable_picture_needs_no_models():
    assert judge(Loaded("a", None, None, None, "damaged"), [], [], Rules()).reason == "damaged"

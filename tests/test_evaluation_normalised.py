"""The paper's normalised table on numbers worked out by hand."""

import numpy as np
import pytest

from feedface.evaluation.metrics import Figure
from feedface.evaluation.normalised import (
    COLUMNS,
    Bounds,
    face_bounds,
    left_out,
    normalise,
    overall,
    table_row,
    text_bounds,
)


def with_cosine(*cosines: float) -> np.ndarray:
    """Faces in a plane with these cosines to (1, 0): [len(cosines), 2]."""
    cosines = np.array(cosines)
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=-1)


def test_a_score_between_its_bounds_by_hand():
    bounds = Bounds(minimum=0.1, maximum=0.6)
    assert normalise(0.35, bounds) == pytest.approx(0.5)  # (0.35 - 0.1) / (0.6 - 0.1)
    assert normalise(0.1, bounds) == 0.0 and normalise(0.6, bounds) == 1.0
    assert normalise(0.7, bounds) == pytest.approx(1.2) and normalise(0.0, bounds) == pytest.approx(-0.2)


def test_bounds_that_are_not_in_order_normalise_nothing_and_say_so():
    for bounds in (Bounds(0.5, 0.5), Bounds(0.5, 0.2)):
        assert normalise(0.4, bounds) is None
        assert "not above its minimum 0.500" in bounds.unusable
    assert normalise(None, Bounds(0.0, 1.0)) is None
    assert Bounds(0.0, 1.0).unusable is None
    assert "not measured" in Bounds(None, 1.0).unusable


def test_face_bounds_by_hand():
    references = with_cosine(1.0, 0.8, 0.6)  # pairs: 0.8, 0.6 and 0.8 * 0.6 + 0.6 * 0.8 = 0.96
    base = np.array([[0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [0.0, 0.0]])  # the last shows no face and counts 0
    bounds = face_bounds(references, base)
    assert bounds.maximum == pytest.approx((0.8 + 0.6 + 0.96) / 3)
    assert bounds.minimum == pytest.approx(((0 + 0.6 + 0.8) / 3 - (0 + 0.6 + 0.8) / 3 + (1 + 0.8 + 0.6) / 3 + 0) / 4)
    assert bounds.unusable is None


def test_a_single_reference_cannot_be_normalised_and_says_so():
    base = with_cosine(0.1, 0.2)
    alone = face_bounds(with_cosine(1.0), base)
    assert alone.maximum is None and "1 with a face and two are needed" in alone.unusable
    assert normalise(0.5, alone) is None
    assert "0 with a face" in face_bounds(np.zeros((3, 2)), base).unusable
    assert "no base pictures" in face_bounds(with_cosine(1.0, 0.9), np.zeros((0, 2))).unusable


def test_text_bounds_by_hand():
    base = np.array([[1.0, 2.0], [3.0, 2.0]])  # two prompts, two base pictures each
    references = np.array([[-1.0, 0.0, -2.0]])
    assert text_bounds(base, references) == Bounds(minimum=-1.0, maximum=2.0)
    assert normalise(0.5, text_bounds(base, references)) == pytest.approx(0.5)
    assert "no scored references" in text_bounds(base, np.array([])).unusable
    assert "no scored base pictures" in text_bounds([], references).unusable


@pytest.mark.parametrize(
    ("cells", "total"),
    [((0.176, 0.718, 0.878, 0.316), 2.09), ((0.293, 0.818, 0.760, 0.298), 2.17)],
    ids=["DreamBooth", "FeedFace"],
)
def test_overall_of_the_papers_own_rows(cells, total):
    row = dict(zip(COLUMNS, cells, strict=True))
    assert round(overall(row), 2) == total
    assert round(overall({name: Figure(cell, cell, cell) for name, cell in row.items()}), 2) == total
    assert overall(row | {"text": None}) is None


def row_by_hand(**changes) -> dict:
    """Three cases; face normalised 0.5, 1.0, 0.0 and text 0.8, 0.6, 0.1."""
    cases = ("anna", "ben", "carl")
    given = {
        "face": dict(zip(cases, (0.3, 0.7, 0.2), strict=True)),
        "clip_face": dict(zip(cases, (0.8, 0.9, 0.7), strict=True)),
        "text": dict(zip(cases, (0.8, 1.2, -0.9), strict=True)),
        "clip_text": dict(zip(cases, (0.3, 0.2, 0.4), strict=True)),
        "face_bounds": dict(zip(cases, (Bounds(0.1, 0.5), Bounds(0.3, 0.7), Bounds(0.2, 0.6)), strict=True)),
        "text_bounds": dict(zip(cases, (Bounds(0.0, 1.0), Bounds(0.0, 2.0), Bounds(-1.0, 0.0)), strict=True)),
        "seconds": dict(zip(cases, (10.0, 20.0, 60.0), strict=True)),
    }
    return table_row(**given | changes)


def test_row_by_hand():
    row = row_by_hand()
    assert list(row) == [*COLUMNS, "overall", "seconds"]
    values = {name: figure.value for name, figure in row.items()}
    assert values == pytest.approx(
        {"face": 0.5, "clip_face": 0.8, "text": 0.5, "clip_text": 0.3, "overall": 2.1, "seconds": 90.0}
    )
    # Of 4000 draws of three people about 1 in 27 takes one person three times: the ends are the extreme people.
    assert (row["face"].low, row["face"].high) == pytest.approx((0.0, 1.0))
    assert (row["overall"].low, row["overall"].high) == pytest.approx((0.0 + 0.7 + 0.1 + 0.4, 1.0 + 0.9 + 0.6 + 0.2))


def test_the_sum_is_paired_over_people():
    # What the face gains in a person the text loses: the columns are uncertain and their sum is not.
    cases = [f"case {number}" for number in range(30)]
    gain = np.random.default_rng(0).uniform(0, 1, size=30)
    same, unit = dict.fromkeys(cases, 0.5), dict.fromkeys(cases, Bounds(0.0, 1.0))
    face, text = dict(zip(cases, gain, strict=True)), dict(zip(cases, 1 - gain, strict=True))
    row = table_row(face, same, text, same, unit, unit)
    assert row["face"].high - row["face"].low > 0.1
    assert (row["overall"].value, row["overall"].low, row["overall"].high) == pytest.approx((2.0, 2.0, 2.0))
    assert row["seconds"] is None


def test_a_case_that_cannot_be_normalised_leaves_that_column_alone():
    bounds = {"anna": Bounds(0.1, 0.5), "ben": Bounds(0.1, None, "one reference"), "carl": Bounds(0.6, 0.2)}
    row = row_by_hand(face_bounds=bounds)
    assert row["face"].value == pytest.approx(0.5)  # anna's
    assert row["clip_face"].value == pytest.approx(0.8)  # of all three
    assert row["overall"].value == pytest.approx(sum(row[name].value for name in COLUMNS))
    assert np.isfinite([row["overall"].low, row["overall"].high]).all()
    scores = {"anna": 0.3, "ben": 0.7, "carl": 0.2}
    assert left_out(scores, bounds) == (
        "2 of 3 cases cannot be normalised (ben: one reference; carl: its maximum 0.200 is not above its minimum 0.600)"
    )


def test_a_column_nobody_has_takes_the_sum_with_it():
    row = row_by_hand(text={"anna": None, "ben": None}, text_bounds={})
    assert row["text"] is None and row["overall"] is None
    assert row["face"] is not None and row["clip_text"] is not None


def test_left_out_counts_what_it_does_not_name():
    scores = {f"case {number}": 0.5 for number in range(5)} | {"case 0": None}
    assert left_out(scores, dict.fromkeys(scores, Bounds(0.0, 1.0))) == (
        "1 of 5 cases cannot be normalised (case 0: it was not measured)"
    )
    line = left_out(scores, {})
    assert line.startswith("5 of 5 cases") and line.endswith("; and 2 more)")
    assert left_out({"a": 0.5}, {"a": Bounds(0.0, 1.0)}) is None
    assert left_out({}, {}) == "no case was measured"

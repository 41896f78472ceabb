"""From scored pictures to figures over people and training seeds."""

import numpy as np
import pytest

from feedface.evaluation.metrics import (
    attribute_counts,
    bootstrap,
    figure_of,
    over_seeds,
    paired,
    paired_difference,
    per_person,
    ratio_of_means,
)


def rows(**people: list) -> list[dict]:
    return [{"case": case, "figure": value} for case, values in people.items() for value in values]


def test_people_weigh_the_same_however_many_pictures_they_have():
    scored = rows(anna=[1.0, 0.0, 0.5, 0.5], ben=[0.9])
    assert per_person(scored, "figure") == pytest.approx({"anna": 0.5, "ben": 0.9})
    assert figure_of(scored, "figure").value == pytest.approx(0.7)
    assert per_person(scored, "figure", total=True) == pytest.approx({"anna": 2.0, "ben": 0.9})


def test_what_was_not_measured_is_left_out_and_a_zero_is_not():
    scored = rows(anna=[None, 0.4], ben=[None], carl=[0.0, 0.0])
    assert per_person(scored, "figure") == {"anna": 0.4, "carl": 0.0}
    assert per_person([{"case": "anna"}], "figure") == {}
    assert figure_of(rows(anna=[None]), "figure") is None


def test_bools_and_attributes_become_shares():
    scored = rows(anna=[True, False, False, True], ben=[{"hat": True, "beard": False}, {"hat": True}, {}])
    assert per_person(scored, "figure") == {"anna": 0.5, "ben": 0.75}


def test_a_value_that_is_no_number_is_an_error_that_names_its_person():
    with pytest.raises(ValueError, match="anna is nan"):
        per_person(rows(anna=[float("nan")]), "figure")


def test_detection_rate_counts_blank_pictures():
    scored = [{"case": case, "face_found": found} for case, found in [("a", True), ("a", False), ("b", False)]]
    assert figure_of(scored, "face_found").value == 0.25
    assert figure_of([], "face_found") is None


def test_attribute_counts_weigh_what_was_asked():
    scored = [
        {"case": "a", "attributes": {"hat": True, "beard": False}},
        {"case": "a", "attributes": {"hat": False}},
        {"case": "b", "attributes": None},
        {"case": "c", "attributes": {"hat": True}},
    ]
    counts = {name: [part.tolist() for part in pair] for name, pair in attribute_counts(scored).items()}
    assert counts == {
        "hat": [[1, 0, 1], [2, 0, 1]],
        "beard": [[0, 0, 0], [1, 0, 0]],
        "all": [[1, 0, 1], [3, 0, 1]],
    }
    assert bootstrap(*attribute_counts(scored)["all"], statistic=ratio_of_means).value == 0.5
    assert attribute_counts([{"case": "a"}]) == {}


def test_pairs_are_the_people_of_both():
    a, b = paired({"anna": 1.0, "ben": 2.0, "carl": 3.0}, {"carl": 30.0, "anna": 10.0})
    assert (a.tolist(), b.tolist()) == ([1.0, 3.0], [10.0, 30.0])


def test_a_difference_that_is_the_same_for_everybody_is_certain():
    people = np.random.default_rng(0).normal(size=40)
    figure = paired_difference(people + 0.1, people)
    assert (figure.value, figure.low, figure.high) == pytest.approx((0.1, 0.1, 0.1))


def test_interval_of_a_difference_has_the_width_of_the_paired_normal_approximation():
    random = np.random.default_rng(0)
    people, noise = random.normal(0, 5, size=600), random.normal(0.2, 1, size=600)
    figure = paired_difference(people + noise, people)
    half = 1.96 * noise.std() / np.sqrt(600)  # of the noise alone: who people are cancels
    assert figure.value == pytest.approx(noise.mean())
    assert (figure.low, figure.high) == pytest.approx((noise.mean() - half, noise.mean() + half), abs=0.1 * half)


def test_one_training_seed_leaves_the_bootstrap_over_people():
    values = np.random.default_rng(1).normal(size=200)
    alone, seeded = bootstrap(values), over_seeds(values[None])
    assert seeded.value == pytest.approx(alone.value)
    assert (seeded.low, seeded.high) == pytest.approx((alone.low, alone.high), abs=0.02)


def test_interval_over_seeds_and_people_has_the_closed_form_width():
    # A table m + a_k + b_i + e_ki resampled by rows and columns has variance var(a)/K + var(b)/I + var(e)/(K I).
    random = np.random.default_rng(2)
    seeds, people = 40, 60
    values = random.normal(size=(seeds, 1)) + 2 * random.normal(size=people) + 3 * random.normal(size=(seeds, people))
    of_seed, of_person = values.mean(axis=1, keepdims=True), values.mean(axis=0)
    rest = values - of_seed - of_person + values.mean()
    half = 1.96 * np.sqrt(of_seed.var() / seeds + of_person.var() / people + rest.var() / (seeds * people))
    figure = over_seeds(values, draws=20000)
    assert figure.value == pytest.approx(values.mean())
    assert (figure.low, figure.high) == pytest.approx((figure.value - half, figure.value + half), abs=0.06 * half)


def test_interval_over_seeds_and_people_covers_the_truth():
    random = np.random.default_rng(3)
    covered, people_alone = 0, 0
    for trial in range(200):
        values = 0.5 + 0.3 * random.normal(size=(12, 1)) + 0.3 * random.normal(size=30)
        figure, narrow = over_seeds(values, draws=500, seed=trial), bootstrap(values.mean(axis=0), draws=500)
        covered += figure.low <= 0.5 <= figure.high
        people_alone += narrow.low <= 0.5 <= narrow.high
    assert 0.87 <= covered / 200 <= 0.99
    assert people_alone / 200 < 0.8  # seeds differ, and an interval that ignores them promises too much


def test_over_seeds_refuses_what_is_no_full_table():
    for values in (np.zeros(3), np.zeros((0, 3)), np.array([[1.0, np.nan]])):
        with pytest.raises(ValueError, match="training seed and person"):
            over_seeds(values)

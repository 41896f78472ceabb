"""Metrics on cases whose answer is known."""

import numpy as np
import pytest

from feedface.evaluation.metrics import (
    attribute_hits,
    bootstrap,
    frechet_distance,
    mean_embedding,
    nearest_identity,
    ratio_of_means,
    similarity_to_own,
    similarity_to_strangers,
)

PEOPLE = 5
AXES = np.eye(PEOPLE)  # five people who have nothing in common
PICTURES = np.repeat(AXES[:, None], 3, axis=1)  # [I, S=3, E]


def test_perfect_pictures_are_all_nearest_to_their_person():
    assert nearest_identity(PICTURES, AXES).tolist() == [1.0] * PEOPLE


def test_swapped_identities_are_never_nearest():
    assert nearest_identity(PICTURES[np.roll(np.arange(PEOPLE), 1)], AXES).tolist() == [0.0] * PEOPLE


def test_one_wrong_picture_of_three_costs_its_person_a_third():
    pictures = PICTURES.copy()
    pictures[2, 0] = AXES[4]
    assert nearest_identity(pictures, AXES) == pytest.approx([1, 1, 2 / 3, 1, 1])


def test_random_embeddings_reach_chance():
    random = np.random.default_rng(0)
    embeddings = random.normal(size=(PEOPLE, 4000, 16))
    gallery = random.normal(size=(PEOPLE, 16))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    assert nearest_identity(embeddings, gallery).mean() == pytest.approx(1 / PEOPLE, abs=0.02)


def test_mean_embedding_has_length_one_and_the_mean_direction():
    pair = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    assert mean_embedding(pair) == pytest.approx(np.array([[np.sqrt(0.5), np.sqrt(0.5)]]))


def test_similarity_to_own_averages_every_pair():
    pictures = np.array([[[1.0, 0.0], [0.0, 1.0]]])  # one person, two pictures at a right angle
    others = np.array([[[1.0, 0.0], [-1.0, 0.0], [0.6, 0.8]]])
    assert similarity_to_own(pictures, others) == pytest.approx([(1 - 1 + 0.6 + 0 + 0 + 0.8) / 6])
    assert similarity_to_own(PICTURES, PICTURES) == pytest.approx([1.0] * PEOPLE)


def test_similarity_to_strangers_leaves_the_person_out():
    assert similarity_to_strangers(PICTURES, PICTURES) == pytest.approx([0.0] * PEOPLE)
    random = np.random.default_rng(1)
    pictures, others = random.normal(size=(4, 2, 8)), random.normal(size=(4, 3, 8))
    by_hand = [
        np.mean([pictures[i, s] @ others[j, r] for j in range(4) if j != i for s in range(2) for r in range(3)])
        for i in range(4)
    ]
    assert similarity_to_strangers(pictures, others) == pytest.approx(by_hand)


def test_strangers_need_a_second_person():
    with pytest.raises(ValueError, match="two people"):
        similarity_to_strangers(PICTURES[:1], PICTURES[:1])


def test_attribute_hits_count_only_what_the_prompt_names():
    asked = {"hat": np.array([[1, -1], [2, -1]]), "clothes": np.array([[0, 1], [3, 3]])}
    seen = {"hat": np.array([[1, 1], [0, 0]]), "clothes": np.array([[0, 0], [3, 3]])}
    hits = attribute_hits(seen, asked)
    assert [part.tolist() for part in hits["hat"]] == [[1, 0], [1, 1]]
    assert [part.tolist() for part in hits["clothes"]] == [[1, 2], [2, 2]]
    assert [part.tolist() for part in hits["all"]] == [[2, 2], [3, 3]]
    shown, named = hits["all"]
    assert bootstrap(shown, named, statistic=ratio_of_means).value == pytest.approx(4 / 6)


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=2500)
    figure = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_interval_covers_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        figure = bootstrap(random.binomial(1, 0.3, size=100), draws=500, seed=trial)
        covered += figure.low <= 0.3 <= figure.high
    assert 0.89 <= covered / 200 <= 0.99


def test_bootstrap_of_a_constant_is_a_point_and_repeats():
    assert bootstrap(np.full(7, 0.4)).as_dict() == {"value": 0.4, "low": 0.4, "high": 0.4}
    values = np.arange(20.0)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)


def test_ratio_is_paired_over_people():
    # The face keeps exactly nine tenths for everybody, however different people are: no uncertainty.
    base = np.random.default_rng(0).uniform(1, 10, size=30)
    figure = bootstrap(0.9 * base, base, statistic=ratio_of_means)
    assert (figure.low, figure.high) == pytest.approx((0.9, 0.9))


def test_people_who_were_asked_nothing_weigh_nothing():
    figure = bootstrap(np.array([1, 0, 0]), np.array([2, 0, 0]), statistic=ratio_of_means)
    assert (figure.value, figure.low, figure.high) == (0.5, 0.5, 0.5)


def test_bootstrap_refuses_unequal_lengths():
    with pytest.raises(ValueError, match="one value per person"):
        bootstrap(np.zeros(3), np.zeros(4))


def test_frechet_distance_of_gaussians_whose_distance_is_known():
    a = np.random.default_rng(0).normal(size=(40_000, 3)) * [1, 2, 3]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a, a + np.array([1, 0, 2])) == pytest.approx(5, rel=1e-6)
    # Of the same axes: the sum of (difference of the standard deviations)^2.
    assert frechet_distance(a, 2 * (a - a.mean(0)) + a.mean(0)) == pytest.approx(1 + 4 + 9, rel=0.02)
    turned = a @ np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # standard deviations 2, 1, 3
    assert frechet_distance(a, turned) == pytest.approx(frechet_distance(turned, a), rel=1e-6)
    assert frechet_distance(a, turned) == pytest.approx(2, rel=0.05)

"""Figures of one face against pictures of a person, on faces whose angles are known."""

import numpy as np
import pytest

from feedface.evaluation.metrics import (
    angles,
    copy_paste,
    diversity,
    is_nearest,
    mean_cosine,
    nearest_identity,
    self_similarity,
)

PEOPLE, PICTURES = 4, 3
AXES = np.eye(PEOPLE)
RIGHT = np.repeat(AXES[:, None], PICTURES, axis=1)  # every picture shows its person
BLANK = np.zeros((PEOPLE, PICTURES, PEOPLE))


def at(*degrees: float) -> np.ndarray:
    """Faces in a plane at these angles: [len(degrees), 2]."""
    radians = np.radians(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=-1)


def random_faces(seed: int, *shape: int) -> np.ndarray:
    faces = np.random.default_rng(seed).normal(size=shape)
    return faces / np.linalg.norm(faces, axis=-1, keepdims=True)


def test_identical_faces_have_similarity_one_and_no_diversity():
    face = random_faces(0, 1, 512)
    assert mean_cosine(face, np.repeat(face, 3, axis=0)) == pytest.approx([1.0])
    assert self_similarity(np.repeat(face, 3, axis=0)) == pytest.approx(1.0)
    assert diversity(np.repeat(face, 3, axis=0), np.ones(3, bool)) == pytest.approx(0.0, abs=1e-12)


def test_one_swapped_pair_of_people_costs_both():
    swapped = RIGHT[[1, 0, 2, 3]]
    assert is_nearest(swapped, AXES).tolist() == [[False] * 3, [False] * 3, [True] * 3, [True] * 3]
    assert nearest_identity(swapped, AXES).tolist() == [0.0, 0.0, 1.0, 1.0]
    assert [mean_cosine(swapped[i], RIGHT[i]).mean() for i in range(PEOPLE)] == [0.0, 0.0, 1.0, 1.0]


def test_blank_pictures_are_like_nobody():
    # argmax of equal cosines is the first person: a blank picture must not count as that one.
    assert nearest_identity(BLANK, AXES).tolist() == [0.0] * PEOPLE
    assert mean_cosine(BLANK[0], AXES[:1]).tolist() == [0.0] * PICTURES


def test_a_person_without_a_gallery_face_is_nobodys_nearest():
    gallery = AXES.copy()
    gallery[0] = 0
    assert nearest_identity(RIGHT, gallery).tolist() == [0.0, 1.0, 1.0, 1.0]
    # Unlike everybody, but least unlike its own person: the blank entry's cosine of 0 must not win.
    unlike = np.array([[[-0.5, -0.1, -0.6, -0.6]]] * PEOPLE)
    assert is_nearest(unlike, gallery)[:, 0].tolist() == [False, True, False, False]
    assert not is_nearest(RIGHT, np.zeros_like(AXES)).any()


def test_mean_cosine_is_the_mean_over_the_references_that_show_a_face():
    references = np.concatenate([at(60, 90), np.zeros((1, 2))])
    assert mean_cosine(at(0, 90), references) == pytest.approx([(0.5 + 0) / 2, (np.sqrt(0.75) + 1) / 2])
    assert np.isnan(mean_cosine(at(0, 90), np.zeros((2, 2)))).all()
    many = random_faces(1, 5, 6, 16)
    assert mean_cosine(many, many[0]) == pytest.approx((many @ many[0].T).mean(axis=-1))


def test_self_similarity_takes_each_pair_of_different_pictures():
    assert self_similarity(at(0, 60, 90)) == pytest.approx((0.5 + 0 + np.cos(np.radians(30))) / 3)
    assert self_similarity(at(0)) is None
    assert self_similarity(np.concatenate([at(0), np.zeros((2, 2))])) is None


def test_diversity_of_faces_at_right_angles_is_one_and_leaves_out_blank_pictures():
    assert diversity(at(0, 90), np.array([True, True])) == pytest.approx(1.0)
    assert diversity(at(0, 90, 0), np.array([True, False, True])) == pytest.approx(0.0)
    assert diversity(at(0, 180), np.array([True, True])) == pytest.approx(2.0)
    assert diversity(at(0, 90), np.array([True, False])) is None
    assert diversity(np.zeros((0, 2)), np.zeros(0, bool)) is None


def test_angles_are_right_at_both_ends_and_whatever_the_lengths():
    assert angles(at(0), 7 * at(0, 1e-6, 30, 180)) == pytest.approx(np.radians([0, 1e-6, 30, 180]), rel=1e-9)
    assert np.isnan(angles(at(0), np.zeros((1, 2)))).all()


def test_copy_paste_of_a_copy_of_the_other_and_of_what_lies_between():
    reference, other = at(0)[0], at(40)[0]
    generated = np.stack([reference, other, at(20)[0]])
    score = copy_paste(generated, reference, other)
    assert score[0] == 1.0 and score[1] == -1.0
    assert score[2] == pytest.approx(0.0, abs=1e-12)
    assert copy_paste(at(10), reference, other) == pytest.approx([(30 - 10) / 40])


def test_copy_paste_is_exact_for_single_precision_embeddings_of_any_shape():
    reference, other = random_faces(2, 2, 512).astype(np.float32)
    generated = np.broadcast_to(reference, (2, 3, 512))
    assert copy_paste(generated, reference, other) == pytest.approx(np.full((2, 3), 1.0), abs=1e-12)
    assert copy_paste(generated, other, reference) == pytest.approx(np.full((2, 3), -1.0), abs=1e-12)
    assert copy_paste(reference, reference, other).shape == ()


def test_copy_paste_of_a_stranger_is_zero_and_never_leaves_its_range():
    axes = np.eye(3)
    assert copy_paste(axes[2], axes[0], axes[1]) == pytest.approx(0.0, abs=1e-12)
    score = copy_paste(random_faces(3, 500, 3), random_faces(4, 2, 3), random_faces(5, 4, 3))
    assert -1 <= score.min() < 0 < score.max() <= 1


def test_copy_paste_of_several_pictures_takes_mean_angles():
    # to the references 10 and 30 degrees, to the others 50 and 20, between them 60, 30, 80, 10 -> mean 45
    score = copy_paste(at(0), at(-10, 30), at(50, 20))
    assert score == pytest.approx([((50 + 20) / 2 - (10 + 30) / 2) / ((60 + 30 + 20 + 10) / 4)])


def test_copy_paste_is_fair_to_more_references_than_others():
    # Faces scattered alike about one person, so no copies: zero on average, whatever the number of pictures.
    random = np.random.default_rng(6)
    for shown, unseen in ((1, 1), (5, 1), (1, 5)):
        people = np.eye(16)[0] + 0.15 * random.normal(size=(600, shown + unseen + 1, 16))
        scores = [copy_paste(p[0], p[1 : 1 + shown], p[1 + shown :]) for p in people]
        assert abs(np.mean(scores)) < 4 * np.std(scores) / np.sqrt(len(scores)) < 0.1


def test_copy_paste_without_a_face_is_not_a_number_and_without_a_comparison_is_refused():
    assert np.isnan(copy_paste(np.stack([np.zeros(2), at(5)[0]]), at(0), at(40))).tolist() == [True, False]
    with_blank = np.concatenate([at(0), np.zeros((1, 2))])
    assert copy_paste(at(0), with_blank, at(40)).tolist() == [1.0]
    with pytest.raises(ValueError, match="another picture"):
        copy_paste(at(0), at(0), np.zeros((0, 2)))
    with pytest.raises(ValueError, match="another picture"):
        copy_paste(at(0), np.zeros(2), at(40))


def test_copy_paste_where_reference_and_other_are_the_same_picture_is_zero():
    assert copy_paste(at(0, 25), at(0), at(0)).tolist() == [0.0, 0.0]

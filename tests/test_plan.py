"""Which parts of the model are evaluated when."""

import pytest

from feedface.diffusion.plan import Evaluation, plan_evaluations

TIMES = [1000.0, 800.0, 600.0, 400.0, 200.0, 1.0]


def kinds(**options) -> dict[str, list[float]]:
    """At which times is what evaluated."""
    plan = plan_evaluations(TIMES, **options)
    assert [evaluation.t for evaluation in plan] == TIMES
    return {
        "guided": [evaluation.t for evaluation in plan if evaluation.guided],
        "controlled": [evaluation.t for evaluation in plan if evaluation.controlled],
        "deep": [evaluation.t for evaluation in plan if not evaluation.reused],
    }


def test_everything_everywhere_by_default():
    assert plan_evaluations(TIMES) == [Evaluation(t, guided=True, controlled=True, reused=False) for t in TIMES]
    assert plan_evaluations([]) == []


def test_intervals_include_their_ends():
    assert kinds(guidance_interval=(400, 800))["guided"] == [800, 600, 400]
    assert kinds(face_interval=(0, 200))["controlled"] == [200, 1]
    assert kinds(face_interval=(0, 200))["guided"] == TIMES
    # a solver's times are as exact as float32
    (almost,) = plan_evaluations([499.998], guidance_interval=(500, 1000))
    assert almost.guided


def test_reuse_evaluates_the_first_of_every_few_and_the_last():
    assert kinds(reuse=1)["deep"] == TIMES
    assert kinds(reuse=2)["deep"] == [1000, 600, 200, 1]
    assert kinds(reuse=3)["deep"] == [1000, 400, 1]
    assert kinds(reuse=9)["deep"] == [1000, 1]


def test_reuse_starts_anew_where_guidance_or_face_changes():
    # what the deep blocks gave for one half is no use for two, nor what they gave without a face for one
    assert kinds(reuse=9, guidance_interval=(400, 800))["deep"] == [1000, 800, 200, 1]
    assert kinds(reuse=9, face_interval=(0, 600))["deep"] == [1000, 600, 1]


@pytest.mark.parametrize("interval", [(500, 400), (-1, 10), (10, 1001)])
def test_wrong_intervals_are_named(interval):
    for name in ("guidance_interval", "face_interval"):
        with pytest.raises(ValueError, match=f"{name}.*{interval[1]}"):
            plan_evaluations(TIMES, **{name: interval})
    with pytest.raises(ValueError, match="reuse must be 1 or more, not 0"):
        plan_evaluations(TIMES, reuse=0)

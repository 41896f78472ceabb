"""Figures of several systems on the same people and prompts: each one's, normalised as in the paper's App. C, compared.

Letters: I people, J people whom the judge knows (the I first among them), S samples a person, R references.
A system's per-person values are a dict metric -> [I]. `attributes_shown` and `attributes_asked` are counts; a figure of
attributes is the ratio of their means over people.
"""

from collections.abc import Callable, Mapping

import numpy as np

from feedface.evaluation.metrics import Figure, bootstrap, paired_difference, ratio_of_means, self_similarity
from feedface.evaluation.mini import Judge
from research.people import Values, attribute_counts, identity_values

BASE, REFERENCES = "no face", "references"  # the systems that give the bounds of a normalised score
FACE, TEXT = "similarity_to_reference", ("attributes_shown", "attributes_asked")
IDENTITY = ("nearest_identity", "similarity_to_another_picture", FACE)
Statistic = Callable[..., np.ndarray]  # arrays [..., I] -> [...]


def measure_references(judge: Judge, references: np.ndarray) -> Values:
    """As `people.judged`, of the references uint8 [I,R,H,W,3] themselves, each held against every prompt of its person.

    `similarity_to_reference` is that among each other, NaN for a single one.
    """
    people, each = references.shape[:2]
    embedding, seen = judge.look(references)
    own = [self_similarity(pictures) for pictures in embedding]
    samples = next(iter(judge.asked.values())).shape[1]
    pairs_seen = {name: np.repeat(classes, samples, axis=1) for name, classes in seen.items()}
    pairs_asked = {name: np.tile(classes[:people], (1, each)) for name, classes in judge.asked.items()}
    among = {FACE: np.array([np.nan if value is None else value for value in own])}
    return identity_values(judge, embedding) | among | attribute_counts(pairs_seen, pairs_asked)


def figures(values: Values) -> dict[str, Figure]:
    """A system's figures, `attribute_all` being the share of named attributes that its pictures show."""
    found = {name: bootstrap(values[name]) for name in IDENTITY if np.isfinite(values[name]).all()}
    return found | {"attribute_all": bootstrap(*(values[key] for key in TEXT), statistic=ratio_of_means)}


def normalised(systems: Mapping[str, Values], name: str) -> dict[str, Figure] | None:
    """A system's "face", "text" and their sum "overall", each (s - min) / (max - min) with App. C's bounds.

    face: similarity to the references; 0 is `BASE`'s, 1 that of the references among each other. text: share of
    attributes shown; 1 is `BASE`'s, 0 that of the references. Of means over people, where the paper normalises each
    case: a handful of yes-or-no attributes a person gives bounds that may coincide. None with a single reference, and
    where the bounds coincide even so.
    """
    if not np.isfinite(systems[REFERENCES][FACE]).all():
        return None
    arrays = _with_bounds(systems, name)
    found = {key: bootstrap(*arrays, statistic=statistic) for key, statistic in _NORMALISED.items()}
    return found if all(np.isfinite(figure.value) for figure in found.values()) else None


def differences(systems: Mapping[str, Values], a: str, b: str) -> dict[str, Figure]:
    """a - b on the same people: each identity metric, "attributes", and "overall" where it can be normalised."""
    found = {name: paired_difference(systems[a][name], systems[b][name]) for name in IDENTITY}
    counts = [systems[name][key] for name in (a, b) for key in TEXT]
    found["attributes"] = bootstrap(*counts, statistic=_difference_of(ratio_of_means))
    if normalised(systems, a) is not None:
        both = (*_with_bounds(systems, a), *_with_bounds(systems, b))
        found["overall"] = bootstrap(*both, statistic=_difference_of(_overall))
    return found


def _difference_of(statistic: Statistic) -> Statistic:
    """The statistic of the first half of its arguments less that of the second."""

    def difference(*arrays: np.ndarray) -> np.ndarray:
        half = len(arrays) // 2
        return statistic(*arrays[:half]) - statistic(*arrays[half:])

    return difference


def _with_bounds(systems: Mapping[str, Values], name: str) -> list[np.ndarray]:
    """What the statistics below take: similarity to the references of system, base, references; then their counts."""
    three = [systems[system] for system in (name, BASE, REFERENCES)]
    return [values[FACE] for values in three] + [values[key] for values in three for key in TEXT]


def _face(own: np.ndarray, base: np.ndarray, among: np.ndarray, *counts: np.ndarray) -> np.ndarray:
    return ratio_of_means(own - base, among - base)


def _text(*arrays: np.ndarray) -> np.ndarray:
    score, best, worst = (ratio_of_means(*arrays[at : at + 2]) for at in (3, 5, 7))
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of people who were asked nothing: NaN, left out
        return (score - worst) / (best - worst)


def _overall(*arrays: np.ndarray) -> np.ndarray:
    return _face(*arrays) + _text(*arrays)


_NORMALISED = {"face": _face, "text": _text, "overall": _overall}

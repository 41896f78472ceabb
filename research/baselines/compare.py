"""Figures of several systems on the same people and prompts: each one's, normalised as in the paper's App. C, compared.

Letters: I people, J people whom the judge knows (the I first among them), S samples a person, R references.
A system's per-person values are a dict metric -> [I]. `attributes_shown` and `attributes_asked` are counts; a figure of
attributes is the ratio of their means over people.
"""

from collections.abc import Callable, Mapping

import numpy as np

from feedface.evaluation.metrics import (
    Figure,
    attribute_hits,
    bootstrap,
    mean_embedding,
    paired_difference,
    ratio_of_means,
    self_similarity,
    similarity_to_own,
)
from feedface.evaluation.mini import Judge

BASE, REFERENCES = "no face", "references"  # the systems that give the bounds of a normalised score
IDENTITY = ("nearest_identity", "similarity_to_another_picture", "similarity_to_reference")

Values = dict[str, np.ndarray]  # metric -> [I]


def measure(judge: Judge, pictures: np.ndarray) -> Values:
    """Per-person values of pictures uint8 [I,S,H,W,3], in the order of the prompts; nearest identity among all J."""
    embedding, seen = judge.look(pictures)
    asked = {name: values[: len(pictures)] for name, values in judge.asked.items()}
    return _identity(judge, embedding) | _counts(seen, asked)


def measure_references(judge: Judge, references: np.ndarray) -> Values:
    """The same of the references uint8 [I,R,H,W,3] themselves, each held against every prompt of its person.

    `similarity_to_reference` is that among each other, NaN for a single one.
    """
    people, each = references.shape[:2]
    embedding, seen = judge.look(references)
    values = _identity(judge, embedding)
    alike = [self_similarity(pictures) for pictures in embedding]
    values["similarity_to_reference"] = np.array([np.nan if value is None else value for value in alike])
    samples = next(iter(judge.asked.values())).shape[1]
    pairs_seen = {name: np.repeat(classes, samples, axis=1) for name, classes in seen.items()}
    pairs_asked = {name: np.tile(classes[:people], (1, each)) for name, classes in judge.asked.items()}
    return values | _counts(pairs_seen, pairs_asked)


def _identity(judge: Judge, embedding: np.ndarray) -> Values:
    people = len(embedding)
    nearest = (embedding @ mean_embedding(judge.gallery).T).argmax(axis=-1)
    return {
        "nearest_identity": (nearest == np.arange(people)[:, None]).mean(axis=1),
        "similarity_to_another_picture": similarity_to_own(embedding, judge.gallery[:people]),
        "similarity_to_reference": similarity_to_own(embedding, judge.references[:people]),
    }


def _counts(seen: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray]) -> Values:
    shown, total = attribute_hits(dict(seen), dict(asked))["all"]
    return {"attributes_shown": shown, "attributes_asked": total}


def figures(values: Values) -> dict[str, Figure]:
    """A system's figures, `attribute_all` being the share of named attributes that its pictures show."""
    found = {name: bootstrap(values[name]) for name in IDENTITY if np.isfinite(values[name]).all()}
    shown = (values["attributes_shown"], values["attributes_asked"])
    return found | {"attribute_all": bootstrap(*shown, statistic=ratio_of_means)}


def normalised(systems: Mapping[str, Values], name: str) -> dict[str, Figure] | None:
    """A system's "face", "text" and their sum "overall", each (s - min) / (max - min) with App. C's bounds.

    face: similarity to the references; 0 is `BASE`'s, 1 that of the references among each other. text: share of
    attributes shown; 1 is `BASE`'s, 0 that of the references. Of means over people, where the paper normalises each
    case: a handful of yes-or-no attributes a person gives bounds that may coincide. None with a single reference, and
    where the bounds coincide even so.
    """
    if not np.isfinite(systems[REFERENCES]["similarity_to_reference"]).all():
        return None
    arrays = _bounds_and(systems, name)
    found = {key: bootstrap(*arrays, statistic=statistic) for key, statistic in _NORMALISED.items()}
    return found if all(np.isfinite(figure.value) for figure in found.values()) else None


def differences(systems: Mapping[str, Values], a: str, b: str) -> dict[str, Figure]:
    """a - b on the same people: each identity metric, "attributes", and "overall" where it can be normalised."""
    found = {name: paired_difference(systems[a][name], systems[b][name]) for name in IDENTITY}
    arrays = [systems[name][key] for name in (a, b) for key in ("attributes_shown", "attributes_asked")]
    found["attributes"] = bootstrap(*arrays, statistic=_difference_of(ratio_of_means))
    if normalised(systems, a) is not None:
        both = (*_bounds_and(systems, a), *_bounds_and(systems, b))
        found["overall"] = bootstrap(*both, statistic=_difference_of(_overall))
    return found


def _difference_of(statistic: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """The statistic of the first half of its arguments less that of the second."""

    def difference(*arrays: np.ndarray) -> np.ndarray:
        half = len(arrays) // 2
        return statistic(*arrays[:half]) - statistic(*arrays[half:])

    return difference


def _bounds_and(systems: Mapping[str, Values], name: str) -> list[np.ndarray]:
    """The arguments of `_face`, `_text` and `_overall`: face, shown, asked of the system, the base, the references."""
    keys = ("similarity_to_reference", "attributes_shown", "attributes_asked")
    return [systems[system][key] for system in (name, BASE, REFERENCES) for key in keys]


def _face(face, shown, asked, base, base_shown, base_asked, own, own_shown, own_asked) -> np.ndarray:
    return ratio_of_means(face - base, own - base)


def _text(face, shown, asked, base, base_shown, base_asked, own, own_shown, own_asked) -> np.ndarray:
    score, best, worst = (
        ratio_of_means(*pair) for pair in ((shown, asked), (base_shown, base_asked), (own_shown, own_asked))
    )
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw of people who were asked nothing: NaN, left out
        return (score - worst) / (best - worst)


def _overall(*arrays: np.ndarray) -> np.ndarray:
    return _face(*arrays) + _text(*arrays)


_NORMALISED = {"face": _face, "text": _text, "overall": _overall}

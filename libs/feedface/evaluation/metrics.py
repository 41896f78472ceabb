"""Figures about faces and prompts as pure functions of numpy arrays.

Letters: I people, S pictures a person, R reference or gallery pictures a person, G other pictures of a person that no
model saw, E embedding width, K training seeds. Every embedding has length 1, so a cosine is a dot product; a picture in
which no face was found has an embedding of zeros, so it is like nobody (cosine 0) and still counts. Functions return
one number per picture or person and leave the mean and its interval to `bootstrap`, because people, not pictures, are
the independent draws.

A scored picture is a dict with `case` (the person) and figures that are numbers, bools or None (not measured): the
lines of `scores.jsonl`. `per_person` and what is built on it read those.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A measured value with the interval [low, high] that covers it at the stated confidence."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {key: round(number, 5) for key, number in asdict(self).items()}


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over people (the last axis): the statistic of most figures."""
    return values.mean(axis=-1)


def ratio_of_means(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Mean of the one over mean of the other, both over people (the last axis)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # the value of a draw without a denominator is NaN
        return numerator.mean(axis=-1) / denominator.mean(axis=-1)


def bootstrap(
    *per_person: np.ndarray,
    statistic: Callable[..., np.ndarray] = mean,
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Figure:
    """Percentile bootstrap over people.

    per_person: arrays [I] in the same order of people; the same people are drawn from each, so a ratio is paired.
    statistic: maps arrays [..., I] to [...].
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in per_person]
    people = len(arrays[0])
    if people == 0 or any(values.shape != (people,) for values in arrays):
        raise ValueError(f"one value per person is needed, got shapes {[values.shape for values in arrays]}")
    rows = np.random.default_rng(seed).integers(0, people, size=(draws, people))
    drawn = statistic(*(values[rows] for values in arrays))
    tail = (1 - confidence) / 2
    # A draw of few people may hold nobody who was asked; such draws are left out.
    low, high = np.nanquantile(drawn, [tail, 1 - tail])
    return Figure(float(statistic(*arrays)), float(low), float(high))


def paired_difference(a: np.ndarray, b: np.ndarray, **options) -> Figure:
    """Mean over people of a - b, values [I] of the same people in the same order; its interval is that of the pairs.

    How much people differ from each other cancels, so it is much narrower than the two figures' own intervals suggest.
    options: those of `bootstrap`.
    """
    return bootstrap(a, b, statistic=lambda first, second: mean(first - second), **options)


def over_seeds(values: np.ndarray, confidence: float = 0.95, draws: int = 4000, seed: int = 0) -> Figure:
    """Mean over training seeds and people with an interval that says what other seeds and other people would give.

    values: [K, I], the same people in the same order for every seed; for a comparison, the differences of two settings
    trained from the same seeds. Seeds and people are drawn independently and every drawn person is taken from every
    drawn seed (the pigeonhole bootstrap of Owen, 2007, for crossed factors). One seed: over people alone. Of a few
    seeds the bootstrap sees a variance that is too small by (K - 1) / K, so the interval is a little narrow for K = 3.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape or not np.isfinite(values).all():
        raise ValueError(f"one finite value per training seed and person is needed, got shape {values.shape}")
    seeds, people = values.shape
    random = np.random.default_rng(seed)
    # How often each is drawn: a mean over drawn rows and columns is then two products instead of draws x K x I values.
    seed_share = random.multinomial(seeds, np.full(seeds, 1 / seeds), size=draws) / seeds
    person_share = random.multinomial(people, np.full(people, 1 / people), size=draws) / people
    drawn = ((seed_share @ values) * person_share).sum(axis=1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Figure(float(values.mean()), float(low), float(high))


def mean_embedding(embeddings: np.ndarray) -> np.ndarray:
    """[I, R, E] -> [I, E]: the direction of the mean, again of length 1."""
    total = embeddings.sum(axis=1)
    return total / np.linalg.norm(total, axis=-1, keepdims=True).clip(1e-12)


def is_nearest(embeddings: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Whether a picture's nearest gallery entry (by cosine) is its person.

    embeddings: [I, S, E], gallery: [I, E], the same people in the same order -> bool [I, S]; chance is 1/I.
    A picture without a face is nobody's, and nobody is nearest to a person without a face in the gallery.
    """
    known = gallery.any(axis=-1)
    cosines = np.where(known, embeddings @ gallery.T, -np.inf)
    own = cosines.argmax(axis=-1) == np.arange(len(gallery))[:, None]
    return own & embeddings.any(axis=-1) & known[:, None]


def nearest_identity(embeddings: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Share of a person's pictures of which `is_nearest` holds: [I, S, E] and [I, E] -> [I] in 0..1."""
    return is_nearest(embeddings, gallery).mean(axis=1)


def mean_cosine(embeddings: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Mean cosine of each picture [..., E] with pictures of one person [R, E] -> [...] in -1..1; 0 without a face.

    The paper's face similarity (App. C). The person's pictures without a face are left out; all of them: NaN.
    """
    known = pictures[pictures.any(axis=-1)]
    if not len(known):
        return np.full(embeddings.shape[:-1], np.nan)
    return embeddings @ known.mean(axis=0)  # the mean commutes with the dot product


def self_similarity(embeddings: np.ndarray) -> float | None:
    """Mean cosine over the pairs of different pictures [S, E]; None for fewer than two that show a face."""
    known = embeddings[embeddings.any(axis=-1)]
    count = len(known)
    if count < 2:
        return None
    cosines = known @ known.T
    return float((cosines.sum() - np.trace(cosines)) / (count * (count - 1)))


def diversity(embeddings: np.ndarray, found: np.ndarray) -> float | None:
    """How different the faces of a person's pictures of one prompt are: 1 - mean pairwise cosine, 0 if all are alike.

    embeddings: [S, E]; found: bool [S], whether there is a face. Pictures without one are left out (two blank pictures
    are not diverse); None for fewer than two faces.
    """
    similarity = self_similarity(embeddings[np.asarray(found, dtype=bool)])
    return None if similarity is None else 1.0 - similarity


def angles(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between vectors of any length [..., E] and [..., E], broadcast, in radians 0..pi; NaN for a zero vector.

    Not by arccos, which turns a rounding error of 1e-7 in the cosine of two equal faces into an angle of 5e-4
    (W. Kahan: 2 atan2(|a - b|, |a + b|) for vectors of length 1).
    """
    with np.errstate(invalid="ignore"):
        a, b = (v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (np.float64(a), np.float64(b)))
    return 2 * np.arctan2(np.linalg.norm(a - b, axis=-1), np.linalg.norm(a + b, axis=-1))


def copy_paste(generated: np.ndarray, reference: np.ndarray, other: np.ndarray, eps: float = 1e-6) -> np.ndarray:
    """How much nearer generated faces are to the picture the model was shown than to another one of the same person.

    (angle(g, other) - angle(g, reference)) / max(angle(other, reference), eps): the copy-paste score of MultiID-Bench
    (Xu et al., "WithAnyone", arXiv 2510.14975, 2025). 1: the face is the reference's, 0: as near to the one as to the
    other, -1: the other's, and between by the triangle inequality of angles.

    generated: [..., E] -> [...]; NaN where no face was found. reference: [E] or [R, E], other: [E] or [G, E], at least
    one face each (ValueError), pictures without a face left out. Of several, each angle is the mean over pictures
    (pairs in the denominator), which keeps 0 the value of a face that is no copy whatever R and G are; a copy of one of
    several references then scores less than 1.
    """
    shown, unseen = (np.atleast_2d(pictures) for pictures in (reference, other))
    shown, unseen = (pictures[pictures.any(axis=-1)] for pictures in (shown, unseen))
    if not len(shown) or not len(unseen):
        raise ValueError("copy-paste needs a face in the reference and in another picture")
    apart = angles(unseen[:, None], shown).mean()
    to_shown, to_unseen = (angles(np.asarray(generated)[..., None, :], p).mean(axis=-1) for p in (shown, unseen))
    return np.clip((to_unseen - to_shown) / max(apart, eps), -1.0, 1.0)


def similarity_to_own(embeddings: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Mean cosine between a person's pictures [I, S, E] and other pictures of that person [I, R, E] -> [I]."""
    return np.einsum("ise,ire->isr", embeddings, pictures).mean(axis=(1, 2))


def similarity_to_strangers(embeddings: np.ndarray, pictures: np.ndarray) -> np.ndarray:
    """Mean cosine between a person's pictures [I, S, E] and pictures of all other people [I, R, E] -> [I]; I >= 2."""
    people = len(pictures)
    if people < 2:
        raise ValueError("strangers need at least two people")
    # The mean over pictures commutes with the dot product: [I, E] @ [E, I] instead of every pair of pictures.
    cosines = embeddings.mean(axis=1) @ pictures.mean(axis=1).T
    return (cosines.sum(axis=1) - np.diagonal(cosines)) / (people - 1)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Fréchet distance of the Gaussians with the means and covariances of features [N, F] and [M, F]; 0 or more.

    |mean difference|^2 + tr(A + B - 2 (A B)^(1/2)), as the FID of Heusel et al. 2017 takes it; with N or M not far
    above F it is too large, so compare it with that of two sets of real pictures of the same sizes.
    """
    means = [features.mean(axis=0, dtype=np.float64) for features in (a, b)]
    covariances = [np.cov(features.astype(np.float64), rowvar=False) for features in (a, b)]
    # The eigenvalues of A B are those of the positive A^(1/2) B A^(1/2): their roots' sum is the trace.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ covariances[1] @ root).clip(min=0)).sum()
    return float(np.square(means[0] - means[1]).sum() + sum(np.trace(c) for c in covariances) - 2 * shared)


def attribute_hits(
    seen: dict[str, np.ndarray], asked: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How often a person's pictures show what their prompts named.

    seen, asked: attribute -> class indices [I, S]; -1 in `asked` marks a picture whose prompt does not name it.
    Returns attribute -> (hits [I], asked for [I]), and their sums under "all"; the share shown is
    `bootstrap(hits, asked_for, statistic=ratio_of_means)`, so a person who was asked nothing weighs nothing.
    """
    named = {name: wanted >= 0 for name, wanted in asked.items()}
    hits = {name: (seen[name] == asked[name]) & there for name, there in named.items()}
    counted = {name: (hits[name].sum(axis=1), there.sum(axis=1)) for name, there in named.items()}
    return _with_sum(counted, len(next(iter(seen.values()), ())))  # cases may ask for nothing


def _with_sum(counted: dict[str, tuple[np.ndarray, np.ndarray]], people: int) -> dict[str, tuple[np.ndarray, ...]]:
    nobody = np.zeros(people, int)
    return counted | {"all": tuple(sum((pair[part] for pair in counted.values()), nobody) for part in range(2))}


def per_person(rows: Iterable[Mapping[str, Any]], key: str, total: bool = False) -> dict[str, float]:
    """case -> mean (or total) of a figure over the person's scored pictures, in the order in which cases first come.

    Pictures where it is None were not measured and are left out, as is a person who has no other pictures. Bools count
    as 0 and 1, a dict of bools (`attributes`) as the share of them that is true; ValueError for NaN.
    """
    sums: dict[str, list[float]] = {}
    for row in rows:
        value = row.get(key)
        if isinstance(value, Mapping):
            value = np.mean([bool(shown) for shown in value.values()]) if value else None
        if value is None:
            continue
        if not np.isfinite(value):
            raise ValueError(f"{key} of a picture of {row['case']} is {value}; a figure is a number, or None")
        entry = sums.setdefault(row["case"], [0.0, 0])
        entry[0] += float(value)
        entry[1] += 1
    return {case: entry[0] if total else entry[0] / entry[1] for case, entry in sums.items()}


def figure_of(rows: Iterable[Mapping[str, Any]], key: str, **options) -> Figure | None:
    """Mean of `per_person` over people with its interval; None where no picture was measured."""
    values = per_person(rows, key)
    return bootstrap(np.array(list(values.values())), **options) if values else None


def paired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Two `per_person` results as arrays [I] of the people whom both hold, in the order of the first."""
    common = [case for case in a if case in b]
    return tuple(np.array([values[case] for case in common], dtype=np.float64) for values in (a, b))


def attribute_counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """`attribute_hits` of scored pictures: attribute -> (hits [I], asked for [I]), and their sums under "all".

    A picture's `attributes` holds, for each attribute its prompt names, whether it shows; None or absent names nothing.
    """
    people: dict[str, int] = {}
    counted: dict[str, Counter] = {}
    for row in rows:
        person = people.setdefault(row["case"], len(people))
        for name, shown in (row.get("attributes") or {}).items():
            counted.setdefault(name, Counter()).update({(person, 0): bool(shown), (person, 1): 1})
    if not counted:
        return {}
    found = {
        name: tuple(np.array([counts[person, part] for person in people.values()]) for part in range(2))
        for name, counts in counted.items()
    }
    return _with_sum(found, len(people))

"""Figures about faces and prompts as pure functions of numpy arrays.

Letters: I people, S pictures a person, R reference or gallery pictures a person, E embedding width.
Every embedding has length 1, so a cosine is a dot product. Functions return one number per person and leave the mean
and its interval to `bootstrap`, because people, not pictures, are the independent draws.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass

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


def mean_embedding(embeddings: np.ndarray) -> np.ndarray:
    """[I, R, E] -> [I, E]: the direction of the mean, again of length 1."""
    total = embeddings.sum(axis=1)
    return total / np.linalg.norm(total, axis=-1, keepdims=True).clip(1e-12)


def nearest_identity(embeddings: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Share of a person's pictures whose nearest gallery entry (by cosine) is that person.

    embeddings: [I, S, E], gallery: [I, E], the same people in the same order -> [I] in 0..1; chance is 1/I.
    """
    nearest = (embeddings @ gallery.T).argmax(axis=-1)
    return (nearest == np.arange(len(gallery))[:, None]).mean(axis=1)


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


def attribute_hits(
    seen: dict[str, np.ndarray], asked: dict[str, np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How often a person's pictures show what their prompts named.

    seen, asked: attribute -> class indices [I, S]; -1 in `asked` marks a picture whose prompt does not name it.
    Returns attribute -> (hits [I], asked for [I]), and their sums under "all"; the share shown is
    `bootstrap(hits, asked_for, statistic=ratio_of_means)`, so a person who was asked nothing weighs nothing.
    """
    counted = {}
    for name, wanted in asked.items():
        named = wanted >= 0
        counted[name] = (((seen[name] == wanted) & named).sum(axis=1), named.sum(axis=1))
    counted["all"] = tuple(np.sum([pair[part] for pair in counted.values()], axis=0) for part in range(2))
    return counted

"""Which of the faces in a picture is the person's.

Letters: P pictures, F faces in all of them, D numbers of an embedding.
"""

import numbers
from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np

from feedface.common.errors import UserError

CHOICES = ("most-like", "largest", "left", "right")


class Found(Protocol):
    """A face in a picture: box x0, y0, x1, y1 in pixels; embedding [D] of unit length, or None."""

    box: Sequence[float]
    embedding: np.ndarray | None


def check_choice(choice: object) -> str | int:
    """One of `CHOICES`, or N = 1, 2, …: the N-th from the left; `UserError` for anything else."""
    if isinstance(choice, str) and choice.isdecimal() and len(choice) < 5:
        choice = int(choice)
    if isinstance(choice, numbers.Integral) and not isinstance(choice, bool) and 0 < choice < 10_000:
        return int(choice)
    if choice not in CHOICES:
        raise UserError(f"--face {str(choice)[:40]}: use {', '.join(CHOICES)}, or a number: 1 is the leftmost face")
    return choice


def choose(names: Sequence[str], found: Sequence[Sequence[Found]], choice: str | int, threshold: float) -> list[int]:
    """The number of the face chosen in each named picture, of its faces as they come, the largest first.

    A number takes the only face where there is one; `UserError` where there are several, but fewer. "most-like":
    `threshold` is the cosine of embeddings from which two faces are one person's; see `most_alike`.
    """
    if choice == "most-like":
        return most_alike(found, threshold)
    if choice == "largest":
        return [0] * len(found)
    chosen = []
    for name, faces in zip(names, found, strict=True):
        from_left = sorted(range(len(faces)), key=lambda i, faces=faces: faces[i].box[0] + faces[i].box[2])
        place = {"left": 1, "right": len(faces)}.get(choice, choice)
        if 1 < len(faces) < place:
            raise UserError(f"--face {choice}: {name} shows {len(faces)} faces only")
        chosen.append(from_left[min(place, len(faces)) - 1])
    return chosen


def most_alike(found: Sequence[Sequence[Found]], threshold: float) -> list[int]:
    """The person who is in most of the pictures: in each the face that is most like theirs.

    Of several who are in equally many (two friends in all of them) the one whose faces are larger.
    """
    embeddings = _stacked([face.embedding for faces in found for face in faces])  # [F, D]
    cosines = embeddings @ embeddings.T
    sizes = np.concatenate([_relative_sizes(faces) for faces in found])
    starts = np.cumsum([0, *map(len, found)])
    likeness, faces = [], []  # of each face to the most alike one in each picture, and which that is: [F, P] in the end
    for start, stop in pairwise(starts):
        inside = cosines[:, start:stop].copy()
        inside[np.arange(start, stop), np.arange(stop - start)] = np.inf  # in its own picture a face is itself
        faces.append(inside.argmax(1))
        likeness.append(np.minimum(inside.max(1), 1))
    likeness, faces = np.stack(likeness, 1), np.stack(faces, 1)
    there = likeness >= threshold
    size = (sizes[faces + starts[:-1]] * there).mean(1)
    person = max(range(len(faces)), key=lambda i: (there[i].sum(), size[i], likeness[i].mean()))
    return faces[person].tolist()


def unlike(embeddings: Sequence[np.ndarray | None], threshold: float) -> dict[int, float]:
    """Which of these faces, said to be one person's, are not like the others: number -> mean cosine with those.

    The others are the most that are alike; where no two are, all are named. None: nothing is known of a face.
    """
    known = [i for i, embedding in enumerate(embeddings) if embedding is not None]
    if len(known) < 2:
        return {}
    found = _stacked([embeddings[i] for i in known])
    cosines = found @ found.T
    np.fill_diagonal(cosines, 1)
    alike = cosines >= threshold
    middle = max(range(len(known)), key=lambda i: (alike[i].sum(), cosines[i].mean()))
    group = alike[middle] if alike[middle].sum() > 1 else np.full(len(known), True)
    others = group & ~np.eye(len(known), dtype=bool)  # [P, P]
    means = (cosines * others).sum(1) / others.sum(1)
    return {known[i]: round(float(means[i]), 2) for i in range(len(known)) if means[i] < threshold}


def _stacked(embeddings: Sequence[np.ndarray | None]) -> np.ndarray:
    """[F, D]; zeros, like nobody, where there is none."""
    width = next((len(embedding) for embedding in embeddings if embedding is not None), 1)
    return np.stack([np.zeros(width) if each is None else np.asarray(each, np.float64) for each in embeddings])


def _relative_sizes(faces: Sequence[Found]) -> np.ndarray:
    """Areas, the largest in the picture being 1."""
    boxes = np.array([face.box for face in faces], np.float64)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas / areas.max()

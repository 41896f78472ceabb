"""The paper's Table 1: scores normalised per case as in its Appendix C, their sum, and what could not be measured.

    score_norm = (score - score_min) / (score_max - score_min)

for the two columns that are not CLIP's. The bounds of a case come from its references and from base pictures: what the
base model draws for the case's prompts without the face (20 a prompt in the paper). The face is best where it is as
like the references as these are like each other, and worst where it is no more like them than the base pictures; the
text is best where the base model is and worst where the references are, which know nothing of the prompt.

A normalised score may leave 0..1: a copy of the reference is more like it than another picture of the person is.
The table's columns are `COLUMNS`; every per-case argument is a dict case -> value, where an absent case or None means
not measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from feedface.evaluation.metrics import Figure, bootstrap, mean_cosine, self_similarity

COLUMNS = ("face", "clip_face", "text", "clip_text")  # Table 1: Insightface, CLIP, ImageReward, CLIP
NAMED = 3  # cases that are named in a reason; the others are counted

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Bounds:
    """The scores of a case that become 0 and 1; None where not measured, and then `reason` says why."""

    minimum: float | None = None
    maximum: float | None = None
    reason: str | None = None

    @property
    def unusable(self) -> str | None:
        """Why nothing can be normalised by these bounds, or None if it can."""
        if self.minimum is None or self.maximum is None:
            return self.reason or "the bounds were not measured"
        if not self.maximum > self.minimum:
            return f"its maximum {self.maximum:.3f} is not above its minimum {self.minimum:.3f}"
        return None


def face_bounds(references: np.ndarray, base: np.ndarray) -> Bounds:
    """Bounds of the face similarity of one case.

    references: embeddings [R, E] of the pictures shown to the model; base: of the base pictures [B, E], zeros where no
    face was found, which counts as similarity 0 as it does for a scored picture. Maximum: mean cosine of the pairs of
    references; of a single one there is none. Minimum: mean cosine of base pictures and references.
    """
    maximum = self_similarity(references)
    faces = int(references.any(axis=-1).sum())
    minimum = float(mean_cosine(base, references).mean()) if len(base) and faces else None
    reason = None if minimum is not None else "it has no base pictures"
    if maximum is None:
        reason = f"how alike its references are is unknown, as it has {faces} with a face and two are needed"
    return Bounds(minimum, maximum, reason)


def text_bounds(base: np.ndarray, references: np.ndarray) -> Bounds:
    """Bounds of the text score of one case, from the scores of the same prompts.

    base: of the base pictures, each with its prompt (any shape); references: of every reference with every prompt.
    """
    scores = {"references": references, "base pictures": base}
    means = [float(np.mean(values, dtype=np.float64)) if np.size(values) else None for values in scores.values()]
    missing = next((name for name, mean in zip(scores, means, strict=True) if mean is None), None)
    return Bounds(*means, None if missing is None else f"it has no scored {missing}")


def normalise(score: float | None, bounds: Bounds) -> float | None:
    """(score - minimum) / (maximum - minimum); None without a score or where `bounds.unusable` says why."""
    if score is None or bounds.unusable:
        return None
    return (score - bounds.minimum) / (bounds.maximum - bounds.minimum)


def overall(row: Mapping[str, float | Figure | None]) -> float | None:
    """Sum of the four columns of Table 1 (DreamBooth 2.09, FeedFace 2.17 there); None if one of them is missing."""
    cells = [row.get(name) for name in COLUMNS]
    if any(cell is None for cell in cells):
        return None
    return float(sum(cell.value if isinstance(cell, Figure) else cell for cell in cells))


def table_row(
    face: Values,
    clip_face: Values,
    text: Values,
    clip_text: Values,
    face_bounds: Mapping[str, Bounds],
    text_bounds: Mapping[str, Bounds],
    seconds: Values | None = None,
) -> dict[str, Figure | None]:
    """A system's row of Table 1: `COLUMNS`, "overall" and "seconds", each with its interval over people, or None.

    The scores are means of a case's pictures (`metrics.per_person`), face and text before normalisation. A case that
    cannot be normalised is left out of that column alone (`left_out` names it). "overall" is the sum of the columns as
    printed, its interval that of the sum for the same drawn people. "seconds" is the total of all cases, from each
    case's total.
    """
    face, text = (
        {case: normalise(score, bounds.get(case, Bounds())) for case, score in scores.items()}
        for scores, bounds in ((face, face_bounds), (text, text_bounds))
    )
    columns = dict(zip(COLUMNS, (face, clip_face, text, clip_text), strict=True))
    row = {name: _figure(values, _mean) for name, values in columns.items()}
    row["overall"] = None
    if overall(row) is not None:
        cases = sorted(set().union(*columns.values()))
        arrays = [
            np.array([values.get(case) for case in cases], np.float64) for values in columns.values()
        ]  # None: NaN
        row["overall"] = bootstrap(*arrays, statistic=lambda *drawn: sum(map(_mean, drawn)))
    row["seconds"] = _figure(seconds or {}, lambda values: values.sum(axis=-1))
    return row


def left_out(scores: Values, bounds: Mapping[str, Bounds]) -> str | None:
    """One line on the cases that a normalised column leaves out and why; None if it holds all of them."""
    why = {
        case: "it was not measured" if score is None else bounds.get(case, Bounds()).unusable
        for case, score in scores.items()
    }
    why = {case: reason for case, reason in why.items() if reason}
    if not why:
        return None if scores else "no case was measured"
    named = "; ".join(f"{case}: {reason}" for case, reason in list(why.items())[:NAMED])
    more = f"; and {len(why) - NAMED} more" if len(why) > NAMED else ""
    return f"{len(why)} of {len(scores)} cases cannot be normalised ({named}{more})"


def _figure(values: Values, statistic) -> Figure | None:
    measured = [value for value in values.values() if value is not None]
    return bootstrap(np.array(measured), statistic=statistic) if measured else None


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the people (the last axis) who have a value; NaN where nobody has one."""
    known = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1)

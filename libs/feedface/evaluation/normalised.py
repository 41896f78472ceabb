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

    minimum: float | None
    maximum: float | None
    reason: str | None = None

    @property
    def unusable(self) -> str | None:
        """Why nothing can be normalised by these bounds, or None if it can."""
        if self.minimum is None or self.maximum is None:
            return self.reason or "the bounds were not measured"
        if not self.maximum > self.minimum:
            return f"its maximum {self.maximum:.3f} is not above its minimum {self.minimum:.3f}"
        return None

    def as_dict(self) -> dict[str, float | str | None]:
        return {"minimum": self.minimum, "maximum": self.maximum, "reason": self.unusable}


def face_bounds(references: np.ndarray, base: np.ndarray) -> Bounds:
    """Bounds of the face similarity of one case.

    references: embeddings [R, E] of the pictures shown to the model; base: of the base pictures [B, E], zeros where no
    face was found, which counts as similarity 0 as it does for a scored picture. Maximum: mean cosine of the pairs of
    references; of a single one there is none. Minimum: mean cosine of base pictures and references.
    """
    maximum = self_similarity(references)
    faces = int(references.any(axis=-1).sum())
    minimum = float(mean_cosine(base, references).mean()) if len(base) and faces else None
    reason = None
    if maximum is None:
        reason = f"how alike its references are is unknown, as it has {faces} with a face and two are needed"
    elif minimum is None:
        reason = "it has no base pictures"
    return Bounds(minimum, maximum, reason)


def text_bounds(base: np.ndarray, references: np.ndarray) -> Bounds:
    """Bounds of the text score of one case, from the scores of the same prompts.

    base: of the base pictures, each with its prompt (any shape); references: of every reference with every prompt.
    """
    base, references = np.asarray(base, dtype=np.float64), np.asarray(references, dtype=np.float64)
    minimum, maximum = (float(scores.mean()) if scores.size else None for scores in (references, base))
    missing = "references" if minimum is None else "base pictures"
    return Bounds(minimum, maximum, f"it has no scored {missing}" if None in (minimum, maximum) else None)


def normalise(score: float | None, bounds: Bounds) -> float | None:
    """(score - minimum) / (maximum - minimum); None without a score or where `bounds.unusable` says why."""
    if score is None or bounds.unusable:
        return None
    return (score - bounds.minimum) / (bounds.maximum - bounds.minimum)


def normalise_cases(scores: Values, bounds: Mapping[str, Bounds]) -> dict[str, float | None]:
    """`normalise` of every case; None for a case without bounds."""
    unknown = Bounds(None, None)
    return {case: normalise(score, bounds.get(case, unknown)) for case, score in scores.items()}


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
    **options,
) -> dict[str, Figure | None]:
    """A system's row of Table 1: `COLUMNS`, "overall" and "seconds", each with its interval over people, or None.

    The scores are means of a case's pictures (`metrics.per_person`), face and text before normalisation. A case that
    cannot be normalised is left out of that column alone (`left_out` names it). "overall" is the sum of the columns as
    printed, its interval that of the sum for the same drawn people. "seconds" is the total of all cases, from each
    case's total.
    options: those of `metrics.bootstrap`.
    """
    scored = (normalise_cases(face, face_bounds), clip_face, normalise_cases(text, text_bounds), clip_text)
    columns = dict(zip(COLUMNS, scored, strict=True))
    row = {name: _figure(values, _mean, options) for name, values in columns.items()}
    row["overall"] = None
    if overall(row) is not None:
        cases = sorted(set().union(*columns.values()))
        arrays = [_array(values, cases) for values in columns.values()]
        row["overall"] = bootstrap(*arrays, statistic=_sum_of_means, **options)
    row["seconds"] = _figure(seconds or {}, lambda values: values.sum(axis=-1), options)
    return row


def left_out(scores: Values, bounds: Mapping[str, Bounds]) -> str | None:
    """One line on the cases that a normalised column leaves out and why; None if it holds all of them."""
    unknown = Bounds(None, None)
    why: dict[str, str] = {}
    for case, score in scores.items():
        reason = "it was not measured" if score is None else bounds.get(case, unknown).unusable
        if reason:
            why[case] = reason
    if not why:
        return None if scores else "no case was measured"
    named = "; ".join(f"{case}: {reason}" for case, reason in list(why.items())[:NAMED])
    more = f"; and {len(why) - NAMED} more" if len(why) > NAMED else ""
    return f"{len(why)} of {len(scores)} cases cannot be normalised ({named}{more})"


def _array(values: Values, cases: list[str]) -> np.ndarray:
    """[I] in the order of `cases`, NaN where not measured."""
    return np.array([np.nan if values.get(case) is None else values[case] for case in cases], dtype=np.float64)


def _figure(values: Values, statistic, options: Mapping) -> Figure | None:
    measured = [value for value in values.values() if value is not None]
    return bootstrap(np.array(measured), statistic=statistic, **options) if measured else None


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the people (the last axis) who have a value; NaN where nobody has one."""
    known = np.isfinite(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(known, values, 0.0).sum(axis=-1) / known.sum(axis=-1)


def _sum_of_means(*columns: np.ndarray) -> np.ndarray:
    return sum(_mean(column) for column in columns)

"""From scored pictures to scores.json: figures with intervals, the paper's normalisation, differences of systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feedface.evaluation.judging import Judges
from feedface.evaluation.metrics import (
    Figure,
    attribute_counts,
    bootstrap,
    figure_of,
    paired,
    paired_difference,
    per_person,
    ratio_of_means,
)
from feedface.evaluation.normalised import Bounds, left_out, table_row

FIGURES = (
    "nearest", "face_reference", "face_other", "face_strangers", "copy_paste", "clip_face", "clip_text",
    "image_reward", "background_pixels", "background_clip", "seconds",
)  # fmt: skip
COMPARED = ("nearest", "face_reference", "face_other", "copy_paste", "clip_face", "clip_text", "image_reward",
            "attributes", "background_pixels", "background_clip", "seconds")  # fmt: skip
NO_OTHERS = "no case has pictures that are no references"
ONE_PERSON = "needs at least two people"


@dataclass(frozen=True)
class SystemRun:
    """A system that was drawn and scored.

    Attributes:
        about: what `Artist.describe` says.
        folder: holds a folder a case with its pictures and scores.json.
        bounds_from: the folder of base pictures whose scores.json hold the bounds; None for all but the first system.
        has_base: whether it was compared to itself without a face.
    """

    name: str
    about: dict
    folder: Path
    bounds_from: Path | None
    has_base: bool


Bounded = Mapping[str, Mapping[str, Bounds]]  # "face", "text" -> case -> its bounds


def summarise(
    rows: Sequence[Mapping],
    systems: Sequence[SystemRun],
    diversity: Mapping[str, Mapping[str, float]],
    bounds: Bounded,
    judges: Judges,
    about: Mapping,
    cases: Mapping,
) -> dict:
    """What scores.json holds.

    diversity: system -> case -> how different its faces are. about: "protocol", "command", "cases"; cases: more of
    the latter.
    """
    of_system = {system.name: [row for row in rows if row["system"] == system.name] for system in systems}
    summary = {key: value for key, value in about.items() if key != "cases"}
    summary["judge"] = judges.describe()
    summary["cases"] = {"count": len(cases["people"]), **about.get("cases", {}), **cases}
    summary["systems"] = {
        system.name: _system(system, of_system[system.name], diversity[system.name], bounds, judges)
        for system in systems
    }
    drawn = [system.name for system in systems if system.about["model"]["digest"] is not None]
    summary["comparisons"] = {
        f"{name} - {drawn[0]}": _differences(of_system[name], of_system[drawn[0]]) for name in drawn[1:]
    }
    return summary


def _system(
    system: SystemRun, rows: Sequence[Mapping], diversity: Mapping[str, float], bounds: Bounded, judges: Judges
) -> dict:
    figures = {key: figure_of(rows, key) for key in FIGURES}
    figures["diversity"] = bootstrap(np.array(list(diversity.values()))) if diversity else None
    for name, (hits, asked) in attribute_counts(rows).items():
        figures[f"attribute_{name}"] = bootstrap(hits, asked, statistic=ratio_of_means)
    seconds = _sums(rows, "seconds")
    peaks = [row["peak_memory_mib"] for row in rows if row["peak_memory_mib"] is not None]
    entry = {
        **system.about,
        "figures": {key: figure.as_dict() for key, figure in figures.items() if figure is not None},
        "not_measured": {key: _why(key, system, judges) for key, figure in figures.items() if figure is None},
        "seconds": round(sum(seconds.values()), 3) if seconds else None,
        "peak_memory_mib": round(max(peaks), 1) if peaks else None,
        "detection_rate": figure_of(rows, "face_found").as_dict(),
    }
    if bounds:
        entry["normalised"] = _normalised(rows, seconds, bounds)
    return entry


def _normalised(rows: Sequence[Mapping], seconds: Mapping[str, float], bounds: Bounded) -> dict:
    """The row of the paper's Table 1, and why a column of it is missing or lacks cases."""
    face = per_person(rows, "face_reference")
    # In the mini world nothing is measured by ImageReward; the share of attributes that show stands in its place.
    measure = "attributes" if any(row["attributes"] for row in rows) else "image_reward"
    text = per_person(rows, measure)
    row = table_row(
        face,
        per_person(rows, "clip_face"),
        text,
        per_person(rows, "clip_text"),
        bounds["face"],
        bounds["text"],
        seconds,
    )
    reasons = {"face": left_out(face, bounds["face"]), "text": left_out(text, bounds["text"])}
    return {
        **{key: figure.as_dict() if isinstance(figure, Figure) else None for key, figure in row.items()},
        "text_measure": measure,
        "left_out": {key: reason for key, reason in reasons.items() if reason is not None},
    }


def _differences(rows: Sequence[Mapping], others: Sequence[Mapping]) -> dict[str, dict]:
    """Of the people who have both."""
    found = {}
    for key in COMPARED:
        a, b = paired(per_person(rows, key), per_person(others, key))
        if len(a):
            found[key] = paired_difference(a, b).as_dict()
    return found


def _sums(rows: Sequence[Mapping], key: str) -> dict[str, float]:
    sums: dict[str, float] = {}
    for row in rows:
        if row[key] is not None:
            sums[row["case"]] = sums.get(row["case"], 0.0) + row[key]
    return sums


def _why(key: str, system: SystemRun, judges: Judges) -> str:
    """Why a metric has no figure."""
    if key in judges.absent:
        return judges.absent[key]
    if key in ("background_pixels", "background_clip"):
        if not system.has_base:
            return "it was not drawn without a face on the same seeds"
        return "no pair of pictures has a face in both and something beside the faces"
    reasons = {
        "face_other": NO_OTHERS,
        "copy_paste": f"{NO_OTHERS}, or no face was found",
        "nearest": ONE_PERSON,
        "face_strangers": ONE_PERSON,
        "diversity": "needs at least two pictures a prompt that show a face (--samples 2)",
        "seconds": "no model drew these pictures",
    }
    return reasons.get(key, "no picture has it")

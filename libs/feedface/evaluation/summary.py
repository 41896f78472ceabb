"""From scored pictures to scores.json: figures with intervals, the paper's normalisation, differences of systems."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feedface.evaluation.columns import FIGURES, NO_PAIR, column_of
from feedface.evaluation.judging import Judges
from feedface.evaluation.metrics import (
    attribute_counts,
    bootstrap,
    figure_of,
    paired,
    paired_difference,
    per_person,
    ratio_of_means,
)
from feedface.evaluation.normalised import Bounds, left_out, table_row


@dataclass(frozen=True)
class SystemRun:
    """A system that was drawn and scored.

    Attributes:
        about: what `Generator.describe` says.
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
    return {
        **about,
        "judge": judges.describe(),
        "cases": {"count": len(cases["people"]), **about.get("cases", {}), **cases},
        "systems": {
            system.name: _system(system, of_system[system.name], diversity[system.name], bounds, judges)
            for system in systems
        },
        "comparisons": {f"{a} - {b}": _differences(of_system[a], of_system[b]) for a, b in _pairs(systems)},
    }


def _pairs(systems: Sequence[SystemRun]) -> list[tuple[str, str]]:
    """Each model with the first one, and with the first that is shown as many references."""
    drawn = [system for system in systems if system.about["model"]["digest"] is not None]
    shown = {system.name: system.about["settings"].get("references") for system in drawn}
    pairs: dict[tuple[str, str], None] = {}
    for name, count in shown.items():
        same = next(other for other in shown if shown[other] == count)
        pairs |= {(name, other): None for other in (drawn[0].name, same) if other != name}
    return list(pairs)


def _system(
    system: SystemRun, rows: Sequence[Mapping], diversity: Mapping[str, float], bounds: Bounded, judges: Judges
) -> dict:
    figures = {column.key: figure_of(rows, column.key) for column in FIGURES if column.averaged}
    figures["diversity"] = bootstrap(np.array(list(diversity.values()))) if diversity else None
    for name, (hits, asked) in attribute_counts(rows).items():
        figures[f"attribute_{name}"] = bootstrap(hits, asked, statistic=ratio_of_means)
    seconds = per_person(rows, "seconds", total=True)
    peaks = [row["peak_memory_mib"] for row in rows if row["peak_memory_mib"] is not None]
    entry = {
        **system.about,
        "figures": {key: figure.as_dict() for key, figure in figures.items() if figure is not None},
        "not_measured": {key: _why(key, system, judges) for key, figure in figures.items() if figure is None},
        "seconds": round(sum(seconds.values()), 3) if seconds else None,
        "peak_memory_mib": round(max(peaks), 1) if peaks else None,
        "detection_rate": figure_of(rows, "face_found").as_dict(),
    }
    return entry | ({"normalised": _normalised(rows, seconds, bounds)} if bounds else {})


def _normalised(rows: Sequence[Mapping], seconds: Mapping[str, float], bounds: Bounded) -> dict:
    """The row of the paper's Table 1, and why a column of it is missing or lacks cases."""
    # In the mini world nothing is measured by ImageReward; the share of attributes that show stands in its place.
    measure = "attributes" if any(row["attributes"] for row in rows) else "image_reward"
    face, text = per_person(rows, "face_reference"), per_person(rows, measure)
    clip_face, clip_text = (per_person(rows, key) for key in ("clip_face", "clip_text"))
    row = table_row(face, clip_face, text, clip_text, bounds["face"], bounds["text"], seconds)
    reasons = {"face": left_out(face, bounds["face"]), "text": left_out(text, bounds["text"])}
    return {
        **{key: None if figure is None else figure.as_dict() for key, figure in row.items()},
        "text_measure": measure,
        "left_out": {key: reason for key, reason in reasons.items() if reason is not None},
    }


def _differences(rows: Sequence[Mapping], others: Sequence[Mapping]) -> dict[str, dict]:
    """Of the people who have both."""
    compared = [column.key for column in FIGURES if column.compared]
    pairs = {key: paired(per_person(rows, key), per_person(others, key)) for key in compared}
    return {key: paired_difference(*pair).as_dict() for key, pair in pairs.items() if len(pair[0])}


def _why(key: str, system: SystemRun, judges: Judges) -> str:
    """Why a metric has no figure."""
    absent = column_of(key).absent
    if absent == NO_PAIR and not system.has_base:
        absent = "it was not drawn without a face on the same seeds"
    return judges.absent.get(key, absent)

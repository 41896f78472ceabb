"""What an evaluation left in its folder, read for the report: scores.json, scores.jsonl and the pictures.

scores.json is described in `feedface.evaluation.report`. Nothing is measured here.
"""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required

import numpy as np
from PIL import Image
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from feedface.common.errors import UserError
from feedface.common.images import open_image
from feedface.common.reading import read_text
from feedface.common.saving import safe_name
from feedface.common.validation import OPEN, Finite, parse_line_as, read_json_as
from feedface.evaluation.metrics import Figure

NORMALISED = "normalised."
SAME = {"attribute_all": "attributes", "face_found": "detection_rate"}  # two names of one figure


class _Normalised(TypedDict, total=False):
    """Its columns of the paper's Table 1, as far as they are looked at by name."""

    __pydantic_config__ = OPEN
    left_out: dict | None
    text_measure: str | None


class _System(TypedDict, total=False):
    """What scores.json says of a system, as far as it is looked at by name."""

    __pydantic_config__ = OPEN
    model: dict | None
    settings: dict | None
    figures: dict | None
    not_measured: dict | None
    normalised: _Normalised | None


class _Person(TypedDict, total=False):
    __pydantic_config__ = OPEN
    references: list[str] | None
    prompts: list[str] | None
    notices: list[str] | None


class _Cases(TypedDict, total=False):
    __pydantic_config__ = OPEN
    failed: dict[str, str] | None
    people: dict[str, _Person] | None


class _Scores(TypedDict, total=False):
    __pydantic_config__ = OPEN
    systems: Required[dict[str, _System]]
    comparisons: dict[str, dict] | None
    cases: _Cases | None


class _Row(TypedDict, total=False, extra_items=bool | int | Finite | dict[str, Any] | None):
    """A scored picture: where it is, and figures, or the share of what a figure counts."""

    __pydantic_config__ = OPEN
    system: Required[str]
    case: Required[str]
    prompt: int | str | None
    sample: int | None
    seed: int | None
    file: str


_SCORES, _ROW = TypeAdapter(_Scores), TypeAdapter(_Row)


@dataclass(frozen=True)
class Results:
    out: Path
    scores: dict  # content of scores.json
    rows: list[dict]  # of scores.jsonl, one a scored picture

    @property
    def systems(self) -> dict[str, dict]:
        return self.scores["systems"]

    @property
    def drawn(self) -> set[str]:
        """Systems that are models; the others are pictures that no model drew, for comparison."""
        return {name for name, entry in self.systems.items()
                if (entry.get("model") or {"digest": ""}).get("digest") is not None}  # fmt: skip

    @property
    def people(self) -> list[str]:
        """Cases with a scored picture, in the order in which they come."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    def figure(self, system: str, key: str) -> Figure | None:
        """A figure of a system by its key in scores.jsonl (or attribute_NAME, diversity, detection_rate, …)."""
        entry = self.systems[system]
        place = entry if key in ("detection_rate", "peak_memory_mib") else entry.get("figures") or {}
        names = [stored for stored, known in SAME.items() if known == key]
        return next(filter(None, (as_figure(place.get(name)) for name in [key, *names])), None)

    def keys(self, system: str) -> list[str]:
        """Of the system's figures."""
        return [SAME.get(key, key) for key in self.systems[system].get("figures") or {}]

    def reasons(self, system: str) -> dict[str, str]:
        """key -> why it was not measured, or not of everybody; NORMALISED before the key for a column of Table 1."""
        entry = self.systems[system]
        found = {SAME.get(key, key): str(reason) for key, reason in (entry.get("not_measured") or {}).items()}
        left_out = (entry.get("normalised") or {}).get("left_out") or {}
        return found | {NORMALISED + key: str(reason) for key, reason in left_out.items()}

    def normalised(self, system: str, key: str) -> Figure | None:
        """A column of Table 1."""
        return as_figure((self.systems[system].get("normalised") or {}).get(key))

    @property
    def cases(self) -> dict:
        """What scores.json says of the cases together; of each one under "people"."""
        return self.scores.get("cases") or {}

    def case(self, name: str) -> dict:
        """What scores.json says of a case: {"references", "prompts", …}, or nothing."""
        return (self.cases.get("people") or {}).get(name) or {}

    def prompt(self, row: dict) -> str:
        """The text of a scored picture's prompt, "" where it is not told."""
        prompts, number = self.case(row["case"]).get("prompts") or [], row.get("prompt")
        if isinstance(number, int) and 0 <= number < len(prompts):
            return str(prompts[number])
        return number if isinstance(number, str) else ""

    def references(self, case: str) -> list[Path]:
        """The pictures of a person that were shown to the systems: those listed, or else those kept in references/."""
        listed = [self.out / str(path) for path in self.case(case).get("references") or []]
        kept = sorted((self.out / "references" / safe_name(case)).glob("*.png"))
        return listed or kept

    def picture(self, row: dict) -> Image.Image | None:
        return open_picture(self.out / str(row.get("file")))

    def reference(self, case: str) -> Image.Image | None:
        """The first reference that can be read."""
        return next(filter(None, map(open_picture, self.references(case))), None)

    def same_seed(self, case: str, choice: int = 0) -> dict[str, dict]:
        """system -> its row for one prompt and seed of a case that as many systems as possible share.

        choice: which of these, counted round. Empty for a case without pictures.
        """
        places: dict[tuple, dict[str, dict]] = {}
        for row in self.rows:
            if row["case"] == case:
                places.setdefault((row.get("prompt"), row.get("sample"), row.get("seed")), {})[row["system"]] = row
        most = max((len(found) for found in places.values()), default=0)
        shared = [found for found in places.values() if len(found) == most]
        return shared[choice % len(shared)] if shared else {}

    def pictures_a_system(self) -> dict[str, int]:
        counts = Counter(row["system"] for row in self.rows)
        return {name: counts[name] for name in self.systems}


def load_results(out: Path) -> Results:
    """Read scores.json and scores.jsonl of an evaluation's folder. `UserError` names what is missing or damaged."""
    out = Path(out)
    for name in ("scores.json", "scores.jsonl"):
        if not (out / name).exists():
            raise UserError(f"{out / name}: no such file; run evaluate.py with --out {out} first")
    scores = read_json_as(out / "scores.json", _SCORES)
    if not scores["systems"]:
        raise UserError(f"{out / 'scores.json'}: has no systems; is it of evaluate.py?")
    rows = []
    path = out / "scores.jsonl"
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            rows.append(parse_line_as(line, _ROW, f"{path}:{number}"))
    # Pictures of systems that were evaluated into this folder once and are not compared now.
    return Results(out, scores, [row for row in rows if row["system"] in scores["systems"]])


def as_figure(value: object) -> Figure | None:
    """{value, low, high}, or a number, whose interval is then not known (NaN); None for whatever is no figure."""
    if not isinstance(value, dict):
        value = {"value": value}
    middle, low, high = (_number(value.get(key)) for key in ("value", "low", "high"))
    return Figure(middle, low, high) if math.isfinite(middle) else None


def _number(value: object) -> float:
    """NaN for whatever is no number."""
    try:
        return float(value) if isinstance(value, bool | int | float) else math.nan
    except OverflowError:
        return math.nan


def spread(items: list, count: int) -> list:
    """At most `count` of them, evenly from all."""
    if len(items) <= count:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, count)]


def open_picture(path: Path) -> Image.Image | None:
    """RGB; None for a picture that is gone or damaged: the report then says so in its place."""
    try:
        with open_image(path) as file:
            return file.convert("RGB")
    except UserError:
        return None

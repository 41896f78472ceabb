"""What an evaluation left in its folder, read for the report: scores.json, scores.jsonl and the pictures.

scores.json is described in `feedface.evaluation.report`. Nothing is measured here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required

import numpy as np
from PIL import Image
from pydantic import BaseModel, TypeAdapter, model_validator
from typing_extensions import TypedDict

from feedface.common.errors import UserError
from feedface.common.images import open_image
from feedface.common.reading import read_text
from feedface.common.saving import safe_name
from feedface.common.validation import OPEN, Finite, parse_line_as, read_json_as
from feedface.evaluation.columns import NORMALISED
from feedface.evaluation.metrics import Figure

SAME = {"attribute_all": "attributes", "face_found": "detection_rate"}  # two names of one figure


class _Object(BaseModel):
    """An object, described as far as it is looked at by name; what is null counts as absent."""

    model_config = OPEN

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class Normalised(_Object):
    """A system's row of the paper's Table 1."""

    left_out: dict = {}
    text_measure: str | None = None


class SystemScores(_Object):
    model: dict = {}
    settings: dict = {}
    figures: dict = {}
    not_measured: dict = {}
    normalised: Normalised = Normalised()
    seconds: Any = None
    detection_rate: Any = None
    peak_memory_mib: Any = None


class Person(_Object):
    references: list[str] = []
    prompts: list[str] = []
    notices: list[str] = []


class Cases(_Object):
    failed: dict[str, str] = {}
    people: dict[str, Person] = {}


class Scores(_Object):
    systems: dict[str, SystemScores]
    comparisons: dict[str, dict] = {}
    cases: Cases = Cases()
    protocol: Any = ""
    command: Any = None
    judge: Any = None


class _Row(TypedDict, total=False, extra_items=bool | int | Finite | dict[str, Any] | None):
    """A scored picture: where it is, and figures, or the share of what a figure counts."""

    __pydantic_config__ = OPEN
    system: Required[str]
    case: Required[str]
    prompt: int | str | None
    sample: int | None
    seed: int | None
    file: str


_SCORES, _ROW = TypeAdapter(Scores), TypeAdapter(_Row)


@dataclass(frozen=True)
class Results:
    """Attributes:
    rows: of scores.jsonl, one a scored picture.
    figures: system -> key (see `columns`) -> figure; NORMALISED stands before the key of a column of Table 1.
    reasons: system -> key -> why it was not measured, or not of everybody.
    """

    out: Path
    scores: Scores
    rows: list[dict]
    figures: dict[str, dict[str, Figure]]
    reasons: dict[str, dict[str, str]]

    @property
    def systems(self) -> list[str]:
        return list(self.scores.systems)

    @property
    def drawn(self) -> list[str]:
        """Systems that are models; the others are pictures that no model drew, for comparison."""
        models = {name: entry.model for name, entry in self.scores.systems.items()}
        return [name for name, model in models.items() if not model or model.get("digest") is not None]

    @property
    def people(self) -> list[str]:
        """Cases with a scored picture, in the order in which they come."""
        return list(dict.fromkeys(row["case"] for row in self.rows))

    @property
    def pairs(self) -> set[tuple]:
        """Of person and prompt."""
        return {(row["case"], row.get("prompt")) for row in self.rows}

    def case(self, name: str) -> Person:
        """What scores.json says of a case."""
        return self.scores.cases.people.get(name, Person())

    def prompt(self, row: dict) -> str:
        """The text of a scored picture's prompt, "" where it is not told."""
        prompts, number = self.case(row["case"]).prompts, row.get("prompt")
        if isinstance(number, int) and 0 <= number < len(prompts):
            return prompts[number]
        return number if isinstance(number, str) else ""

    def picture(self, row: dict) -> Image.Image | None:
        return open_picture(self.out / str(row.get("file")))

    def reference(self, case: str) -> Image.Image | None:
        """The first picture of the person that can be read, of those listed, or else of those kept in references/."""
        listed = [self.out / path for path in self.case(case).references]
        kept = sorted((self.out / "references" / safe_name(case)).glob("*.png"))
        return next(filter(None, map(open_picture, listed or kept)), None)

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


def load_results(out: Path) -> Results:
    """Read scores.json and scores.jsonl of an evaluation's folder. `UserError` names what is missing or damaged."""
    out = Path(out)
    for name in ("scores.json", "scores.jsonl"):
        if not (out / name).exists():
            raise UserError(f"{out / name}: no such file; run evaluate.py with --out {out} first")
    scores = read_json_as(out / "scores.json", _SCORES)
    if not scores.systems:
        raise UserError(f"{out / 'scores.json'}: has no systems; is it of evaluate.py?")
    path = out / "scores.jsonl"
    lines = enumerate(read_text(path).split("\n"), 1)
    rows = [parse_line_as(line, _ROW, f"{path}:{number}") for number, line in lines if line.strip()]
    # Pictures of systems that were evaluated into this folder once and are not compared now.
    rows = [row for row in rows if row["system"] in scores.systems]
    figures = {name: figures_of(_stored(entry)) for name, entry in scores.systems.items()}
    return Results(out, scores, rows, figures, {name: _reasons(entry) for name, entry in scores.systems.items()})


def _stored(entry: SystemScores) -> dict[str, object]:
    own = {"detection_rate": entry.detection_rate, "peak_memory_mib": entry.peak_memory_mib}
    table_1 = {NORMALISED + key: value for key, value in (entry.normalised.model_extra or {}).items()}
    return {SAME.get(key, key): value for key, value in entry.figures.items()} | own | table_1


def _reasons(entry: SystemScores) -> dict[str, str]:
    found = {SAME.get(key, key): str(reason) for key, reason in entry.not_measured.items()}
    return found | {NORMALISED + key: str(reason) for key, reason in entry.normalised.left_out.items()}


def figures_of(stored: Mapping[str, object]) -> dict[str, Figure]:
    """Those that are figures."""
    found = {key: as_figure(value) for key, value in stored.items()}
    return {key: figure for key, figure in found.items() if figure is not None}


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


def evenly(items: list, count: int) -> list:
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

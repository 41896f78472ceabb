"""ResultStore: JSON files with a number a person for each figure, read back as figures with intervals.

All settings of a study are measured on the same people, so they can be compared in pairs. Letters: I people, K seeds.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.json_files import load_json
from feedface.evaluation.metrics import Figure, bootstrap, over_seeds, paired_difference, ratio_of_means

YES, NO, OPEN = "yes", "no", "not told apart"
ATTRIBUTES = "attributes"  # the share of what prompts name that is shown: "attributes_shown" of "attributes_asked"
Names = str | Sequence[str]  # of a result, or of one result for each training seed


def store(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")


def as_recorded(module: str, arguments: Sequence[str]) -> str:
    """The command that makes a result's figures; without --out, which names a place of one machine."""
    kept, words = [], iter(arguments)
    for word in words:
        if word == "--out":
            next(words)
        elif not word.startswith("--out="):
            kept.append(word)
    return shlex.join(["python", "-m", module, *kept])


@dataclass(frozen=True)
class Check:
    """One sentence of a claim against its figure: `holds` is YES, NO or OPEN."""

    sentence: str
    figure: Figure
    holds: str

    @classmethod
    def of(cls, sentence: str, figure: Figure) -> "Check":
        """For "more than" and "at least as": YES if the whole interval is above 0, NO if it is below, else OPEN."""
        return cls(sentence, figure, YES if figure.low > 0 else NO if figure.high < 0 else OPEN)


class ResultStore:
    """Result files in one or several folders; the first folder that has a name counts."""

    def __init__(self, folders: Sequence[Path]):
        self.folders = list(folders)
        self._read: dict[str, dict] = {}

    def __contains__(self, name: str) -> bool:
        return self.find(f"{name}.json") is not None

    def find(self, file_name: str) -> Path | None:
        """The file of that name in the first folder that has it."""
        return next((folder / file_name for folder in self.folders if (folder / file_name).is_file()), None)

    def get(self, name: str) -> dict:
        """The whole result `name`; `UserError` if there is none."""
        if name not in self._read:
            file = self.find(f"{name}.json")
            if file is None:
                raise UserError(f"{self.folders[0] / name}.json: missing; run `make reproduce` first")
            self._read[name] = load_json(file)
        return self._read[name]

    def people(self, name: str, key: str) -> np.ndarray:
        """Values [I] of a figure; NaN where a person's could not be measured."""
        people = self.get(name)["people"]
        if key != ATTRIBUTES:
            return np.array(people[key], dtype=float)
        shown, asked = _counts(people)
        return shown / np.where(asked > 0, asked, np.nan)

    def figure(self, names: Names, key: str) -> Figure:
        """Mean over people, and over seeds where several results are named."""
        if not isinstance(names, str):
            return over_seeds(_known([self.people(name, key) for name in names]))
        if key == ATTRIBUTES:
            return bootstrap(*_counts(self.get(names)["people"]), statistic=ratio_of_means)
        return bootstrap(*_known([self.people(names, key)]))

    def difference(self, a: Names, b: Names, key: str) -> Figure:
        """Mean of a - b, paired, over people (and over seeds: the same ones in the same order)."""
        if isinstance(a, str):
            return paired_difference(*_known([self.people(a, key), self.people(b, key)]))
        return over_seeds(
            _known([self.people(one, key) - self.people(other, key) for one, other in zip(a, b, strict=True)])
        )

    def check(self, sentence: str, a: Names, b: Names, key: str) -> Check:
        """Whether `a` has more than `b` of a figure."""
        return Check.of(sentence, self.difference(a, b, key))


def scaled(figure: Figure, factor: float) -> Figure:
    """The figure times a factor; its ends change places with a negative one."""
    low, high = sorted((figure.low * factor, figure.high * factor))
    return Figure(figure.value * factor, low, high)


def _counts(people: dict) -> tuple[np.ndarray, np.ndarray]:
    shown, asked = (np.array(people[f"attributes_{part}"], float) for part in ("shown", "asked"))
    return shown, asked


def _known(rows: Sequence[np.ndarray]) -> np.ndarray:
    """[K, I]: only people of whom all is known."""
    values = np.stack(rows)
    return values[:, ~np.isnan(values).any(axis=0)]

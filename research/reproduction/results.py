"""What was measured, read back: figures with intervals over people, differences of settings, the verdict on a claim."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feedface.checkpoints.storage import read_json
from feedface.common.errors import UserError
from feedface.evaluation.metrics import Figure, bootstrap, over_seeds, paired_difference, ratio_of_means

YES, NO, OPEN = "yes", "no", "not told apart"


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


class Results:
    """The result files of `measure.measure_all` in one or several folders; the first that has a name counts."""

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
            self._read[name] = read_json(file)
        return self._read[name]

    def people(self, name: str, key: str) -> np.ndarray:
        """Values [I] of a figure; NaN where a person's could not be measured. "attributes": share shown."""
        people = self.get(name)["people"]
        if key == "attributes":
            shown, asked = (np.array(people[f"attributes_{part}"], float) for part in ("shown", "asked"))
            return shown / np.where(asked > 0, asked, np.nan)
        return np.array(people[key], dtype=float)

    def figure(self, name: str, key: str) -> Figure:
        """Mean over people."""
        if key == "attributes":
            people = self.get(name)["people"]
            pair = (np.array(people[f"attributes_{part}"], float) for part in ("shown", "asked"))
            return bootstrap(*pair, statistic=ratio_of_means)
        values = self.people(name, key)
        return bootstrap(values[~np.isnan(values)])

    def difference(self, a: str, b: str, key: str) -> Figure:
        """Mean over people of a - b, paired."""
        first, second = self.people(a, key), self.people(b, key)
        known = ~(np.isnan(first) | np.isnan(second))
        return paired_difference(first[known], second[known])

    def over_seeds(self, names: Sequence[str], key: str) -> Figure:
        """Mean over people and training seeds, a name a seed."""
        return over_seeds(_known(np.stack([self.people(name, key) for name in names])))

    def difference_over_seeds(self, a: Sequence[str], b: Sequence[str], key: str) -> Figure:
        """Mean over people and seeds of a - b: the same seeds in the same order."""
        pairs = [self.people(first, key) - self.people(second, key) for first, second in zip(a, b, strict=True)]
        return over_seeds(_known(np.stack(pairs)))


def _known(values: np.ndarray) -> np.ndarray:
    """[K, I]: only people that were measured with every seed."""
    return values[:, ~np.isnan(values).any(axis=0)]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(figure: Figure) -> str:
    """0.405 -> "40.5 % [33.8, 47.8]"."""
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def number(digits: int) -> Callable[[Figure], str]:
    """A writer of figures with so many digits."""
    return lambda figure: f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def checks_table(checks: Sequence[Check], digits: int = 3) -> str:
    """The sentences of a claim, each with its figure and whether it holds."""
    rows = [[check.sentence, number(digits)(check.figure), f"**{check.holds}**"] for check in checks]
    return table(["claim", "measured (difference, 95 % interval)", "holds"], rows)

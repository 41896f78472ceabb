"""How far long work is: a bar on a terminal; in a log or a pipe a line every some seconds. And text beside either."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from tqdm import tqdm

LINE_EVERY_S = 10.0


class ProgressLines:
    """What of tqdm's interface is used here, as lines on stderr; work shorter than `every_s` says nothing.

    Attributes:
        n, total: steps done, and of how many (None: unknown); `total` may grow.
    """

    def __init__(
        self,
        iterable: Iterable | None = None,
        total: int | None = None,
        desc: str = "",
        unit: str = "step",
        initial: int = 0,
        every_s: float = LINE_EVERY_S,
    ):
        self.iterable, self.desc, self.unit, self.every_s = iterable, desc, unit, every_s
        self.total = len(iterable) if total is None and hasattr(iterable, "__len__") else total
        self.n = self._first = initial
        self._begin = self._said = time.monotonic()
        self._postfix = ""

    def __iter__(self) -> Iterator:
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: int = 1) -> None:
        self.n += n
        now = time.monotonic()
        if now - self._said >= self.every_s:
            self._said = now
            print(self._line(now - self._begin), file=sys.stderr, flush=True)

    def set_postfix(self, **values: Any) -> None:
        self._postfix = "".join(f", {name}={value}" for name, value in values.items())

    def close(self) -> None:
        """As tqdm has it; there is nothing to end."""

    def __enter__(self) -> "ProgressLines":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self, seconds: float) -> str:
        unit = self.unit.strip()
        count = f"{self.n} {unit}" if self.total is None else f"{self.n} of {self.total} {unit}"
        line = f"{f'{self.desc}: ' if self.desc else ''}{count}s, {tqdm.format_interval(seconds)}"
        done = self.n - self._first
        if self.total is not None and done > 0:
            line += f", {tqdm.format_interval((self.total - self.n) * seconds / done)} left"
        return line + self._postfix


def progress(
    iterable: Iterable | None = None,
    *,
    total: int | None = None,
    desc: str = "",
    unit: str = "step",
    initial: int = 0,
    disable: bool = False,
    every_s: float = LINE_EVERY_S,
) -> tqdm | ProgressLines:
    """Watch work: iterate over it, or call `update`, inside `with` or up to `close`.

    Args:
        iterable, total, desc, unit, initial: as tqdm's; unit is one of them: "picture".
        disable: show nothing.
        every_s: seconds between lines, where stderr is no terminal.
    """
    if disable or (sys.stderr is not None and sys.stderr.isatty()):
        return tqdm(iterable, total=total, desc=desc or None, unit=unit, initial=initial, disable=disable)
    return ProgressLines(iterable, total, desc, unit, initial, every_s)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line at once, to stdout or `file`, without tearing a bar apart."""
    file = file or sys.stdout
    tqdm.write(text, file=file)
    file.flush()

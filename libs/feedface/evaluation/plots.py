"""Figures with their intervals as pictures, about 7 x 4 inches at 150 dpi: a scatter, and what other plots are made of.

Colours are those of Okabe and Ito (2008), which people with any colour vision tell apart; markers differ too. A figure
that is None was not measured and is left out. Labels are taken as they are: "$" begins no formula.
"""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from feedface.common.files import atomic_file
from feedface.evaluation.labels import place_labels
from feedface.evaluation.metrics import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D")
MARKERS = "os^DvPX"
SIZE_IN, DPI = (7.0, 4.0), 150
LEGEND_LETTERS = 95  # in a row under the axes
EMPTY = "nothing measured"


def scatter(
    path: Path,
    points: Mapping[str, tuple[Figure | None, Figure | None]],
    xlabel: str,
    ylabel: str,
    connect: bool | Sequence[Sequence[str]] = False,
) -> None:
    """Write a point per label with its intervals in both directions and its name beside it.

    connect: True joins the points by a line in their order; a list of lists of labels is a line per list, each in a
    colour of its own.
    """
    points = {name: pair for name, pair in points.items() if all(is_measured(drawn) for drawn in pair)}
    chains = [list(points)] if connect is True else [list(chain) for chain in connect or ()]
    chains = [[name for name in chain if name in points] for chain in chains]
    style = {name: style_of(index) for index, chain in enumerate(chains) for name in chain}
    alone = [name for name in points if name not in style]
    style |= {name: style_of(len(chains) + index) for index, name in enumerate(alone)}
    with canvas(path) as (figure, axes):
        for index, chain in enumerate(chains):
            at = np.array([[drawn.value for drawn in points[name]] for name in chain]).reshape(-1, 2)
            axes.plot(*at.T, color=COLOURS[index % len(COLOURS)], linewidth=1.4, alpha=0.6, zorder=1)
        for name, (x, y) in points.items():
            axes.errorbar(
                x.value, y.value, whiskers(*numbers_of(y)), whiskers(*numbers_of(x)), capsize=2.5, elinewidth=1,
                markersize=6.5, linestyle="none", **style[name],
            )  # fmt: skip
        axes.margins(0.12)
        finish(figure, axes, xlabel, ylabel, [])
        names = {name: wrapped(name, 28) for name in points}
        numbers = {name: (numbers_of(x), numbers_of(y)) for name, (x, y) in points.items()}
        place_labels(figure, axes, names, numbers, {name: style[name]["color"] for name in points}, chains)


@contextmanager
def canvas(path: Path) -> Iterator[tuple]:
    """A figure and its axes, written to `path` when the block ends; no window system, not the user's style."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"font.size": 9.5, "axes.labelsize": 10, "text.parse_math": False})
        figure = Canvas(figsize=SIZE_IN, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        yield figure, axes
        with atomic_file(Path(path)) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})


def finish(figure, axes, xlabel: str, ylabel: str, handles: list, grid: str = "both") -> None:
    axes.set(xlabel=xlabel, ylabel=wrapped(ylabel, 44))
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if not axes.has_data():
        axes.text(0.5, 0.5, EMPTY, transform=axes.transAxes, ha="center", color="#666666")
    if handles:
        labels = [wrapped(handle.get_label(), 40) for handle in handles]
        longest = max(len(line) for label in labels for line in label.split("\n")) + 8
        columns = max(1, min(len(labels), LEGEND_LETTERS // longest))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def style_of(index: int) -> dict:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def is_measured(drawn: Figure | None) -> bool:
    return drawn is not None and bool(np.isfinite(drawn.value))


def numbers_of(drawn: Figure) -> tuple[float, float, float]:
    """Value, low, high; an end that is not known is the value itself."""
    ends = [end if np.isfinite(end) else drawn.value for end in (drawn.low, drawn.high)]
    return drawn.value, *ends


def whiskers(value, low, high) -> np.ndarray:
    """Lengths [2, N] down and up; an interval of a skewed statistic need not hold its value."""
    value, low, high = np.atleast_1d(value), np.atleast_1d(low), np.atleast_1d(high)
    return np.stack([value - low, high - value]).clip(0)


def wrapped(text: str, letters: int) -> str:
    return "\n".join(textwrap.wrap(text, max(letters, 1))) or text

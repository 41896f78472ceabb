"""Figures with their intervals as pictures: curves, bars and a scatter, about 7 x 4 inches at 150 dpi.

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
LINES = ("-", "--", ":")
SIZE_IN, DPI = (7.0, 4.0), 150
DODGE_PT, SPREAD_PT = 3.0, 12.0  # curves stand that far apart sideways, and all of them within that: whiskers show
VALUES_SHOWN = 12  # bars; more than these are drawn without their numbers above
LEGEND_LETTERS = 95  # in a row under the axes
EMPTY = "nothing measured"


def curves(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, Figure | None]]],
    xlabel: str,
    ylabel: str,
    logx: bool = False,
) -> None:
    """Write a line per label through its points (x, figure), each with its interval.

    logx: a logarithmic axis; where an x is 0, the stretch from 0 to the smallest other x is linear.
    """
    series = {label: _measured(points) for label, points in series.items()}
    series = {label: points for label, points in series.items() if points}
    with _canvas(path) as (figure, axes):
        from matplotlib.transforms import ScaledTranslation

        handles = []
        for index, (label, points) in enumerate(series.items()):
            dodge = min(DODGE_PT, SPREAD_PT / len(series))
            side = (index - (len(series) - 1) / 2) * dodge / 72
            x, value, low, high = np.array([(x, *_numbers(drawn)) for x, drawn in points], dtype=float).T
            style = _style(index)
            handles.append(
                axes.errorbar(
                    x, value, _whiskers(value, low, high), capsize=2.5, elinewidth=1, linewidth=1.8, markersize=5.5,
                    linestyle=LINES[index // len(COLOURS) % len(LINES)], label=label, **style,
                    transform=axes.transData + ScaledTranslation(side, 0, figure.dpi_scale_trans),
                )
            )  # fmt: skip
        at = sorted({float(x) for points in series.values() for x, _ in points})
        if at:
            _x_axis(axes, at, logx)
            # A shifted transform is not part of the data's limits.
            ends = np.array([_numbers(drawn)[1:] for points in series.values() for _, drawn in points])
            axes.update_datalim([(x, y) for x in (at[0], at[-1]) for y in (ends.min(), ends.max())])
            axes.autoscale_view()
        _finish(figure, axes, xlabel, ylabel, handles if len(series) > 1 else [])


def bars(path: Path, groups: Mapping[str, Mapping[str, Figure | None]], ylabel: str) -> None:
    """Write a bar with its interval per group and label, bars of a label in one colour; the axis begins at 0."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    measured = [drawn for group in groups.values() for drawn in group.values() if _is_measured(drawn)]
    with _canvas(path) as (figure, axes):
        handles, width = [], min(0.5, 0.8 / max(len(labels), 1))
        largest = max((abs(drawn.value) for drawn in measured), default=0)
        decimals = int(np.clip(1 - np.floor(np.log10(largest)), 0, 5)) if largest else 0
        for index, label in enumerate(labels):
            colour = COLOURS[index % len(COLOURS)]
            rows = [(place, _numbers(group[label])) for place, group in enumerate(groups.values())
                    if _is_measured(group.get(label))]  # fmt: skip
            if not rows:
                continue
            places = np.array([place for place, _ in rows]) + (index - (len(labels) - 1) / 2) * width
            value, low, high = np.array([numbers for _, numbers in rows], dtype=float).T
            hatch = ("", "//", "..")[index // len(COLOURS) % 3]
            handles.append(
                axes.bar(places, value, 0.92 * width, color=colour, alpha=0.85, label=label, hatch=hatch, edgecolor="w")
            )
            axes.errorbar(places, value, _whiskers(value, low, high), fmt="none", ecolor="#222222", capsize=2.5,
                          elinewidth=1)  # fmt: skip
            for place, number, end in zip(places, value, np.where(value < 0, low, high), strict=True):
                if len(measured) <= VALUES_SHOWN:
                    side, above = (-4, "top") if number < 0 else (4, "bottom")
                    text = f"{number:.{decimals}f}"
                    axes.annotate(text, (place, end), (0, side), textcoords="offset points", ha="center", va=above,
                                  fontsize=8)  # fmt: skip
        letters = int(78 / max(len(groups), 1))
        slanted = letters < 7
        names = [name if slanted else _wrapped(name, letters) for name in groups]
        axes.set_xticks(range(len(groups)), names, rotation=30 if slanted else 0, ha="right" if slanted else "center")
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, max(len(groups), 1) - 0.5)
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.margins(y=0.1)
        _finish(figure, axes, "", ylabel, handles if len(labels) > 1 else [], "y")


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
    points = {name: pair for name, pair in points.items() if all(_is_measured(drawn) for drawn in pair)}
    chains = [list(points)] if connect is True else [list(chain) for chain in connect or ()]
    chains = [[name for name in chain if name in points] for chain in chains]
    style = {name: _style(index) for index, chain in enumerate(chains) for name in chain}
    alone = [name for name in points if name not in style]
    style |= {name: _style(len(chains) + index) for index, name in enumerate(alone)}
    with _canvas(path) as (figure, axes):
        for index, chain in enumerate(chains):
            at = np.array([[drawn.value for drawn in points[name]] for name in chain]).reshape(-1, 2)
            axes.plot(*at.T, color=COLOURS[index % len(COLOURS)], linewidth=1.4, alpha=0.6, zorder=1)
        for name, (x, y) in points.items():
            axes.errorbar(
                x.value, y.value, _whiskers(*_numbers(y)), _whiskers(*_numbers(x)), capsize=2.5, elinewidth=1,
                markersize=6.5, linestyle="none", **style[name],
            )  # fmt: skip
        axes.margins(0.12)
        _finish(figure, axes, xlabel, ylabel, [])
        names = {name: _wrapped(name, 28) for name in points}
        numbers = {name: (_numbers(x), _numbers(y)) for name, (x, y) in points.items()}
        place_labels(figure, axes, names, numbers, {name: style[name]["color"] for name in points}, chains)


@contextmanager
def _canvas(path: Path) -> Iterator[tuple]:
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


def _finish(figure, axes, xlabel: str, ylabel: str, handles: list, grid: str = "both") -> None:
    axes.set(xlabel=xlabel, ylabel=_wrapped(ylabel, 44))
    axes.grid(axis=grid, color="#DDDDDD", linewidth=0.6)
    axes.set_axisbelow(True)
    if not axes.has_data():
        axes.text(0.5, 0.5, EMPTY, transform=axes.transAxes, ha="center", color="#666666")
    if handles:
        labels = [_wrapped(handle.get_label(), 40) for handle in handles]
        longest = max(len(line) for label in labels for line in label.split("\n")) + 8
        columns = max(1, min(len(labels), LEGEND_LETTERS // longest))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _x_axis(axes, at: list[float], logx: bool) -> None:
    """The scale, and ticks at the measured places where they are few and far enough apart to be read."""
    from matplotlib.ticker import EngFormatter, FixedLocator, LogLocator, NullFormatter, NullLocator

    positive = [x for x in at if x > 0]
    scale = "linear"
    if logx and positive:
        scale = "symlog" if at[0] <= 0 else "log"
        axes.set_xscale(scale, **({"linthresh": positive[0]} if scale == "symlog" else {}))
    places = axes.get_xaxis().get_transform().transform(np.array(at))
    span = float(places[-1] - places[0])
    if len(at) <= 10 and (len(at) == 1 or np.diff(places).min() >= 0.07 * span):
        axes.get_xaxis().set_major_locator(FixedLocator(at))
        axes.get_xaxis().set_minor_locator(NullLocator())
    elif scale == "log":
        axes.get_xaxis().set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.get_xaxis().set_minor_formatter(NullFormatter())
    if max(map(abs, at)) >= 10_000:
        axes.get_xaxis().set_major_formatter(EngFormatter(sep=" "))
    else:
        axes.get_xaxis().set_major_formatter(lambda x, _: f"{x:g}")


def _style(index: int) -> dict:
    return {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[index % len(MARKERS)]}


def _is_measured(drawn: Figure | None) -> bool:
    return drawn is not None and bool(np.isfinite(drawn.value))


def _measured(points: Sequence[tuple[float, Figure | None]]) -> list[tuple[float, Figure]]:
    return [(x, drawn) for x, drawn in points if _is_measured(drawn)]


def _numbers(drawn: Figure) -> tuple[float, float, float]:
    """Value, low, high; an end that is not known is the value itself."""
    ends = [end if np.isfinite(end) else drawn.value for end in (drawn.low, drawn.high)]
    return drawn.value, *ends


def _whiskers(value, low, high) -> np.ndarray:
    """Lengths [2, N] down and up; an interval of a skewed statistic need not hold its value."""
    value, low, high = np.atleast_1d(value), np.atleast_1d(low), np.atleast_1d(high)
    return np.stack([value - low, high - value]).clip(0)


def _wrapped(text: str, letters: int) -> str:
    return "\n".join(textwrap.wrap(text, max(letters, 1))) or text

"""Curves and bars with their intervals, like the evaluation's scatter; a figure that is None is left out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from feedface.evaluation.metrics import Figure
from feedface.evaluation.plots import (
    COLOURS,
    canvas,
    finish,
    is_measured,
    numbers_of,
    scatter,
    style_of,
    whiskers,
    wrapped,
)

__all__ = ["bars", "curves", "scatter"]

LINES = ("-", "--", ":")
DODGE_PT, SPREAD_PT = 3.0, 12.0  # curves stand that far apart sideways, and all of them within that: whiskers show
VALUES_SHOWN = 12  # bars; more than these are drawn without their numbers above


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
    with canvas(path) as (figure, axes):
        from matplotlib.transforms import ScaledTranslation

        handles = []
        for index, (label, points) in enumerate(series.items()):
            dodge = min(DODGE_PT, SPREAD_PT / len(series))
            side = (index - (len(series) - 1) / 2) * dodge / 72
            x, value, low, high = np.array([(x, *numbers_of(drawn)) for x, drawn in points], dtype=float).T
            style = style_of(index)
            handles.append(
                axes.errorbar(
                    x, value, whiskers(value, low, high), capsize=2.5, elinewidth=1, linewidth=1.8, markersize=5.5,
                    linestyle=LINES[index // len(COLOURS) % len(LINES)], label=label, **style,
                    transform=axes.transData + ScaledTranslation(side, 0, figure.dpi_scale_trans),
                )
            )  # fmt: skip
        at = sorted({float(x) for points in series.values() for x, _ in points})
        if at:
            _x_axis(axes, at, logx)
            # A shifted transform is not part of the data's limits.
            ends = np.array([numbers_of(drawn)[1:] for points in series.values() for _, drawn in points])
            axes.update_datalim([(x, y) for x in (at[0], at[-1]) for y in (ends.min(), ends.max())])
            axes.autoscale_view()
        finish(figure, axes, xlabel, ylabel, handles if len(series) > 1 else [])


def bars(path: Path, groups: Mapping[str, Mapping[str, Figure | None]], ylabel: str) -> None:
    """Write a bar with its interval per group and label, bars of a label in one colour; the axis begins at 0."""
    labels = list(dict.fromkeys(label for group in groups.values() for label in group))
    measured = [drawn for group in groups.values() for drawn in group.values() if is_measured(drawn)]
    with canvas(path) as (figure, axes):
        handles, width = [], min(0.5, 0.8 / max(len(labels), 1))
        largest = max((abs(drawn.value) for drawn in measured), default=0)
        decimals = int(np.clip(1 - np.floor(np.log10(largest)), 0, 5)) if largest else 0
        for index, label in enumerate(labels):
            colour = COLOURS[index % len(COLOURS)]
            rows = [(place, numbers_of(group[label])) for place, group in enumerate(groups.values())
                    if is_measured(group.get(label))]  # fmt: skip
            if not rows:
                continue
            places = np.array([place for place, _ in rows]) + (index - (len(labels) - 1) / 2) * width
            value, low, high = np.array([numbers for _, numbers in rows], dtype=float).T
            hatch = ("", "//", "..")[index // len(COLOURS) % 3]
            handles.append(
                axes.bar(places, value, 0.92 * width, color=colour, alpha=0.85, label=label, hatch=hatch, edgecolor="w")
            )
            axes.errorbar(places, value, whiskers(value, low, high), fmt="none", ecolor="#222222", capsize=2.5,
                          elinewidth=1)  # fmt: skip
            for place, number, end in zip(places, value, np.where(value < 0, low, high), strict=True):
                if len(measured) <= VALUES_SHOWN:
                    side, above = (-4, "top") if number < 0 else (4, "bottom")
                    text = f"{number:.{decimals}f}"
                    axes.annotate(text, (place, end), (0, side), textcoords="offset points", ha="center", va=above,
                                  fontsize=8)  # fmt: skip
        letters = int(78 / max(len(groups), 1))
        slanted = letters < 7
        names = [name if slanted else wrapped(name, letters) for name in groups]
        axes.set_xticks(range(len(groups)), names, rotation=30 if slanted else 0, ha="right" if slanted else "center")
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(-0.5, max(len(groups), 1) - 0.5)
        axes.axhline(0, color="#222222", linewidth=0.8)
        axes.margins(y=0.1)
        finish(figure, axes, "", ylabel, handles if len(labels) > 1 else [], "y")


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


def _measured(points: Sequence[tuple[float, Figure | None]]) -> list[tuple[float, Figure]]:
    return [(x, drawn) for x, drawn in points if is_measured(drawn)]

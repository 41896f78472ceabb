"""Charts of a run's figures: pictures by outcome, and sizes, sharpness and pose of single and filtered faces."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from feedface.preparation.result import FILTERED, KINDS, SINGLE
from feedface.preparation.tiles import KIND_COLOURS, Picture

CHART_INCHES, CHART_DPI = (15.6, 3.0), 100


def draw_charts(pictures: Sequence[Picture], limits: Mapping[str, float | None]) -> Image.Image:
    """Pictures by outcome; face sizes, blur and pose of single and filtered faces, with the filters' limits."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    counts = Counter(picture.kind for picture in pictures)
    faces = {kind: [one.faces[0] for one in pictures if one.kind == kind and one.faces] for kind in (SINGLE, FILTERED)}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not the user's style: the same run, the same picture
        figure = Figure(CHART_INCHES, dpi=CHART_DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        bars, sizes, blur, pose = figure.subplots(1, 4)
        drawn = bars.barh(KINDS, [counts[kind] for kind in KINDS], color=[KIND_COLOURS[kind] for kind in KINDS])
        bars.bar_label(drawn, padding=3)
        bars.invert_yaxis()
        bars.set_xticks([])
        bars.margins(x=0.15)
        bars.set_title("pictures")
        _histogram(sizes, faces, "face_px", limits.get("min_face_px"), "shorter side of the face's box, px")
        _histogram(blur, faces, "blur", limits.get("min_blur"), "sharpness of the face (blurred: below 10)")
        _angles(pose, [face for kind in faces.values() for face in kind])
        for axes in (bars, sizes, blur, pose):
            axes.spines[["top", "right"]].set_visible(False)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[..., :3].copy()
    return Image.fromarray(pixels)


def _histogram(axes, faces: Mapping[str, list[dict]], key: str, limit: float | None, title: str) -> None:
    """Stacked by outcome, on a logarithmic axis: sizes and sharpness span orders of magnitude."""
    values = {kind: [max(face[key], 0.1) for face in rows if face.get(key) is not None] for kind, rows in faces.items()}
    together = [value for rows in values.values() for value in rows] + ([limit] if limit else [])
    axes.set_title(title, fontsize=10)
    if len(together) == 0:
        return _nothing(axes)
    low, high = min(together) * 0.95, max(together) * 1.05
    axes.hist(
        list(values.values()), np.geomspace(low, high, 31), stacked=True, color=[KIND_COLOURS[kind] for kind in values]
    )
    axes.set_xscale("log")
    steps = (1, 2, 5) if high > 10 * low else (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    ticks = [value * 10**power for power in range(-1, 7) for value in steps if low <= value * 10**power <= high]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axes.set_xticks([], minor=True)
    if limit:
        axes.axvline(limit, color="black", linestyle="--", linewidth=1)
    return None


def _angles(axes, faces: list[dict]) -> None:
    axes.set_title("pose, degrees", fontsize=10)
    known = [face for face in faces if face.get("yaw") is not None]
    if not known:
        return _nothing(axes)
    edges = np.arange(-90, 91, 6)
    for name, colour in (("yaw", "#3b6fb6"), ("pitch", "#d68910"), ("roll", "#777777")):
        values = np.clip([face[name] for face in known if face.get(name) is not None], -90, 90)
        axes.hist(values, edges, histtype="step", color=colour, label=name)
    axes.legend(fontsize=8, frameon=False)
    return None


def _nothing(axes) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", color="grey", transform=axes.transAxes)
    axes.set_axis_off()

"""What a run of make_data.py looks like: charts of its figures, and pictures with what was found drawn into them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from feedface.common.errors import UserError
from feedface.common.images import open_image, read_image
from feedface.data.transforms import LAPA_VALUES
from feedface.faces.crop import crop_square
from feedface.preparation.outcome import ERROR, FILTERED, KINDS, MULTI, SINGLE, stems

TILE_PX, GAP_PX, COLUMNS = 180, 12, 4
FONT_PX, LINE_PX, TITLE_PX = 12, 15, 20
CHART_INCHES, CHART_DPI = (15.6, 3.0), 100
INK, FAINT, PAPER, EMPTY = (20, 20, 20), (110, 110, 110), (255, 255, 255), (225, 225, 225)
KIND_COLOURS = {SINGLE: "#2e8b57", MULTI: "#3b6fb6", ERROR: "#c0392b", FILTERED: "#d68910"}
BOX, SQUARE, POINT = (60, 230, 90), (255, 255, 255), (255, 60, 60)
# Skin, right and left brow, right and left eye, nose, upper lip, inner mouth, lower lip, hair.
CLASS_COLOURS = np.array(
    [(0, 0, 0), (255, 200, 120), (150, 75, 0), (200, 120, 40), (0, 120, 255), (0, 200, 255), (255, 130, 0),
     (255, 0, 110), (120, 0, 40), (255, 90, 180), (150, 80, 230)], np.float32
)  # fmt: skip
OPACITY = 0.4


@dataclass(frozen=True)
class Picture:
    """One picture of the run: the content of its JSON files, one for each face, or the only one."""

    rows: list[dict]

    @property
    def rel(self) -> str:
        return self.rows[0]["path"]

    @property
    def kind(self) -> str:
        return self.rows[0]["outcome"]

    @property
    def text(self) -> str:
        """The reason, or else the caption."""
        return self.rows[0]["reason"] or self.rows[0].get("caption", "")

    @property
    def faces(self) -> list[dict]:
        return [row for row in self.rows if row.get("bbox")]


def draw_tile(picture: Picture, data_folder: Path | None, out_folder: Path) -> Image.Image:
    """The picture with boxes, landmarks and masks over it; beside it the square of its largest face.

    A grey tile where the picture cannot be read; 180 pixels high at most.
    """
    try:
        image = read_image(data_folder / picture.rel) if data_folder else None
    except UserError:
        image = None
    if image is None:
        return Image.new("RGB", (TILE_PX, TILE_PX // 2), EMPTY)
    classes = np.zeros(image.shape[:2], np.uint8)
    for stem in stems(picture.rel, picture.kind, len(picture.faces)) if picture.faces else []:
        found = _classes(out_folder / f"{stem}.png", image.shape[:2])
        classes = np.where(found > 0, found, classes)
    whole = _overlaid(image, classes, (0, 0, image.shape[1], image.shape[0]), picture.faces)
    if not picture.faces:
        return whole
    face = picture.faces[0]
    close = _overlaid(image, classes, face["square_bbox"], [face])
    both = Image.new("RGB", (whole.width + close.width + 2, max(whole.height, close.height)), PAPER)
    both.paste(whole, (0, 0))
    both.paste(close, (whole.width + 2, 0))
    return both


def draw_report(
    groups: Mapping[str, tuple[int, Sequence[tuple[Picture, Image.Image]]]], charts: Image.Image
) -> Image.Image:
    """The whole report as one picture: charts on top, then the tiles of each outcome.

    groups: outcome -> how many pictures there are, and those that are shown, with their tiles.
    """
    cell_px = 2 * TILE_PX + 2 + GAP_PX
    width = max(charts.width, COLUMNS * cell_px + GAP_PX)
    rows: list[tuple[str, list]] = []
    for kind, (count, tiles) in groups.items():
        if count:
            note = "" if len(tiles) == count else f", {len(tiles)} of them"
            rows.append((f"{kind}: {count}{note}", []))
            rows += [("", list(tiles[start : start + COLUMNS])) for start in range(0, len(tiles), COLUMNS)]
    heights = [
        max(tile.height for _, tile in tiles) + 3 * LINE_PX + GAP_PX if tiles else TITLE_PX + GAP_PX
        for _, tiles in rows
    ]
    sheet = Image.new("RGB", (width, charts.height + sum(heights) + 2 * GAP_PX), PAPER)
    sheet.paste(charts, (0, 0))
    pen, top = ImageDraw.Draw(sheet), charts.height + GAP_PX
    for (title, tiles), height in zip(rows, heights, strict=True):
        if title:
            pen.text((GAP_PX, top), title, KIND_COLOURS[title.split(":")[0]], _font(TITLE_PX))
        for column, (picture, tile) in enumerate(tiles):
            left = GAP_PX + column * cell_px
            sheet.paste(tile, (left, top))
            lines = [_fit(picture.rel, cell_px - GAP_PX, keep_end=True), *_wrap(picture.text, cell_px - GAP_PX, 2)]
            for number, line in enumerate(lines):
                spot = (left, top + tile.height + 2 + number * LINE_PX)
                pen.text(spot, line, FAINT if number else INK, _font(FONT_PX))
        top += height
    return sheet


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


def _classes(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A mask file as classes 0...10, uint8 [H, W]; empty where it is missing or does not fit."""
    try:
        with open_image(path, ("PNG",)) as file:
            grey = np.asarray(file.convert("L"))
    except UserError:
        grey = np.zeros((0, 0))
    if grey.shape != shape:
        return np.zeros(shape, np.uint8)
    return np.searchsorted(LAPA_VALUES, grey).clip(0, 10).astype(np.uint8)


def _overlaid(image: np.ndarray, classes: np.ndarray, box: Sequence[float], faces: Sequence[dict]) -> Image.Image:
    """A part of the picture (a square may pass its border), at most `TILE_PX` wide and high, with everything drawn."""
    x0, y0, x1, y1 = box
    if (x0, y0, x1, y1) != (0, 0, image.shape[1], image.shape[0]):
        side = max(1, round(max(x1 - x0, y1 - y0)))
        x0, y0 = round((x0 + x1 - side) / 2), round((y0 + y1 - side) / 2)
        x1, y1 = x0 + side, y0 + side
        image, classes = crop_square(image, (x0, y0, x1, y1)), crop_square(classes, (x0, y0, x1, y1))
    scale = TILE_PX / max(x1 - x0, y1 - y0)
    size = max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale))
    pixels = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
    small = np.asarray(Image.fromarray(classes).resize(size, Image.Resampling.NEAREST))
    share = OPACITY * (small > 0)[..., None]
    tile = Image.fromarray((pixels * (1 - share) + CLASS_COLOURS[small] * share + 0.5).astype(np.uint8))
    pen = ImageDraw.Draw(tile)
    for face in faces:
        for key, colour in (("square_bbox", SQUARE), ("bbox", BOX)):
            corners = [(value - offset) * scale for value, offset in zip(face[key], (x0, y0, x0, y0), strict=True)]
            pen.rectangle(
                [*corners[:2], max(corners[2] - 1, corners[0]), max(corners[3] - 1, corners[1])], None, colour
            )
        for x, y in face.get("point") or ():
            x, y = (x - x0) * scale, (y - y0) * scale
            pen.ellipse([x - 1.5, y - 1.5, x + 1.5, y + 1.5], POINT)
    return tile


def _wrap(text: str, width: int, most: int) -> list[str]:
    """Break at spaces into at most `most` lines; what is left over ends in an ellipsis."""
    words, lines = text.split()[:200], []
    while words and len(lines) < most - 1:
        taken = 1
        while taken < len(words) and _length(" ".join(words[: taken + 1])) <= width:
            taken += 1
        lines.append(_fit(" ".join(words[:taken]), width))
        words = words[taken:]
    return [*lines, _fit(" ".join(words), width)] if words else lines


def _fit(text: str, width: int, keep_end: bool = False) -> str:
    """Shorten to a width in pixels, with an ellipsis in place of the rest (of the beginning if `keep_end`)."""
    text = " ".join(text.split())
    text = text[-300:] if keep_end else text[:300]
    if _length(text) <= width:
        return text
    while text and _length(text + "…") > width:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"


def _length(text: str) -> float:
    return _font(FONT_PX).getlength(text)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib's DejaVu Sans knows more scripts than the font inside Pillow; found without importing matplotlib.
    folder = Path(find_spec("matplotlib").submodule_search_locations[0])
    return ImageFont.truetype(str(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"), size)

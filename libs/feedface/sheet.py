"""The contact sheet of a run: the faces it was shown on the left, what it drew for each prompt on the right."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CELL_PX = 192
GAP_PX = 12
FONT_PX = 15
LINE_PX = 20
COLUMNS = 6
MAX_SAMPLES = 60
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """A picture with a one-line label under it."""

    image: Image.Image
    label: str = ""


def contact_sheet(references: Sequence[Tile], rows: Sequence[tuple[str, Sequence[Tile]]]) -> Image.Image:
    """Draw references | samples.

    Args:
        references: the face crops, stacked on the left.
        rows: (prompt, its samples) each; a prompt's samples wrap after six. Only the first 60 samples are shown, which
            the sheet then says.
    """
    total = sum(len(tiles) for _, tiles in rows)
    rows, shown = _first(rows, MAX_SAMPLES)
    columns = max(1, min(COLUMNS, max((len(tiles) for _, tiles in rows), default=1)))
    width = max(columns, 2) * (CELL_PX + GAP_PX)  # room for a prompt above a single sample
    left = CELL_PX + 3 * GAP_PX
    wrapped = [(wrap_text(prompt, width - GAP_PX, 3), tiles) for prompt, tiles in rows]
    tile_height = CELL_PX + LINE_PX + GAP_PX
    header = LINE_PX + GAP_PX
    heights = [len(lines) * LINE_PX + -(-len(tiles) // columns) * tile_height for lines, tiles in wrapped]
    height = header + max(sum(heights) + GAP_PX * len(heights), len(references) * tile_height) + LINE_PX
    sheet = Image.new("RGB", (left + width + GAP_PX, height + GAP_PX), PAPER)
    draw = ImageDraw.Draw(sheet)

    draw.text((GAP_PX, GAP_PX), fit_text(f"references ({len(references)})", CELL_PX), FAINT, sheet_font())
    draw.text((left, GAP_PX), f"samples ({total})", FAINT, sheet_font())
    for index, tile in enumerate(references):
        _paste(sheet, tile, GAP_PX, header + index * tile_height)
    top = header
    for (lines, tiles), row_height in zip(wrapped, heights, strict=True):
        for index, line in enumerate(lines):
            draw.text((left, top + index * LINE_PX), line, INK, sheet_font())
        begin = top + len(lines) * LINE_PX
        for index, tile in enumerate(tiles):
            row, column = divmod(index, columns)
            _paste(sheet, tile, left + column * (CELL_PX + GAP_PX), begin + row * tile_height)
        top += row_height + GAP_PX
    if shown < total:
        draw.text((left, top), f"the first {shown} of {total} samples", FAINT, sheet_font())
    return sheet


def _first(rows, limit: int) -> tuple[list, int]:
    kept = []
    for prompt, tiles in rows:
        tiles = list(tiles)[:limit]
        if tiles:
            kept.append((prompt, tiles))
        limit -= len(tiles)
    return kept, sum(len(tiles) for _, tiles in kept)


def _paste(sheet: Image.Image, tile: Tile, left: int, top: int) -> None:
    """Scale the picture to fit its cell and set the label under it."""
    factor = CELL_PX / max(tile.image.size)
    size = [max(1, round(side * factor)) for side in tile.image.size]
    sheet.paste(tile.image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
    ImageDraw.Draw(sheet).text((left, top + size[1] + 2), fit_text(tile.label, CELL_PX), FAINT, sheet_font())


def wrap_text(text: str, width: int, max_lines: int) -> list[str]:
    """Break at spaces into at most `max_lines` lines of `width` pixels; what is left over ends in an ellipsis."""
    lines, line = [], ""
    words = text.split()
    for index, word in enumerate(words):
        longer = f"{line} {word}".strip()
        if sheet_font().getlength(longer) <= width:
            line = longer
            continue
        if len(lines) == max_lines - 1:
            return [*lines, fit_text(f"{line} {' '.join(words[index:])}".strip(), width)]
        lines.append(fit_text(line or word, width))
        line = word if line else ""
    return [*lines, fit_text(line, width)] if line else lines


def fit_text(text: str, width: int) -> str:
    """Shorten to `width` pixels, with an ellipsis."""
    text = " ".join(text.split())[:400]
    if sheet_font().getlength(text) <= width:
        return text
    while text and sheet_font().getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


@cache
def sheet_font() -> ImageFont.FreeTypeFont:
    # matplotlib's DejaVu Sans knows more scripts than the font inside Pillow; found without importing matplotlib.
    folder = Path(find_spec("matplotlib").submodule_search_locations[0])
    return ImageFont.truetype(str(folder / "mpl-data/fonts/ttf/DejaVuSans.ttf"), FONT_PX)

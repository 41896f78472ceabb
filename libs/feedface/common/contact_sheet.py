"""The contact sheet of a run: the faces it was shown in a row, and below what it drew for each prompt."""

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
COLUMNS, REFERENCE_COLUMNS = 6, 8
MAX_SAMPLES = 60
INK, FAINT, PAPER = (20, 20, 20), (110, 110, 110), (255, 255, 255)


@dataclass(frozen=True)
class Tile:
    """A picture with a one-line label under it."""

    image: Image.Image
    label: str = ""


def contact_sheet(
    references: Sequence[Tile], rows: Sequence[tuple[str, Sequence[Tile]]], total: int | None = None
) -> Image.Image:
    """Draw references above samples.

    Args:
        references: the face crops, in rows of up to eight.
        rows: (prompt, its samples) each; a prompt's samples wrap after six. Only the first 60 samples are shown, which
            the sheet then says.
        total: how many samples there are, where `rows` holds only the first ones.
    """
    total = sum(len(tiles) for _, tiles in rows) if total is None else total
    rows, shown = _first(rows, MAX_SAMPLES)
    columns = max(1, min(COLUMNS, max((len(tiles) for _, tiles in rows), default=1)))
    in_a_row = max(1, min(REFERENCE_COLUMNS, len(references)))
    width = max(columns, in_a_row, 2) * (CELL_PX + GAP_PX)  # room for a prompt above a single sample
    # Each: lines of text, their ink, the tiles below them, and how many of those stand in a row.
    blocks = [([f"references ({len(references)})"], FAINT, references, in_a_row)]
    blocks.append(([f"samples ({total})"], FAINT, [], 1))
    blocks += [(wrap_text(prompt, width - GAP_PX, 3), INK, tiles, columns) for prompt, tiles in rows]
    if shown < total:
        blocks.append(([f"the first {shown} of {total} samples"], FAINT, [], 1))

    tile_height = CELL_PX + LINE_PX + GAP_PX
    heights = [len(lines) * LINE_PX + -(-len(tiles) // across) * tile_height for lines, _, tiles, across in blocks]
    sheet = Image.new("RGB", (GAP_PX + width, GAP_PX + sum(heights) + GAP_PX * len(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP_PX
    for (lines, ink, tiles, across), height in zip(blocks, heights, strict=True):
        for index, line in enumerate(lines):
            draw.text((GAP_PX, top + index * LINE_PX), line, ink, sheet_font())
        begin = top + len(lines) * LINE_PX
        for index, tile in enumerate(tiles):
            row, column = divmod(index, across)
            _paste(sheet, tile, GAP_PX + column * (CELL_PX + GAP_PX), begin + row * tile_height)
        top += height + GAP_PX
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

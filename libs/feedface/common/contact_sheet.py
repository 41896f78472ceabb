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
    """A picture with a one-line label under it, and a note of two lines under that."""

    image: Image.Image
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Lines of text, and below them tiles, `across` in a row; each is scaled to fit `cell_px` (width, height)."""

    lines: Sequence[str]
    ink: tuple[int, int, int] | str
    tiles: Sequence[Tile] = ()
    across: int = 1
    cell_px: tuple[int, int] = (CELL_PX, CELL_PX)

    @property
    def tile_height(self) -> int:
        return self.cell_px[1] + (3 if any(tile.note for tile in self.tiles) else 1) * LINE_PX + GAP_PX

    @property
    def height(self) -> int:
        return len(self.lines) * LINE_PX + -(-len(self.tiles) // self.across) * self.tile_height


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
    blocks = [Block([f"references ({len(references)})"], FAINT, references, in_a_row)]
    blocks.append(Block([f"samples ({total})"], FAINT))
    blocks += [Block(wrap_text(prompt, width - GAP_PX, 3), INK, tiles, columns) for prompt, tiles in rows]
    if shown < total:
        blocks.append(Block([f"the first {shown} of {total} samples"], FAINT))
    return draw_blocks(blocks, width)


def draw_blocks(blocks: Sequence[Block], width: int) -> Image.Image:
    """Blocks below each other, `width` pixels without the margin on the left."""
    sheet = Image.new("RGB", (GAP_PX + width, GAP_PX + sum(block.height + GAP_PX for block in blocks)), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP_PX
    for block in blocks:
        for index, line in enumerate(block.lines):
            draw.text((GAP_PX, top + index * LINE_PX), line, block.ink, sheet_font())
        begin = top + len(block.lines) * LINE_PX
        for index, tile in enumerate(block.tiles):
            row, column = divmod(index, block.across)
            left = GAP_PX + column * (block.cell_px[0] + GAP_PX)
            _paste(sheet, tile, left, begin + row * block.tile_height, block.cell_px)
        top += block.height + GAP_PX
    return sheet


def _first(rows, limit: int) -> tuple[list, int]:
    kept = []
    for prompt, tiles in rows:
        tiles = list(tiles)[:limit]
        if tiles:
            kept.append((prompt, tiles))
        limit -= len(tiles)
    return kept, sum(len(tiles) for _, tiles in kept)


def _paste(sheet: Image.Image, tile: Tile, left: int, top: int, cell_px: tuple[int, int]) -> None:
    """Scale the picture to fit its cell and set label and note under it."""
    factor = min(cell / side for cell, side in zip(cell_px, tile.image.size, strict=True))
    size = [max(1, round(side * factor)) for side in tile.image.size]
    sheet.paste(tile.image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
    lines = [fit_text(tile.label, cell_px[0]), *wrap_text(tile.note, cell_px[0], 2)]
    for index, line in enumerate(lines):
        place = (left, top + size[1] + 2 + index * LINE_PX)
        ImageDraw.Draw(sheet).text(place, line, FAINT, sheet_font())


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

"""Contact sheets: labelled pictures under lines of text.

`contact_sheet` shows a run: the faces it was given, and below what it drew for each prompt; `tile_rows` any rows.
"""

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
INK, FAINT, PAPER, GONE = (20, 20, 20), (110, 110, 110), (255, 255, 255), (225, 225, 225)


@dataclass(frozen=True)
class Tile:
    """A picture with a label under it, and a note of two lines under that; None: a picture that is not there."""

    image: Image.Image | None
    label: str = ""
    note: str = ""


@dataclass(frozen=True)
class Block:
    """Lines of text, and below them tiles, `across` in a row; each is scaled to fit `cell_px` (width, height), and its
    label has at most `label_lines` lines."""

    lines: Sequence[str]
    ink: tuple[int, int, int] | str
    tiles: Sequence[Tile] = ()
    across: int = 1
    cell_px: tuple[int, int] = (CELL_PX, CELL_PX)
    label_lines: int = 1

    def label(self, tile: Tile) -> list[str]:
        return wrap_text(tile.label, self.cell_px[0], self.label_lines) or [""]

    @property
    def tile_height(self) -> int:
        lines = max((len(self.label(tile)) for tile in self.tiles), default=1)
        lines += 2 if any(tile.note for tile in self.tiles) else 0
        return self.cell_px[1] + lines * LINE_PX + GAP_PX

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


def tile_rows(rows: Sequence[tuple[str, Sequence[Tile]]], label_lines: int = 3) -> Image.Image:
    """A row of tiles under each title, which has at most two lines and may be empty."""
    across = max((len(tiles) for _, tiles in rows), default=1)
    width = across * (CELL_PX + GAP_PX)
    titles = [wrap_text(title, width - GAP_PX, 2) for title, _ in rows]
    blocks = [Block(lines, FAINT, tiles, across, label_lines=label_lines)
              for lines, (_, tiles) in zip(titles, rows, strict=True)]  # fmt: skip
    return draw_blocks(blocks, width)


def draw_blocks(blocks: Sequence[Block], width: int) -> Image.Image:
    """Blocks below each other, `width` pixels without the margin on the left."""
    sheet = Image.new("RGB", (GAP_PX + width, GAP_PX + sum(block.height + GAP_PX for block in blocks)), PAPER)
    top = GAP_PX
    for block in blocks:
        _write(sheet, block.lines, GAP_PX, top, block.ink)
        begin = top + len(block.lines) * LINE_PX
        for index, tile in enumerate(block.tiles):
            row, column = divmod(index, block.across)
            left = GAP_PX + column * (block.cell_px[0] + GAP_PX)
            below = _paste(sheet, tile.image, left, begin + row * block.tile_height, block.cell_px)
            lines = [*block.label(tile), *wrap_text(tile.note, block.cell_px[0], 2)]
            _write(sheet, lines, left, below + 2, FAINT)
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


def _paste(sheet: Image.Image, image: Image.Image | None, left: int, top: int, cell_px: tuple[int, int]) -> int:
    """Scale the picture to fit its cell; grey and said so where there is none. Returns where it ends."""
    if image is None:
        sheet.paste(GONE, (left, top, left + cell_px[0], top + cell_px[1]))
        middle = left + (cell_px[0] - sheet_font().getlength("no picture")) / 2
        _write(sheet, ["no picture"], middle, top + (cell_px[1] - LINE_PX) / 2, FAINT)
        return top + cell_px[1]
    factor = min(cell / side for cell, side in zip(cell_px, image.size, strict=True))
    size = [max(1, round(side * factor)) for side in image.size]
    sheet.paste(image.convert("RGB").resize(size, Image.Resampling.LANCZOS), (left, top))
    return top + size[1]


def _write(sheet: Image.Image, lines: Sequence[str], left: float, top: float, ink: tuple[int, int, int] | str) -> None:
    for index, line in enumerate(lines):
        ImageDraw.Draw(sheet).text((left, top + index * LINE_PX), line, ink, sheet_font())


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

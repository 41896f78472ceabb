"""Contact sheets of an evaluation: a row a person, the reference first."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from feedface.common.contact_sheet import CELL_PX, FAINT, GAP_PX, INK, LINE_PX, PAPER, fit_text, sheet_font, wrap_text

ZOOM = 3
GONE = (225, 225, 225)


@dataclass(frozen=True)
class Row:
    """A person: title, a line above the pictures; reference, and the picture of each system. None: it is not there."""

    title: str
    reference: Image.Image | None
    pictures: Sequence[Image.Image | None]


def side_by_side(systems: Sequence[str], rows: Sequence[Row]) -> Image.Image:
    """The reference and what each system drew of it, under the systems' names; all scaled to cells of one size."""
    heads = [wrap_text(name, CELL_PX, 3) for name in ("reference", *systems)]
    head_px = GAP_PX + LINE_PX * max(map(len, heads)) + GAP_PX // 2
    width = GAP_PX + len(heads) * (CELL_PX + GAP_PX)
    titles = [wrap_text(row.title, width - 2 * GAP_PX, 2) for row in rows]
    heights = [LINE_PX * len(lines) + CELL_PX + GAP_PX for lines in titles]
    sheet = Image.new("RGB", (width, head_px + sum(heights) + GAP_PX), PAPER)
    pen = ImageDraw.Draw(sheet)
    for column, lines in enumerate(heads):
        top = head_px - GAP_PX // 2 - LINE_PX * len(lines)  # names stand on one line
        for number, line in enumerate(lines):
            pen.text((GAP_PX + column * (CELL_PX + GAP_PX), top + number * LINE_PX), line, INK, sheet_font())
    top = head_px
    for row, lines, height in zip(rows, titles, heights, strict=True):
        for number, line in enumerate(lines):
            pen.text((GAP_PX, top + number * LINE_PX), line, FAINT, sheet_font())
        for column, picture in enumerate((row.reference, *row.pictures)):
            _paste(sheet, picture, GAP_PX + column * (CELL_PX + GAP_PX), top + LINE_PX * len(lines))
        top += height
    return sheet


def _paste(sheet: Image.Image, picture: Image.Image | None, left: int, top: int) -> None:
    """Into the middle of its cell; grey and said so where there is none."""
    if picture is None:
        sheet.paste(GONE, (left, top, left + CELL_PX, top + CELL_PX))
        text = fit_text("no picture", CELL_PX)
        place = (left + (CELL_PX - sheet_font().getlength(text)) / 2, top + CELL_PX / 2 - LINE_PX / 2)
        ImageDraw.Draw(sheet).text(place, text, FAINT, sheet_font())
        return
    factor = CELL_PX / max(picture.size)
    width, height = (max(1, round(side * factor)) for side in picture.size)
    scaled = picture.resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(scaled, (left + (CELL_PX - width) // 2, top + (CELL_PX - height) // 2))


def people_sheet(references: np.ndarray, samples: np.ndarray, prompts: list[list[str]]) -> Image.Image:
    """A row a person: a reference on the left, then samples with their prompts under them.

    references: uint8 [I, H, W, 3]; samples: uint8 [I, S, H, W, 3]; prompts: [I][S]. Pictures are enlarged three times.
    """
    gap_px, line_px = 10, 16
    font = ImageFont.load_default(13)
    side = ZOOM * references.shape[1]
    letters = int(side / font.getlength("n" * 20) * 20)
    labels = [["reference", *row] for row in prompts]
    wrapped = [[textwrap.wrap(label, letters) for label in row] for row in labels]
    row_px = side + line_px * max(len(lines) for row in wrapped for lines in row) + gap_px
    columns = samples.shape[1] + 1
    size = (columns * (side + gap_px) + gap_px, len(samples) * row_px + gap_px)
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for person, row in enumerate(wrapped):
        for column, lines in enumerate(row):
            picture = references[person] if column == 0 else samples[person, column - 1]
            left, top = gap_px + column * (side + gap_px), gap_px + person * row_px
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (left, top))
            for number, line in enumerate(lines):
                pen.text((left, top + side + number * line_px), line, "black", font)
    return sheet

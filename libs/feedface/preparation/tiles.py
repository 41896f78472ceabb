"""A picture as a run has seen it: boxes, landmarks and masks drawn over it, its largest face beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from feedface.common.errors import UserError
from feedface.common.images import open_image, read_image
from feedface.faces.crop import crop_square
from feedface.faces.types import LAPA_VALUES
from feedface.preparation.result import ERROR, FILTERED, MULTI, SINGLE, stems

TILE_PX = 180
PAPER, EMPTY = (255, 255, 255), (225, 225, 225)
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


def draw_tile(picture: Picture, data_folder: Path, out_folder: Path) -> Image.Image:
    """The picture with boxes, landmarks and masks over it; beside it the square of its largest face.

    A grey tile where the picture cannot be read; 180 pixels high at most.
    """
    try:
        image = read_image(data_folder / picture.rel)
    except UserError:
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

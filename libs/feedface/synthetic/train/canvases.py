"""Training pictures for the mini detector: portraits scaled and placed on canvases, several, one or none on each.

B canvases of S x S pixels, up to F faces on each. Positions are in pixels from the picture's corner.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MAX_FACES = 4
SHARE_EMPTY, SHARE_SINGLE = 0.12, 0.55  # the rest holds two to four portraits
SINGLE_FACE = (0.18, 0.95)  # longer side of the face as a part of the canvas
SHARED_FACE = (0.30, 0.90)  # the same as a part of a quadrant
TILES = 8


@dataclass(frozen=True)
class Canvases:
    """images [B, 3, S, S] in [0, 1]; boxes [B, F, 4]; landmarks [B, F, 5, 2]; present [B, F] bool."""

    images: Tensor
    boxes: Tensor
    landmarks: Tensor
    present: Tensor


class CanvasMaker:
    """Draws canvases from a `PortraitSet`."""

    def __init__(self, portraits, size_px: int, device: torch.device | str = "cpu"):
        self.size_px, self.device = size_px, torch.device(device)
        self.images = torch.from_numpy(np.ascontiguousarray(portraits.images)).permute(0, 3, 1, 2).to(self.device)
        self.boxes = torch.from_numpy(portraits.boxes).to(self.device)
        self.landmarks = torch.from_numpy(portraits.landmarks).to(self.device)

    def draw(self, count: int, generator: torch.Generator) -> Canvases:
        """`count` canvases; the same generator state gives the same ones."""
        size = self.size_px
        images = self._backgrounds(count, generator)
        boxes = torch.zeros(count, MAX_FACES, 4, device=self.device)
        landmarks = torch.zeros(count, MAX_FACES, 5, 2, device=self.device)
        kind = torch.rand(count, generator=generator)
        single = (kind >= SHARE_EMPTY) & (kind < SHARE_EMPTY + SHARE_SINGLE)
        shared = kind >= SHARE_EMPTY + SHARE_SINGLE
        # Two to four of the quadrants: two of a random order always, the others half of the time.
        order = torch.rand(count, MAX_FACES, generator=generator).argsort(1)
        present = shared[:, None] & ((order < 2) | (torch.rand(count, MAX_FACES, generator=generator) < 0.5))
        present[:, 0] |= single
        for slot in range(MAX_FACES):
            rows = present[:, slot].nonzero()[:, 0]
            if not len(rows):
                continue
            alone = single[rows]
            side = torch.where(alone, size, size / 2)
            corner = torch.tensor([slot % 2, slot // 2]) * (size / 2) * (~alone)[:, None]
            placed = self._place(images[rows.to(self.device)], corner, side, alone, generator)
            rows = rows.to(self.device)
            images[rows], boxes[rows, slot], landmarks[rows, slot] = placed
        return Canvases(self._spoil(images, generator), boxes, landmarks, present.to(self.device))

    def _place(self, canvas, corner, side, alone, generator) -> tuple[Tensor, Tensor, Tensor]:
        """Paint one portrait into the cell (corner [n, 2], side [n]) of each canvas, its whole face inside the cell."""
        count, size = len(canvas), self.size_px
        index = torch.randint(len(self.images), (count,), generator=generator).to(self.device)
        box = self.boxes[index]
        span = box[:, 2:] - box[:, :2]
        limits = torch.where(alone[:, None], torch.tensor(SINGLE_FACE), torch.tensor(SHARED_FACE)).log()
        share = torch.lerp(limits[:, 0], limits[:, 1], torch.rand(count, generator=generator)).exp()
        where, extend = torch.rand(count, 2, generator=generator), torch.rand(count, generator=generator) < 0.5
        corner, side, share, where = (value.to(self.device) for value in (corner, side, share, where))
        scale = share * side / span.amax(1)  # canvas pixels per portrait pixel
        offset = corner + where * (side[:, None] - span * scale[:, None]) - box[:, :2] * scale[:, None]

        axis = torch.arange(size, device=self.device) + 0.5
        x = (axis[None, None, :] - offset[:, 0, None, None]) / scale[:, None, None]
        y = (axis[None, :, None] - offset[:, 1, None, None]) / scale[:, None, None]
        source_px = self.images.shape[-1]
        grid = torch.stack([x.expand(-1, size, -1), y.expand(-1, -1, size)], -1) * (2 / source_px) - 1
        portraits = self.images[index].float() / 255
        painted = F.grid_sample(portraits, grid, padding_mode="border", align_corners=False)
        # A lone portrait may go on past its border; otherwise the background shows there.
        covered = (grid.abs() <= 1).all(-1) | (alone & extend).to(self.device)[:, None, None]
        inside_x = (axis >= corner[:, 0, None]) & (axis < corner[:, 0, None] + side[:, None])
        inside_y = (axis >= corner[:, 1, None]) & (axis < corner[:, 1, None] + side[:, None])
        covered &= inside_x[:, None, :] & inside_y[:, :, None]
        canvas = torch.where(covered[:, None], painted, canvas)
        boxes = box * scale[:, None] + offset.repeat(1, 2)
        return canvas, boxes, self.landmarks[index] * scale[:, None, None] + offset[:, None]

    def _backgrounds(self, count: int, generator: torch.Generator) -> Tensor:
        """Pictures without a face: plain, cloudy, shuffled pieces of portraits, or what surrounds the faces."""
        size = self.size_px
        plain = torch.rand(count, 3, 1, 1, generator=generator)
        # Bars of black and frames of grey are what the detector adds itself.
        plain *= (torch.rand(count, 1, 1, 1, generator=generator) < 0.6).float()
        clouds = torch.rand(count, 3, 6, 6, generator=generator)
        clouds = F.interpolate(clouds, size=(size, size), mode="bicubic").clamp(0, 1)
        kind = torch.randint(4, (count,), generator=generator)
        images = torch.where((kind == 0)[:, None, None, None], plain, clouds).to(self.device)
        for number, draw in ((2, self._shuffled), (3, self._surroundings)):
            rows = (kind == number).nonzero()[:, 0]
            if len(rows):
                images[rows.to(self.device)] = draw(len(rows), generator)
        return images

    def _shuffled(self, count: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(self.images), (count,), generator=generator).to(self.device)
        pictures = F.interpolate(self.images[index].float() / 255, size=(self.size_px, self.size_px), mode="bilinear")
        tiles = pictures.unflatten(3, (TILES, -1)).unflatten(2, (TILES, -1))  # [n, 3, T, s, T, s]
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # [n, T*T, 3, s, s]
        order = torch.rand(count, TILES * TILES, generator=generator).argsort(1).to(self.device)
        tiles = tiles[torch.arange(count, device=self.device)[:, None], order].unflatten(1, (TILES, TILES))
        return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def _surroundings(self, count: int, generator: torch.Generator) -> Tensor:
        """The strip left of, right of, above or below the face, stretched over the canvas."""
        index = torch.randint(len(self.images), (count,), generator=generator).to(self.device)
        box, whole = self.boxes[index], float(self.images.shape[-1])
        strip = torch.tensor([0.0, 0.0, whole, whole], device=self.device).repeat(count, 1)
        edge = torch.randint(4, (count,), generator=generator).to(self.device)
        # Side 0..3 of the strip (x0, y0, x1, y1) moves to the opposite side of the face.
        opposite = box.gather(1, ((edge + 2) % 4)[:, None]).clamp(2, whole - 2)
        strip = strip.scatter(1, edge[:, None], opposite)
        at = (torch.arange(self.size_px, device=self.device) + 0.5) / self.size_px
        x = strip[:, 0, None] + (strip[:, 2] - strip[:, 0])[:, None] * at
        y = strip[:, 1, None] + (strip[:, 3] - strip[:, 1])[:, None] * at
        shape = (count, self.size_px, self.size_px)
        grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1) * (2 / whole) - 1
        return F.grid_sample(self.images[index].float() / 255, grid, padding_mode="border", align_corners=False)

    def _spoil(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Lost detail, changed light and noise, as generated and enlarged pictures have them."""
        count = len(images)
        for factor in (2, 4):
            rows = (torch.rand(count, generator=generator) < 0.15).nonzero()[:, 0].to(self.device)
            if len(rows):
                small = F.avg_pool2d(images[rows], factor)
                images[rows] = F.interpolate(small, size=images.shape[2:], mode="bilinear")
        light = 1 + 0.3 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
        tint = 1 + 0.1 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
        strength = 0.06 * torch.rand(count, 1, 1, 1, generator=generator) ** 2
        noise = torch.randn(images.shape, generator=generator) * strength
        return (images * (light * tint).to(self.device) + noise.to(self.device)).clamp(0, 1)

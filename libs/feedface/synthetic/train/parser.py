"""Stage `parser`: a small U-Net that labels the pixels of one face of the portrait world, from a crop around it.

It learns from crops as `MiniParser` cuts them: the box is a little off, the picture larger or smaller than the crop,
and beside the portrait there may be anything, other faces too, which are background then.

Shape letters: B crops, S their side in pixels, P the side of a portrait.
"""

from dataclasses import replace
from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.common.device import pick_device
from feedface.faces.detect import Face
from feedface.faces.parse import CLASS_NAMES, MiniParser
from feedface.faces.parser_net import CLASSES, ParserNet
from feedface.synthetic.world import PortraitSet, make_portraits, read_world, write_world
from feedface.training.fit import FitResult, fit, write_metrics

BOX_SHIFT, BOX_SCALE = 0.04, 0.06  # standard deviations of the mini detector's boxes, in and of face sides
UNKNOWN = 255  # beyond the picture's border there is no truth
DETAIL_PX = (48, 112)  # sides of the portraits, before they are cropped
DETAILS = 4  # how many of those sides in one batch
EDGE, OTHER = 0.35, 0.35  # beside the portrait: the picture ends; other portraits; else a plain colour
CHECKED_PX = (64, 128)  # sides of the portraits that are measured
CHECKED_SCENES = 2


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Lost detail, changed light and noise on portraits [B, 3, H, W] in [0, 1], as generated pictures have them."""
    count, device = len(images), images.device
    rows = (torch.rand(count, generator=generator) < 0.4).nonzero()[:, 0].to(device)
    if len(rows):
        small = F.interpolate(images[rows], scale_factor=0.5, mode="bilinear", antialias=True)
        images[rows] = F.interpolate(small, size=images.shape[2:], mode="bicubic")
    light = 1 + 0.16 * (torch.rand(count, 1, 1, 1, generator=generator) - 0.5)
    tint = 1 + 0.06 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5)
    strength = 0.06 * torch.rand(count, 1, 1, 1, generator=generator) ** 2
    noise = torch.randn(images.shape, generator=generator) * strength
    return (images * (light * tint).to(device) + noise.to(device)).clamp(0, 1)


class CropMaker:
    """Draws crops with their true classes from a `PortraitSet`."""

    def __init__(self, portraits: PortraitSet, crop_px: int, expand: float, device: torch.device | str = "cpu"):
        self.crop_px, self.expand, self.device = crop_px, expand, torch.device(device)
        self.images = torch.from_numpy(np.ascontiguousarray(portraits.images)).permute(0, 3, 1, 2).to(self.device)
        self.masks = torch.from_numpy(portraits.masks).to(self.device)
        self.boxes = torch.from_numpy(portraits.boxes).to(self.device)

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Crops [B, 3, S, S], RGB in 0..1, and classes [B, S, S] int64, `UNKNOWN` where the picture has ended."""
        parts = [self._draw(len(rows), generator) for rows in torch.arange(count).chunk(DETAILS)]
        # Half of them with lost detail, other light and noise; the parts differ in size only.
        parts[::2] = [(spoil(crops, generator), classes) for crops, classes in parts[::2]]
        return tuple(torch.cat(values) for values in zip(*parts, strict=True))

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index, other = torch.randint(len(self.images), (2, count), generator=generator).to(self.device)
        kind = torch.rand(count, 1, 1, generator=generator).to(self.device)
        colour = torch.rand(count, 3, 1, 1, generator=generator).to(self.device)
        grid = self._grid(self.boxes[index], generator)
        outside = (grid.abs() > 1).any(-1)  # [B, S, S]

        low, high = DETAIL_PX
        detail_px = round(low * (high / low) ** float(torch.rand((), generator=generator)))
        crops = F.grid_sample(self._pictures(index, detail_px), grid, padding_mode="border", align_corners=False)
        # Other portraits stand all around, edge to edge.
        around = F.grid_sample(self._pictures(other, detail_px), (grid + 1) % 2 - 1, align_corners=False)
        around = torch.where((kind < EDGE + OTHER)[:, None], around, colour)
        crops = torch.where((outside & (kind >= EDGE))[:, None], around, crops)

        classes = F.grid_sample(self.masks[index, None].float(), grid, mode="nearest", align_corners=False)
        classes = classes[:, 0].long().masked_fill(outside & (kind < EDGE), UNKNOWN)
        return crops, classes

    def _grid(self, boxes: Tensor, generator: torch.Generator) -> Tensor:
        """Where the crops around [B, 4] boxes, each a little off, look: [B, S, S, 2], x and y in -1..1."""
        off = torch.randn(len(boxes), 3, generator=generator).to(self.device)
        longer = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + BOX_SHIFT * longer * off[:, :2]
        side = self.expand * longer * (BOX_SCALE * off[:, 2:]).exp()
        step = (torch.arange(self.crop_px, device=self.device) + 0.5) / self.crop_px - 0.5
        x, y = (centre[:, axis, None] + side * step for axis in (0, 1))  # [B, S] px
        shape = (len(boxes), self.crop_px, self.crop_px)
        places = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
        return places * (2 / self.images.shape[-1]) - 1

    def _pictures(self, index: Tensor, side_px: int) -> Tensor:
        """Portraits of another size, [B, 3, side_px, side_px] in 0..1."""
        pictures = self.images[index].float() / 255
        size = (side_px, side_px)
        return F.interpolate(pictures, size, mode="bilinear", align_corners=False, antialias=True)


def parsing_loss(logits: Tensor, classes: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross-entropy and one minus the mean Dice coefficient, which counts an eye as much as all hair.

    logits [B, C, S, S]; classes [B, S, S] int64, `UNKNOWN` left out. Returns the sum and its parts by name.
    """
    entropy = F.cross_entropy(logits, classes, ignore_index=UNKNOWN)
    guess = logits.softmax(1).movedim(1, -1)[classes != UNKNOWN]  # [n, C]
    truth = F.one_hot(classes[classes != UNKNOWN], CLASSES).to(guess.dtype)
    area = truth.sum(0)
    dice = 1 - (2 * (guess * truth).sum(0) / (guess.sum(0) + area))[area > 0].mean()
    return entropy + dice, {"entropy": entropy.detach(), "dice": dice.detach()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.parser`, leave `<workdir>/bundle/parser/`, and measure it.

    The portraits, in `parser_world`, show people of the train world. `config.start`: a model whose parser, of the same
    shape, to go on from; "" for random weights.
    """
    world, config, workdir = config.world, config.parser, Path(workdir)
    device = pick_device(config.device)
    folder = workdir / "parser_world"
    start = world.train.first_identity
    write_world(folder, config.identities, config.per_identity, world.seed, config.image_px, start)
    torch.manual_seed(config.seed)
    model = ParserNet(config.crop_px, config.expand, config.width).to(device)
    if config.start:
        source = Path(config.start) / "parser"
        model.load_state_dict(ParserNet.from_pretrained(source, device).state_dict())
    portraits = read_world(folder)

    def train(settings: ml_collections.ConfigDict, out: Path) -> FitResult:
        maker = CropMaker(portraits, settings.crop_px, settings.expand, device)

        def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            crops, classes = maker.draw(settings.batch_size, generator)
            return parsing_loss(model(crops).float(), classes)

        return fit("parser", model, step, settings, out)

    # Small crops first: a step costs half, and most of what they teach holds for larger ones.
    small = config.copy_and_resolve_references().unlock()
    small.update(config.small)
    parts = [] if config.start else [train(small, workdir / "parser" / "small")]
    parts.append(train(config, workdir / "parser"))
    sums = {name: sum(getattr(part, name) for part in parts) for name in ("steps", "samples", "seconds")}
    result = replace(parts[-1], **sums)
    model.save_pretrained(workdir / "bundle" / "parser")
    parser = MiniParser(workdir / "bundle" / "parser", device)
    people = np.arange(world.held_out.first_identity, world.held_out.first_identity + world.held_out.identities)
    scenes = np.tile(np.arange(CHECKED_SCENES), len(people))
    found = {}
    for size in CHECKED_PX:
        scores = measure(parser, make_portraits(np.repeat(people, CHECKED_SCENES), scenes, world.seed, size))
        found[f"miou_{size}px"] = round(float(scores.mean()), 4)
    # The classes one by one at the largest size.
    found |= {name: round(float(score), 4) for name, score in zip(CLASS_NAMES, scores, strict=True)}
    write_metrics(workdir / "parser", config, result, **found)


def measure(parser: MiniParser, portraits: PortraitSet) -> np.ndarray:
    """Intersection over union of each class, float [C], at the pictures' own size; boxes off as a detector's are."""
    generator = np.random.default_rng(0)
    boxes = portraits.boxes.astype(np.float64)
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1, keepdims=True)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 + BOX_SHIFT * longer * generator.standard_normal((len(boxes), 2))
    half = (boxes[:, 2:] - boxes[:, :2]) / 2 * np.exp(BOX_SCALE * generator.standard_normal((len(boxes), 1)))
    faces = [[Face(box=box.astype(np.float32), score=1.0)] for box in np.concatenate([centre - half, centre + half], 1)]
    masks = parser.parse_many(list(zip(portraits.images, faces, strict=True)))
    return class_iou(np.stack([found[0] for found in masks]), portraits.masks)


def class_iou(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of each class over all pixels: uint8 arrays of one shape -> float [C].

    A class that neither has counts as found.
    """
    pairs = np.bincount((found.astype(np.int64) * CLASSES + truth).ravel(), minlength=CLASSES**2)
    pairs = pairs.reshape(CLASSES, CLASSES)
    both = pairs.diagonal()
    either = pairs.sum(0) + pairs.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)

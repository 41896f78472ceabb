"""Stage `detector`: a small SCRFD-style face detector for the portrait world, as insightface loads it.

Two anchors at every cell of strides 8, 16 and 32 predict a score, the distances to the box's four sides and five
landmarks (SCRFD, Guo et al. 2022; insightface's decoder fixes the layout of the outputs).

Shape letters: B pictures, S side of the picture, N anchors of all strides, F faces (0 < F <= MAX_FACES).
"""

from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.common.device import pick_device
from feedface.faces.detect import InsightFaceDetector
from feedface.synthetic.train.canvases import Canvases, CanvasMaker
from feedface.synthetic.train.common import load_portraits
from feedface.synthetic.train.export import export_onnx
from feedface.training.fit import fit, write_metrics

PACK = Path("bundle/faces/models/mini")
STRIDES = (8, 16, 32)
ANCHOR_PX = {8: (18.0, 28.0), 16: (44.0, 68.0), 32: (100.0, 140.0)}  # the face size each anchor is for
ANCHOR_REACH = 1.45  # and how many times smaller or larger it may be: neighbours overlap a little
CELL_REACH = 0.75  # how far from the face's centre a cell may lie, in strides
PER_ANCHOR = 1 + 4 + 10
POINT_WEIGHT = 15  # the recogniser's crops hang on the landmarks
CHECKED_CANVASES = 400


class Detector(nn.Module):
    """`forward(images [B, 3, S, S] RGB in [-1, 1]) -> scores [B, N] (logits), distances [B, N, 4], points [B, N, 10]`.

    Distances and points are in pixels from the anchor's place (column * stride, row * stride).
    """

    def __init__(self, width: int):
        super().__init__()
        w = width
        self.stem = nn.Sequential(_conv(3, w, 7, 4), _conv(w, w))  # stride 4: few channels at the most places
        self.down = nn.ModuleList(
            [
                nn.Sequential(_conv(w, 2 * w, 3, 2), _conv(2 * w, 2 * w)),
                nn.Sequential(_conv(2 * w, 3 * w, 3, 2), _conv(3 * w, 3 * w)),
                nn.Sequential(_conv(3 * w, 3 * w, 3, 2), _conv(3 * w, 3 * w)),
            ]
        )
        self.lateral = nn.ModuleList([nn.Conv2d(channels, 2 * w, 1) for channels in (2 * w, 3 * w, 3 * w)])
        self.mix = nn.ModuleList([_conv(2 * w, 2 * w) for _ in STRIDES])
        self.head = nn.ModuleList([nn.Conv2d(2 * w, 2 * PER_ANCHOR, 1) for _ in STRIDES])
        for head in self.head:
            nn.init.normal_(head.weight, std=0.01)
            bias = torch.zeros(2, PER_ANCHOR)
            bias[:, 0] = -4  # hardly any anchor holds a face
            bias[:, 1:5] = 0.5
            head.bias.data.copy_(bias.flatten())

    def levels(self, images: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The three outputs of `forward` for each stride apart."""
        x, features = self.stem(images), []
        for down, lateral in zip(self.down, self.lateral, strict=True):
            x = down(x)
            features.append(lateral(x))
        features[1] = features[1] + F.interpolate(features[2], scale_factor=2)
        features[0] = features[0] + F.interpolate(features[1], scale_factor=2)
        outputs = []
        for stride, feature, mix, head in zip(STRIDES, features, self.mix, self.head, strict=True):
            raw = head(mix(feature)).permute(0, 2, 3, 1)  # [B, h, w, 2 * 15]
            raw = raw.reshape(raw.shape[0], -1, 2, PER_ANCHOR)
            sizes = torch.tensor(ANCHOR_PX[stride], device=images.device)[:, None]
            geometry = (raw[..., 1:] * sizes).flatten(1, 2)
            outputs.append((raw[..., 0].flatten(1), geometry[..., :4], geometry[..., 4:]))
        return outputs

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scores, distances, points = zip(*self.levels(images), strict=True)
        return torch.cat(scores, 1), torch.cat(distances, 1), torch.cat(points, 1)


class DetectorFile(nn.Module):
    """What the ONNX file computes, for one picture: scores of the three strides, then boxes, then landmarks.

    scores [n, 1] in [0, 1]; distances [n, 4] and landmarks [n, 10] in strides, which is how insightface reads them.
    """

    OUTPUTS = tuple(f"{kind}_{stride}" for kind in ("score", "bbox", "kps") for stride in STRIDES)

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = detector

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        levels = list(zip(STRIDES, self.detector.levels(image), strict=True))
        scores = [level[0][0].sigmoid()[:, None] for _, level in levels]
        distances = [level[1][0] / stride for stride, level in levels]
        return (*scores, *distances, *(level[2][0] / stride for stride, level in levels))


def anchors(image_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Places [N, 2] (x, y), sizes [N] and strides [N] of all anchors, in pixels and in the order of the outputs."""
    places, sizes, strides = [], [], []
    for stride in STRIDES:
        cells = torch.arange(image_px // stride) * float(stride)
        y, x = torch.meshgrid(cells, cells, indexing="ij")
        places.append(torch.stack([x, y], -1).flatten(0, 1).repeat_interleave(2, 0))
        sizes.append(torch.tensor(ANCHOR_PX[stride]).repeat(len(cells) ** 2))
        strides.append(torch.full((2 * len(cells) ** 2,), float(stride)))
    return torch.cat(places), torch.cat(sizes), torch.cat(strides)


def assign(canvases: Canvases, places: Tensor, sizes: Tensor, strides: Tensor) -> Tensor:
    """[B, N] int64: the face that an anchor shall find (0..F-1), or -1: its size fits and its centre is near."""
    boxes = canvases.boxes
    centre, span = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    face_px = span.prod(-1).clamp(min=1).sqrt()  # [B, F]
    away = (places[:, None] - centre[:, None]).abs().amax(-1) / strides[:, None]  # [B, N, F]
    fits = (face_px[:, None] / sizes[:, None]).log().abs() <= np.log(ANCHOR_REACH)
    fits &= (away <= CELL_REACH) & canvases.present[:, None]
    nearest = away.masked_fill(~fits, torch.inf).argmin(-1)
    return torch.where(fits.any(-1), nearest, -1)


def detection_loss(outputs: tuple[Tensor, Tensor, Tensor], canvases: Canvases, target: Tensor, places: Tensor):
    """Quality focal loss on the scores, GIoU on the boxes, smooth L1 on the landmarks (in face widths).

    Returns the sum and its parts by name; each is a mean over the anchors that have a face.
    """
    scores, distances, points = outputs
    row, anchor = (target >= 0).nonzero(as_tuple=True)
    face = target[row, anchor]
    place, wanted = places[anchor], canvases.boxes[row, face]
    sides = distances[row, anchor]
    boxes = torch.cat([place - sides[:, :2], place + sides[:, 2:]], 1)
    iou, giou = _iou_and_giou(boxes, wanted)
    quality = torch.zeros_like(scores)
    quality[row, anchor] = iou.detach()
    focus = (scores.sigmoid() - quality).square()
    count = max(1, len(row))
    score_loss = (focus * F.binary_cross_entropy_with_logits(scores, quality, reduction="none")).sum() / count
    box_loss = (1 - giou).sum() / count
    width = (wanted[:, 2:] - wanted[:, :2]).amax(1)[:, None, None]
    error = (place[:, None] + points[row, anchor].unflatten(1, (5, 2)) - canvases.landmarks[row, face]) / width
    point_loss = F.smooth_l1_loss(error, torch.zeros_like(error), beta=0.05, reduction="sum") / (10 * count)
    loss = score_loss + box_loss + POINT_WEIGHT * point_loss
    parts = {"score": score_loss, "box": box_loss, "points": point_loss}
    return loss, {name: part.detach() for name, part in parts.items()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.detector`, write `<workdir>/bundle/faces/models/mini/detector.onnx`, and measure that file."""
    config, workdir = config.detector, Path(workdir)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    model = Detector(config.width).to(device)
    maker = CanvasMaker(load_portraits(workdir), config.image_px, device)
    places, sizes, strides = (values.to(device) for values in anchors(config.image_px))

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        canvases = maker.draw(config.batch_size, generator)
        target = assign(canvases, places, sizes, strides)
        return detection_loss(model(to_input(canvases.images)), canvases, target, places)

    result = fit("detector", model, step, config, workdir / "detector")
    save(model, workdir / PACK / "detector.onnx", config.image_px)
    found = measure(InsightFaceDetector("mini", workdir / PACK.parents[1]), load_portraits(workdir, "held_out"))
    write_metrics(workdir / "detector", config, result, **found)


def to_input(images: Tensor) -> Tensor:
    """[0, 1] -> what insightface feeds a detector: (x - 127.5) / 128 of 0..255."""
    return (images * 255 - 127.5) / 128


def save(model: Detector, path: Path, image_px: int) -> None:
    """Write the detector as ONNX for pictures of image_px x image_px; insightface fits every picture into that."""
    export_onnx(DetectorFile(model), torch.zeros(1, 3, image_px, image_px), path, list(DetectorFile.OUTPUTS))


def measure(detector: InsightFaceDetector, portraits) -> dict[str, float]:
    """How well the pack finds the faces on fresh canvases and on the plain portraits of people it has not seen.

    recall and precision at IoU 0.5; landmark_error as a part of the face's longer side; found: the share of plain
    portraits in which exactly the one face is found.
    """
    maker = CanvasMaker(portraits, 128)
    canvases = maker.draw(CHECKED_CANVASES, torch.Generator().manual_seed(1))
    pictures = (canvases.images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
    faces, reported, hits, errors = int(canvases.present.sum()), 0, 0, []
    for picture, boxes, landmarks, present in zip(
        pictures, canvases.boxes, canvases.landmarks, canvases.present, strict=True
    ):
        found = detector.detect(picture)
        reported += len(found)
        for box, points in zip(boxes[present], landmarks[present], strict=True):
            match = [face for face in found if _iou_and_giou(torch.from_numpy(face.box), box)[0] > 0.5]
            if match:
                hits += 1
                error = np.linalg.norm(match[0].landmarks - points.numpy(), axis=1).mean()
                errors.append(error / float((box[2:] - box[:2]).max()))
    plain = portraits.images[:: max(1, len(portraits.images) // CHECKED_CANVASES)]
    return {
        "recall": round(hits / faces, 4),
        "precision": round(hits / max(1, reported), 4),
        "landmark_error": round(float(np.mean(errors)), 4) if errors else float("nan"),
        "found": round(sum(len(detector.detect(picture)) == 1 for picture in plain) / len(plain), 4),
    }


def _conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True))


def _iou_and_giou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [..., 4] against boxes [..., 4] (Rezatofighi et al. 2019, algorithm 1)."""
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (area_a + area_b - overlap).clamp(min=1e-6)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    iou = overlap / union
    return iou, iou - (hull - union) / hull.clamp(min=1e-6)

"""Stage `recogniser`: a small ArcFace-style network for the people of the portrait world, as insightface loads it.

It sees 112 x 112 crops in which the five landmarks lie on insightface's template, and is trained to tell the training
people apart by a margin on the unit sphere; on people it has never seen, the cosine of two embeddings then says how
alike they are.
"""

from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.common.device import pick_device
from feedface.faces.detect import InsightFaceDetector
from feedface.synthetic.train.common import load_portraits
from feedface.synthetic.train.detector import PACK
from feedface.synthetic.train.export import export_onnx
from feedface.synthetic.train.inspector import CosineMarginHead
from feedface.training.fit import fit, write_metrics

CROP_PX = 112


class Recogniser(nn.Module):
    """`forward(crops [B, 3, 112, 112] RGB in [-1, 1]) -> [B, embedding_dim]`, not normalised."""

    def __init__(self, width: int, embedding_dim: int):
        super().__init__()
        w = width
        self.body = nn.Sequential(
            _conv(3, w, 7, 4),  # the crops are enlarged small faces: full resolution holds no more than this
            _conv(w, w),
            _conv(w, 2 * w, 3, 2),
            _conv(2 * w, 2 * w),
            _conv(2 * w, 3 * w, 3, 2),
            _conv(3 * w, 3 * w),
            nn.Conv2d(3 * w, w, 1),  # 7 x 7 places, each kept apart: where a feature lies tells who it is
            nn.Flatten(),
            nn.BatchNorm1d(49 * w),
            nn.Dropout(0.2),
            nn.Linear(49 * w, embedding_dim, bias=False),
        )

    def forward(self, crops: Tensor) -> Tensor:
        return self.body(crops)


def aligned_crops(images: Tensor, landmarks: Tensor) -> Tensor:
    """A batch of insightface's `norm_crop`: the similarity that brings the landmarks closest to the template.

    Args:
        images: [B, 3, H, W], any range.
        landmarks: [B, 5, 2] in pixels of them.

    Returns:
        [B, 3, 112, 112], zero outside the picture.
    """
    from insightface.utils.face_align import arcface_dst

    template = torch.from_numpy(arcface_dst).to(landmarks)
    # In the complex plane a similarity is z -> turn * z + shift; this is its least-squares fit, template to picture.
    source = torch.view_as_complex((template - template.mean(0)).contiguous())
    middle = landmarks.mean(1)
    target = torch.view_as_complex((landmarks - middle[:, None]).contiguous())
    # norm_crop fits the other way round, picture to template, and inverts.
    turn = target.abs().square().sum(1) / (target.conj() * source).sum(1)
    axis = torch.arange(CROP_PX, device=images.device, dtype=landmarks.dtype)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    offset = torch.complex(x - template[:, 0].mean(), y - template[:, 1].mean())
    places = torch.view_as_real(turn[:, None, None] * offset) + middle[:, None, None]
    # As OpenCV counts, whole numbers are pixel centres.
    limits = torch.tensor([images.shape[-1] - 1, images.shape[-2] - 1], device=images.device)
    return F.grid_sample(images, places * (2 / limits) - 1, align_corners=True)


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


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.recogniser`, write `<workdir>/bundle/faces/models/mini/recogniser.onnx`, and measure it.

    The detector's file must be there: what counts is the two together.
    """
    config, workdir = config.recogniser, Path(workdir)
    device = pick_device(config.device)
    torch.manual_seed(config.seed)
    world = load_portraits(workdir)
    people, person = np.unique(world.identity, return_inverse=True)
    person = torch.from_numpy(person).to(device)
    images = torch.from_numpy(world.images).permute(0, 3, 1, 2).to(device)
    landmarks = torch.from_numpy(world.landmarks).to(device)
    face_px = (torch.from_numpy(world.boxes[:, 2:] - world.boxes[:, :2]).amax(1)).to(device)
    network = Recogniser(config.width, config.embedding_dim)
    head = CosineMarginHead(config.embedding_dim, len(people), config.scale, config.margin)
    model = nn.ModuleDict({"network": network, "head": head}).to(device)

    def step(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(images), (config.batch_size,), generator=generator).to(device)
        # The detector's landmarks are a little off, each by itself.
        off = torch.randn(len(rows), 5, 2, generator=generator).to(device) * config.landmark_noise
        places = landmarks[rows] + off * face_px[rows, None, None]
        crops = aligned_crops(spoil(images[rows].float() / 255, generator), places)
        return head(F.normalize(network(crops * 2 - 1), dim=-1), person[rows])

    result = fit("recogniser", model, step, config, workdir / "recogniser")
    save(network, workdir / PACK / "recogniser.onnx")
    pack = InsightFaceDetector("mini", workdir / PACK.parents[1])
    write_metrics(workdir / "recogniser", config, result, **measure(pack, load_portraits(workdir, "held_out")))


def save(network: Recogniser, path: Path) -> None:
    """Write the recogniser as ONNX for one 112 x 112 crop."""
    export_onnx(network, torch.zeros(1, 3, CROP_PX, CROP_PX), path, ["embedding"])


def measure(pack: InsightFaceDetector, portraits, pictures_each: int = 2, people: int = 100) -> dict[str, float]:
    """How well the pack, detector and recogniser together, knows people it has never seen.

    nearest: how often the person's other picture is the closest among one picture each of `people`; same and
    different: mean cosine of two pictures of one person, and of two persons; missed: pictures without a found face.
    """
    gallery, probes, missed = [], [], 0
    for person in np.unique(portraits.identity)[:people]:
        rows = np.flatnonzero(portraits.identity == person)[:pictures_each]
        found = [pack.detect(portraits.images[row]) for row in rows]
        missed += sum(not faces for faces in found)
        if len(found) == pictures_each and all(found):
            gallery.append(found[0][0].embedding)
            probes.append(found[1][0].embedding)
    if not gallery:
        return {"missed": missed}
    cosines = np.stack(probes) @ np.stack(gallery).T
    others = cosines[~np.eye(len(cosines), dtype=bool)]
    return {
        "nearest": round(float((cosines.argmax(1) == np.arange(len(cosines))).mean()), 4),
        "same": round(float(np.diag(cosines).mean()), 4),
        "different": round(float(others.mean()), 4) if others.size else float("nan"),
        "missed": missed,
    }


def _conv(channels: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True))

"""Stage `inspector`: train the judge of the mini world on people of its own, whom no other stage ever sees.

Its pictures are damaged in ways that generated pictures are (blur, noise, block artefacts, small shifts), but never by
a network of ours: a judge that knew our VAE would forgive its faults.
"""

import math
from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.common.device import pick_device
from feedface.evaluation.inspector import Findings, Inspector
from feedface.evaluation.metrics import mean_embedding, nearest_identity
from feedface.synthetic.world import ATTRIBUTES, read_world, write_world
from feedface.training.fit import fit, write_metrics

BLOCK = 8  # side of a JPEG block, px


class CosineMarginHead(nn.Module):
    """Classification of people on the unit sphere with an additive margin (CosFace, Wang et al. 2018, eq. 4)."""

    def __init__(self, embedding_dim: int, identities: int, scale: float, margin: float):
        super().__init__()
        self.centres = nn.Parameter(torch.randn(identities, embedding_dim))
        self.scale, self.margin = scale, margin

    def forward(self, embedding: Tensor, identity: Tensor) -> Tensor:
        """embedding: [B, E] of length 1, identity: [B] int64 -> mean loss."""
        cosines = F.linear(embedding, F.normalize(self.centres, dim=-1))
        margins = self.margin * F.one_hot(identity, cosines.shape[1])
        return F.cross_entropy(self.scale * (cosines - margins), identity)


def random_affine(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 3 px, turn by up to 5 degrees, scale by 0.94..1.06; [B, 3, H, W], borders repeated."""
    batch, size = len(images), images.shape[-1]
    shift, turn, zoom = _uniform(generator, batch, 4).split([2, 1, 1], dim=1)
    angle, zoom = turn * math.radians(5), 1 + 0.06 * zoom
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    shift = shift * (3 / size * 2)  # grid_sample counts half pictures
    theta = torch.stack([torch.cat([cos, -sin, shift[:, :1]], 1), torch.cat([sin, cos, shift[:, 1:]], 1)], 1)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def random_blur(images: Tensor, generator: torch.Generator, max_sigma_px: float = 1.8) -> Tensor:
    """Gaussian blur, every picture with its own sigma in 0..max_sigma_px (at 64 px); [B, 3, H, W]."""
    batch, width = len(images), images.shape[-1]
    sigma = torch.rand(batch, 1, generator=generator) * max_sigma_px * width / 64 + 1e-2
    reach = math.ceil(2 * max_sigma_px * width / 64)
    offsets = torch.arange(-reach, reach + 1).float()
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.device)  # [B, K]
    # A blur along one axis is a product with a banded matrix; that is faster than one small convolution per picture.
    for axis in (2, 3):
        matrix = _band(kernel, images.shape[axis])  # [B, n, n]
        pattern = "bij,bcjw->bciw" if axis == 2 else "bij,bchj->bchi"
        images = torch.einsum(pattern, matrix, images)
    return images


def _band(kernel: Tensor, size: int) -> Tensor:
    """[B, K] -> [B, size, size]; rows sum to 1 (weights that fall outside go to the border pixel)."""
    reach = kernel.shape[1] // 2
    rows = torch.arange(size).repeat_interleave(kernel.shape[1])
    columns = (rows + torch.arange(-reach, reach + 1).repeat(size)).clamp(0, size - 1)
    matrix = kernel.new_zeros(len(kernel), size * size)
    index = (rows * size + columns).to(kernel.device).expand(len(kernel), -1)
    return matrix.scatter_add_(1, index, kernel.repeat(1, size)).view(-1, size, size)


def random_blocks(images: Tensor, generator: torch.Generator) -> Tensor:
    """Quantise the 8 x 8 cosine coefficients, coarser for finer detail, as JPEG does; [B, 3, H, W] in 0..1."""
    batch, channels, height, width = images.shape
    n = torch.arange(BLOCK).float()
    basis = torch.cos(math.pi / BLOCK * (n[None] + 0.5) * n[:, None]) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    basis = basis.to(images.device)
    coarse = torch.rand(batch, generator=generator) ** 2 * 0.06
    steps = (coarse[:, None, None] * (1 + n[:, None] + n[None])).clamp_min(1e-3).to(images.device)  # [B, 8, 8]
    blocks = images.view(batch, channels, height // BLOCK, BLOCK, width // BLOCK, BLOCK)
    coefficients = torch.einsum("ki,bcyixj,lj->bcykxl", basis, blocks, basis)
    steps = steps[:, None, None, :, None, :]
    coefficients = (coefficients / steps).round() * steps
    return torch.einsum("ki,bcykxl,lj->bcyixj", basis, coefficients, basis).reshape(images.shape)


def damage(images: Tensor, generator: torch.Generator) -> Tensor:
    """All of the above, each on a random share of the pictures, and small changes of light; [B, 3, H, W] in 0..1."""
    device = images.device

    def on_some(share: float, change) -> None:
        rows = (torch.rand(len(images), generator=generator) < share).nonzero()[:, 0].to(device)
        if len(rows):
            images[rows] = change(images[rows], generator)

    images = random_affine(images, generator)
    on_some(0.6, random_blur)
    on_some(0.4, random_blocks)
    light = (1 + 0.08 * _uniform(generator, len(images), 1) + 0.03 * _uniform(generator, len(images), 3)).to(device)
    noise = torch.randn(images.shape, generator=generator).to(device)
    strength = (torch.rand(len(images), 1, 1, 1, generator=generator) ** 2 * 0.06).to(device)
    return (images * light[:, :, None, None] + noise * strength).clamp(0, 1)


def held_out_metrics(findings: Findings, truth: dict[str, np.ndarray], each: int) -> dict[str, float]:
    """Accuracy on people not trained on, `each` pictures in a row of every one: nearest identity, and attributes.

    The first half of a person's pictures is the gallery, by its mean or by one picture of it alone.
    """
    embedding = findings.embedding.reshape(-1, each, findings.embedding.shape[-1])
    known, unknown = embedding[:, : each // 2], embedding[:, each // 2 :]
    found = {
        f"nearest_identity_of_{len(known)}": nearest_identity(unknown, mean_embedding(known)).mean(),
        "nearest_identity_one_gallery_picture": nearest_identity(unknown, known[:, 0]).mean(),
    }
    found |= {name: (classes == truth[name]).mean() for name, classes in findings.attributes.items()}
    return {name: round(float(value), 4) for name, value in found.items()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.inspector` and leave `<workdir>/bundle/inspector/`; the people lie in `inspector_world`."""
    config, workdir = config.inspector, Path(workdir)
    folder = workdir / "inspector"
    device = pick_device(config.device)
    each, train_people = config.per_identity, config.identities - config.held_out
    world_folder = workdir / "inspector_world"
    write_world(world_folder, config.identities, each, config.world_seed, config.image_size, config.first_identity)
    world = read_world(world_folder)
    train_rows = train_people * each  # the pictures of a person stand in a row
    images = torch.from_numpy(world.images)
    labels = {name: torch.from_numpy(classes) for name, classes in world.attributes.items()}

    torch.manual_seed(config.seed)
    inspector = Inspector(
        {name: len(classes) for name, classes in ATTRIBUTES.items()},
        config.image_size,
        config.width,
        config.embedding_dim,
    )
    head = CosineMarginHead(config.embedding_dim, train_people, config.scale, config.margin)
    model = nn.ModuleDict({"inspector": inspector, "head": head}).to(device)

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(train_rows, (config.batch_size,), generator=generator)
        # Only the convolutions gain from bfloat16; pictures and margins need the digits.
        with torch.autocast(device.type, enabled=False):
            batch = damage(images[rows].to(device).permute(0, 3, 1, 2).float() / 255, generator)
        output = inspector(batch)
        with torch.autocast(device.type, enabled=False):
            by_person = head(output.embedding, (rows // each).to(device))
        by_attribute = torch.stack(
            [F.cross_entropy(logits, labels[name][rows].to(device)) for name, logits in output.logits.items()]
        ).mean()
        loss = by_person + config.attribute_weight * by_attribute
        return loss, {"person": by_person.detach(), "attributes": by_attribute.detach()}

    result = fit("inspector", model, step, config, folder)

    held_out = world.images[train_rows:]
    truth = {name: classes[train_rows:] for name, classes in world.attributes.items()}
    clean = held_out_metrics(inspector.inspect(held_out), truth, each)
    pixels = torch.from_numpy(held_out).permute(0, 3, 1, 2).float() / 255
    damaged = damage(pixels, torch.Generator().manual_seed(config.seed)).permute(0, 2, 3, 1).mul(255).round().byte()
    rough = held_out_metrics(inspector.inspect(damaged.numpy()), truth, each)
    metrics = clean | {f"damaged_{name}": value for name, value in rough.items()}
    write_metrics(folder, config, result, **metrics)
    inspector.save_pretrained(workdir / "bundle" / "inspector")


def _uniform(generator: torch.Generator, rows: int, columns: int) -> Tensor:
    """[rows, columns] in -1..1."""
    return torch.rand(rows, columns, generator=generator) * 2 - 1

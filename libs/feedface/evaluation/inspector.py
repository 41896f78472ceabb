"""The judge of the mini world: who is in a picture, and what the picture shows.

It is trained apart, on people that nothing else ever sees (`synthetic.train.inspector`), and it is never used in
training, so that no model can learn to please it. Letters: B batch, E embedding width.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import nn

from feedface.checkpoints.bundle import save_half
from feedface.checkpoints.storage import load_network
from feedface.common.sizes import SidePx, Width

Attributes = Annotated[dict[str, Width], Len(1, 1024)]


@dataclass
class InspectorOutput:
    embedding: torch.Tensor  # [B, E], length 1
    logits: dict[str, torch.Tensor]  # attribute -> [B, classes]


@dataclass
class Findings:
    embedding: np.ndarray  # [B, E] float32, length 1
    attributes: dict[str, np.ndarray]  # attribute -> [B] int64 class index


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.body(x))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs))


class Inspector(nn.Module):
    """A small conv net over whole pictures: an identity embedding and one classification head per attribute.

    attributes: attribute -> number of classes. image_size: pictures of other sizes are resized to it.
    """

    def __init__(self, attributes: Attributes, image_size: SidePx = 64, width: Width = 32, embedding_dim: Width = 128):
        super().__init__()
        sizes = {"image_size": image_size, "width": width, "embedding_dim": embedding_dim}
        self.config = {"attributes": dict(attributes), **sizes}
        if image_size % 16:
            raise ValueError(f"image_size {image_size} is not a multiple of 16")
        # Full resolution is where convolutions cost most on a CPU, so the first step already halves it.
        self.trunk = nn.Sequential(
            _conv(3, width, 2), nn.ReLU(),
            _conv(width, 2 * width, 2), nn.ReLU(), Residual(2 * width),
            _conv(2 * width, 4 * width, 2), nn.ReLU(), Residual(4 * width),
            _conv(4 * width, 4 * width, 2), nn.ReLU(),
        )  # fmt: skip
        # The grid is kept, not averaged away: where eyes and mouth stand tells people apart.
        features = 4 * width * (image_size // 16) ** 2
        self.embed = nn.Sequential(nn.Linear(features, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim))
        self.heads = nn.ModuleDict({name: nn.Linear(features, classes) for name, classes in attributes.items()})
        self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> InspectorOutput:
        """images: float [B, 3, H, W], RGB in 0..1."""
        x = self._grid(images).flatten(1)
        return InspectorOutput(
            embedding=F.normalize(self.embed(x).float(), dim=-1),
            logits={name: head(x).float() for name, head in self.heads.items()},
        )

    def _grid(self, images: torch.Tensor) -> torch.Tensor:
        """float [B, 3, H, W] in 0..1 -> the trunk's features [B, 4 width, 16th of the height, of the width]."""
        size = (self.config["image_size"],) * 2
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return self.trunk((images * 2 - 1).contiguous(memory_format=torch.channels_last))

    def _batches(self, images: np.ndarray, batch_size: int) -> Iterator[torch.Tensor]:
        """Pictures uint8 [B, H, W, 3] as `forward` takes them, some at a time."""
        device = next(self.parameters()).device
        for start in range(0, len(images), batch_size):
            chunk = torch.from_numpy(np.ascontiguousarray(images[start : start + batch_size])).to(device)
            yield chunk.permute(0, 3, 1, 2).float() / 255

    @torch.no_grad()
    def features(self, images: np.ndarray, batch_size: int = 256) -> np.ndarray:
        """What the trunk sees in pictures uint8 [B, H, W, 3], averaged over the picture: float32 [B, 4 width]."""
        parts = [self._grid(batch).mean(dim=(2, 3)) for batch in self._batches(images, batch_size)]
        return torch.cat(parts).cpu().numpy()

    @torch.no_grad()
    def inspect(self, images: np.ndarray, batch_size: int = 256) -> Findings:
        """Judge pictures of any number: uint8 [B, H, W, 3], RGB."""
        outputs = [self(batch) for batch in self._batches(images, batch_size)]
        classes = {name: [output.logits[name].argmax(dim=-1) for output in outputs] for name in self.heads}
        return Findings(
            torch.cat([output.embedding for output in outputs]).cpu().numpy(),
            {name: torch.cat(parts).cpu().numpy() for name, parts in classes.items()},
        )

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `config.json` and `model.safetensors` (half precision; batch statistics stay in single)."""
        save_half(folder, self)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, device: str | torch.device = "cpu") -> "Inspector":
        """Read what `save_pretrained` wrote; single precision, in evaluation mode. `UserError` if it cannot be."""
        return load_network(cls, Path(folder), device, torch.float32).eval()

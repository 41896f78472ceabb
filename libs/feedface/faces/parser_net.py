"""The mini face parser's network: a small U-Net from a square crop around a face to LaPa classes.

Shape letters: B crops, S their side in pixels, C the 11 LaPa classes.
"""

import os
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.checkpoints.bundle import save_half
from feedface.checkpoints.storage import load_network
from feedface.common.sizes import Ratio, SidePx, Width

CLASSES = 11
LEVELS = (1, 2, 4, 6)  # width at half, quarter, ... of the crop's side, in units of `width`


class ParserNet(nn.Module):
    """A U-Net that starts and ends at half the crop's side: full resolution is where convolutions cost most.

    Args:
        crop_px: side S of the crops, a multiple of 16.
        expand: side of the crop as a multiple of the face box's longer side; all hair has to fit in.
        width: channels at the finest level.
    """

    def __init__(self, crop_px: SidePx, expand: Ratio, width: Width):
        super().__init__()
        if crop_px % 16:
            raise ValueError(f"crop_px {crop_px} is not a multiple of 16")
        self.config = {"crop_px": crop_px, "expand": expand, "width": width}
        self.crop_px, self.expand = crop_px, expand
        widths = [width * factor for factor in LEVELS]
        self.down = nn.ModuleList([_two_convs(12, widths[0])])
        self.down.extend(_two_convs(fine, coarse) for fine, coarse in pairwise(widths))
        pairs = zip(widths[-2::-1], widths[:0:-1], strict=True)
        self.up = nn.ModuleList(_two_convs(coarse + fine, fine) for fine, coarse in pairs)
        self.head = nn.Conv2d(widths[0], 4 * CLASSES, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, crops: Tensor) -> Tensor:
        """crops: float [B, 3, S, S], RGB in 0..1 -> logits [B, C, S, S]."""
        x = F.pixel_unshuffle(crops * 2 - 1, 2).contiguous(memory_format=torch.channels_last)
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()  # the coarsest goes on by itself
        for block in self.up:
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skips.pop()], 1))
        return F.pixel_shuffle(self.head(x), 2)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `config.json` and `model.safetensors` (half precision; batch statistics stay in single)."""
        save_half(folder, self)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, device: str | torch.device = "cpu") -> "ParserNet":
        """Read what `save_pretrained` wrote; single precision, in evaluation mode. `UserError` if it cannot be."""
        return load_network(cls, Path(folder), device, torch.float32).eval()


def _two_convs(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(*_conv(channels, out), *_conv(out, out))


def _conv(channels: int, out: int) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    return convolution, nn.BatchNorm2d(out), nn.ReLU(inplace=True)

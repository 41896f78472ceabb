"""Dense-Face's dense annotations: face classes, depth, landmarks and attributes, read from what the denoiser knows.

The authors describe such a predictor and released none; this one is our own design. It sees the clean latent that the
denoiser expects and the tokens of its decoder's blocks, and changes neither.

Shapes: B batch, C h w latent, L tokens of a block, g side of the maps, K landmarks, A attributes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 11  # as `faces.parse` numbers them


class DenseHeads(nn.Module):
    """A few convolutions on a grid `factor` times as fine as the latent's, and a head for each kind of annotation.

    Args:
        latent_channels: C; widths: of the blocks' tokens.
        landmarks, attributes: K and A; 0: there is no such head. depth: whether there is one of it.
        width: of the convolutions; blocks: how many.
    """

    def __init__(
        self,
        latent_channels: int,
        widths: Sequence[int],
        landmarks: int = 5,
        attributes: int = 0,
        depth: bool = True,
        width: int = 64,
        blocks: int = 3,
        factor: int = 2,
    ):
        super().__init__()
        self.factor = factor
        self.latent = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.tokens = nn.ModuleList(nn.Linear(channels, width) for channels in widths)
        self.time = nn.Linear(2, 2 * width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(blocks))
        outputs = {"parsing": CLASSES, "depth": int(depth), "landmarks": landmarks}
        self.maps = nn.ModuleDict({name: nn.Conv2d(width, count, 1) for name, count in outputs.items() if count})
        self.attributes = nn.Linear(width, attributes) if attributes else None

    def forward(self, clean: Tensor, time: Tensor, tokens: Sequence[Tensor]) -> dict[str, Tensor]:
        """Latents [B,C,h,w] at times [B] of 0…1, clean to noise, and tokens [B,L,D] -> logits by kind.

        "parsing" [B,11,g,g], "depth" [B,1,g,g], "landmarks" [B,K,g,g], "attributes" [B,A].
        """
        x = self.latent(clean)
        for linear, value in zip(self.tokens, tokens, strict=True):
            cells = round((x.shape[-2] * x.shape[-1] / value.shape[1]) ** 0.5)
            grid = (-(-x.shape[-2] // cells), -(-x.shape[-1] // cells))
            x = x + F.interpolate(linear(value).transpose(1, 2).unflatten(-1, grid), x.shape[-2:], mode="bilinear")
        share = time.to(x)[:, None]
        scale, shift = self.time(torch.cat([share, share.square()], dim=1))[..., None, None].chunk(2, dim=1)
        x = F.interpolate(x * (1 + scale) + shift, scale_factor=self.factor, mode="bilinear")
        for block in self.blocks:
            x = block(x)
        found = {name: head(x) for name, head in self.maps.items()}
        if self.attributes is not None:
            found["attributes"] = self.attributes(x.mean(dim=(2, 3)))
        return found


class _Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.GroupNorm(min(16, width), width)
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))

"""A fresh U-ViT that begins as a network which hands the noisy picture through: a good first guess of the noise.

A post-norm transformer has no path that leaves its input as it is, and learning one takes most of a short training.
Here patches go in along orthonormal directions E, positions stand in directions orthogonal to E and of constant length,
so that every layer norm scales all tokens alike, and the last layer reads E back.
"""

import math

import torch
from torch import Tensor, nn

from feedface.backbones.uvit import UViT

POSITION_RMS = 0.5 / math.sqrt(2)  # of a position's D numbers
MAX_PERIOD = 32.0  # tokens; longer than the grids and captions of the miniature
SKIP_NOISE = 0.25  # how much of their usual random weights the skip layers keep


@torch.no_grad()
def identity_start(uvit: UViT) -> None:
    """Set the weights of a fresh `uvit` so; patches of unit variance are assumed. Draws from torch's generator.

    Raises `ValueError` when the width leaves no room for positions beside the patches.
    """
    D, P, C = uvit.embed_dim, uvit.patch_size, uvit.in_chans
    patch = C * P * P
    if 3 * patch > D:
        raise ValueError(f"identity start: width {D} is too small for patches of {patch} numbers")
    # The first column is the mean, which layer norms take away.
    basis = torch.linalg.qr(torch.cat([torch.ones(D, 1), torch.randn(D, D - 1)], dim=1)).Q
    E, room = basis[:, 1 : 1 + patch], basis[:, 1 + patch :]  # [D, C*P*P], [D, the rest]

    uvit.patch_embed.proj.weight.copy_(E.reshape(D, C, P, P))
    nn.init.zeros_(uvit.patch_embed.proj.bias)
    half = room.shape[1] // 2
    length = POSITION_RMS * math.sqrt(D)
    image = _grid_waves(uvit.grid, half) @ room[:, :half].T  # [N, D]
    text = _waves(torch.arange(uvit.num_text_tokens), half) @ room[:, half : 2 * half].T  # [T, D]
    positions = uvit.pos_embed[0]  # t_img, t_text, text, clip_img, image
    positions[2 : 2 + len(text)] = length * text
    positions[-len(image) :] = length * image

    for block in uvit.out_blocks:
        eye = torch.eye(D)
        block.skip_linear.weight.mul_(SKIP_NOISE).add_(0.5 * torch.cat([eye, eye], dim=1))
    # A patch of unit variance has length sqrt(patch); layer norms make tokens sqrt(D) long.
    stretch = math.sqrt(D / (patch + length**2))
    out = E.T.reshape(C, P, P, D).permute(1, 2, 0, 3).reshape(patch, D)  # decoder_pred puts the channels last
    uvit.decoder_pred.weight.copy_(out / stretch)
    nn.init.zeros_(uvit.decoder_pred.bias)


def _waves(position: Tensor, width: int) -> Tensor:
    """[L] positions -> [L, width] of length 1: sines and cosines of periods from 2 pi up to 2 pi `MAX_PERIOD`."""
    count = width // 2
    frequencies = MAX_PERIOD ** -(torch.arange(count) / count)
    angles = position[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(count)
    return nn.functional.pad(waves, (0, width - 2 * count))


def _grid_waves(grid: tuple[int, int], width: int) -> Tensor:
    """[rows * columns, width] of length 1: half the numbers tell the row, half the column."""
    rows, columns = (_waves(torch.arange(n), width // 2) for n in grid)
    both = torch.cat([rows[:, None].expand(-1, grid[1], -1), columns[None].expand(grid[0], -1, -1)], dim=-1)
    return nn.functional.pad(both.flatten(0, 1) / math.sqrt(2), (0, width - 2 * (width // 2)))

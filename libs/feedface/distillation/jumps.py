"""The joint vector of image latent and CLIP-image embedding, and DDIM's step between two of its noise levels.

Shapes: B batch, C h w latent, Dc CLIP-image embedding, J = C h w + Dc.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from feedface.backbones.uvit import UViT
from feedface.diffusion.schedule import alphas_cumprod


@dataclass(frozen=True)
class Joint:
    """How the two parts lie in a joint vector [B,J]: the latent [C,h,w], flattened, then the embedding [1,Dc]."""

    latent: tuple[int, int, int]
    clip_img: tuple[int, int]

    @classmethod
    def of(cls, uvit: UViT) -> "Joint":
        """At the size the U-ViT was trained at."""
        return cls((uvit.in_chans, *uvit.img_size), (1, uvit.clip_img_dim))

    def split(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """[B,J] -> [B,C,h,w], [B,1,Dc]."""
        img, clip_img = joint.split([joint.shape[1] - self.clip_img[1], self.clip_img[1]], dim=1)
        return img.unflatten(1, self.latent), clip_img.unflatten(1, self.clip_img)

    @staticmethod
    def merge(img: Tensor, clip_img: Tensor) -> Tensor:
        return torch.cat([img.flatten(1), clip_img.flatten(1)], dim=1)


def signal_and_noise(t: int) -> tuple[float, float]:
    """√ᾱ_t and √(1 - ᾱ_t); t 0 is clean."""
    alpha_bar = float(alphas_cumprod()[t - 1]) if t else 1.0
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def jump(x: Tensor, noise: Tensor, start: int, end: int) -> Tensor:
    """One step of DDIM (Song et al. 2021, eq. 12 without its random part) from timestep `start` to `end`; 0 is clean.

    The same as the steps of `diffusion.sampling.jumps_at`, and differentiable.
    """
    signal, spread = signal_and_noise(start)
    new_signal, new_spread = signal_and_noise(end)
    return new_signal * (x - spread * noise) / signal + new_spread * noise

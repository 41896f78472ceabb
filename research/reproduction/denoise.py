"""Pictures noised to a level and denoised again by the base model alone: how much of a person it knows how to draw.

Shapes: B batch, C h w latent, Dc width of the CLIP-image embedding, T text tokens of Dt numbers.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import Bundle
from feedface.common.progress import progress
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.plan import Evaluation
from feedface.diffusion.sampling import initial_noise, integrate
from feedface.diffusion.schedule import BETA_END, BETA_START, NUM_TIMESTEPS, add_noise, alphas_cumprod, timestep_of
from feedface.encoders import to_uint8
from feedface.synthetic.train.common import to_pixels


def times_from(level: int, steps: int) -> list[int]:
    """Timesteps `level` … 1, uniform in log-SNR, as dense as `steps` of them are from 1000 (`sampling`'s default)."""
    alpha_bar = alphas_cumprod()
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    length = (sigma[level - 1] / sigma[0]).log() / (sigma[-1] / sigma[0]).log()
    count = 1 + round(float(length) * (steps - 1))
    if count == 1:
        return [level]
    grid = torch.linspace(float(sigma[level - 1].log()), float(sigma[0].log()), count, dtype=torch.float64).exp()
    return sorted({level, *timestep_of(grid).round().long().tolist()}, reverse=True)


@torch.no_grad()
def denoise(
    uvit: UViT, latents: Tensor, clip_img: Tensor, text: Tensor, level: int, steps: int, seeds: Sequence[int]
) -> Tensor:
    """Noise pictures to timestep `level` and draw what the base makes of them: latents [B,C,h,w], float32.

    latents [B,C,h,w] and clip_img [B,1,Dc]: the clean picture's, both noised, as in training. text [B,T,Dt]: the true
    captions. No guidance and no face, so the result is a sample of what the base thinks the picture was.
    """
    from diffusers import DPMSolverMultistepScheduler

    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=NUM_TIMESTEPS, beta_start=BETA_START, beta_end=BETA_END, beta_schedule="scaled_linear"
    )
    times = times_from(level, steps)
    solver.set_timesteps(timesteps=[time - 1 for time in times])  # diffusers' 999 … 0 stand for our 1000 … 1
    model = GuidedModel(uvit, {"text": text}, latent_size=tuple(latents.shape[-2:]))
    clean = {"img": latents, "clip_img": clip_img}
    noises = initial_noise(seeds, *(value.shape[1:] for value in clean.values()))
    t = torch.full((len(seeds),), level)
    noisy = {
        name: add_noise(value.float(), noise.to(text.device), t)
        for (name, value), noise in zip(clean.items(), noises, strict=True)
    }
    return integrate(model, noisy, solver, [Evaluation(time) for time in times])["img"]


@torch.inference_mode()
def through_base(
    bundle: Bundle,
    pictures: np.ndarray,
    prompts: Sequence[str],
    level: int,
    steps: int,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Pictures uint8 [N,H,W,3] noised to timestep `level` (row i from seed + i) and denoised with their captions."""
    parts = []
    for start in progress(range(0, len(pictures), batch_size), desc=f"denoise from {level}", unit="batch"):
        rows = range(start, min(start + batch_size, len(pictures)))
        pixels = to_pixels(pictures[rows.start : rows.stop], device)
        latents = denoise(
            bundle.backbone,
            bundle.vae.encode(pixels, sample=False),
            bundle.image_encoder.encode(pixels),
            bundle.text_encoder.encode(prompts[rows.start : rows.stop]),
            level,
            steps,
            [seed + row for row in rows],
        )
        parts.append(to_uint8(bundle.vae.decode(latents)))
    return np.concatenate(parts)

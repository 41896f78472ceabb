"""Pictures noised to a level and denoised again by the base model alone: how much of a person it knows how to draw.

Shapes: B batch, C h w latent.
"""

from collections.abc import Sequence

import numpy as np
import torch

from feedface.backbones.base import Backbone, Prompt
from feedface.checkpoints.bundle import Bundle
from feedface.common.progress import progress
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.plan import Evaluation
from feedface.diffusion.sampling import initial_noise, integrate, jumps_at
from feedface.diffusion.schedule import add_noise, alphas_cumprod, timestep_of
from feedface.diffusion.state import State
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
def denoise(backbone: Backbone, clean: State, prompt: Prompt, level: int, steps: int, seeds: Sequence[int]) -> State:
    """Noise pictures to timestep `level` and draw what the base makes of them.

    clean: the pictures' `State`, all of it noised, as in training; prompt: the true captions. No guidance and no face,
    so the result is a sample of what the base thinks the picture was.
    """
    model = GuidedModel(backbone, prompt, latent_size=tuple(clean["img"].shape[-2:]))
    noises = initial_noise(seeds, *(value.shape[1:] for value in clean.values()))
    t = torch.full((len(seeds),), level)
    noisy = {
        name: add_noise(value.float(), noise.to(value.device), t)
        for (name, value), noise in zip(clean.items(), noises, strict=True)
    }
    times = times_from(level, steps)
    return integrate(model, noisy, jumps_at(times, order=2), [Evaluation(time) for time in times])


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
        clean = {"img": bundle.vae.encode(pixels, sample=False)}
        if "clip_img" in bundle.backbone.state_shapes():
            clean["clip_img"] = bundle.image_encoder.encode(pixels)
        prompt = {"text": bundle.text_encoder.encode(prompts[rows.start : rows.stop])}
        drawn = denoise(bundle.backbone, clean, prompt, level, steps, [seed + row for row in rows])
        parts.append(to_uint8(bundle.vae.decode(drawn["img"])))
    return np.concatenate(parts)

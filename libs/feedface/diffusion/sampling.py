"""Sampling: diffusers' solvers over the joint vector [image latent, CLIP-image embedding] of U-ViT.

`sample(uvit, text=…, seeds=[…], …) -> (latents, clip_img)`. `steps` counts evaluations of the model. Solvers, by name:
- "dpmsolver++": order 2, multistep; the default;
- "dpmsolver++3m": order 3, multistep;
- "unipc": order 2;
- "dpmsolver++singlestep": order 3, uniform in time from 1000 to 1, as the release samples;
- "ddim": uniform in time from 1000 to 1.

The first three go from 1000 to 0 on a grid uniform in log-SNR, or, with its name behind a colon ("unipc:karras"):
- "karras": sparser at low noise (Karras et al. 2022, eq. 5, rho 7);
- "uniform": in time; sparser still at low noise. With guidance, ten evaluations or fewer come nearest to the exact
  solution on it.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from feedface.backbones.uvit import UViT
from feedface.diffusion.guidance import GuidedNoise
from feedface.diffusion.plan import Interval, plan_evaluations
from feedface.diffusion.schedule import BETA_END, BETA_START, NUM_TIMESTEPS, timestep_of
from feedface.methods.feedface import FaceControlNet

MULTISTEP = ("dpmsolver++", "dpmsolver++3m", "unipc")
GRIDS = ("karras", "uniform")
SCHEDULERS = (*MULTISTEP, *(f"{name}:{grid}" for name in MULTISTEP for grid in GRIDS), "dpmsolver++singlestep", "ddim")
MAX_STEPS = NUM_TIMESTEPS - 1


def make_scheduler(name: str, steps: int) -> Any:
    """A diffusers scheduler whose timesteps 999 … 0 stand for ours, 1000 … 1, set to `steps` evaluations."""
    from diffusers import DPMSolverMultistepScheduler, DPMSolverSinglestepScheduler, UniPCMultistepScheduler

    if not 1 <= steps <= MAX_STEPS:
        raise ValueError(f"steps must be 1 to {MAX_STEPS}, not {steps}")
    if name not in SCHEDULERS:
        raise ValueError(f"scheduler must be one of {', '.join(SCHEDULERS)}, not {name!r}")
    solver, _, grid = name.partition(":")
    if solver == "dpmsolver++singlestep":
        scheduler = DPMSolverSinglestepScheduler(
            **_SCHEDULE, solver_order=3, lower_order_final=True, final_sigmas_type="sigma_min"
        )
    elif solver == "ddim":
        # DDIM is DPM-Solver++ of order 1 (Lu et al. 2022, §4.1). diffusers' own DDIMScheduler assumes steps of
        # 1000 // steps, which are not those of its grid unless that divides evenly.
        scheduler = DPMSolverMultistepScheduler(**_SCHEDULE, solver_order=1, final_sigmas_type="sigma_min")
    else:
        # Uniform in time, the last step of 20 is three times as long in log-SNR as all before it; on a Gaussian, where
        # all else is easy, the error is ten times that of a grid uniform in log-SNR (see test_sampling). Guidance makes
        # high noise the hard part, which gets more of few steps when they are uniform in time.
        if grid == "karras":
            spacing = {"use_karras_sigmas": True}
        elif grid == "uniform":
            spacing = {}
        else:
            spacing = {"use_exponential_sigmas": True} if solver == "unipc" else {"use_lu_lambdas": True}
        if solver == "unipc":
            scheduler = UniPCMultistepScheduler(**_SCHEDULE, solver_order=2, **spacing)
        else:
            order = 3 if solver == "dpmsolver++3m" else 2
            scheduler = DPMSolverMultistepScheduler(**_SCHEDULE, solver_order=order, **spacing)
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)  # or a grid finer than the timesteps would start at the second of two equal ones
    return scheduler


def jumps_at(timesteps: Sequence[int], order: int = 1) -> Any:
    """A diffusers scheduler of steps from each of `timesteps` to the next and, last, to 0.

    Of order 1, DDIM's, they are the steps of a model distilled for them; of order 2 they are DPM-Solver++ 2M's. Raises
    `ValueError` unless the timesteps fall, within 1000 … 1.
    """
    from diffusers import DPMSolverMultistepScheduler

    falling = all(later < earlier for earlier, later in pairwise(timesteps))
    if not timesteps or not falling or not 1 <= timesteps[-1] <= timesteps[0] <= NUM_TIMESTEPS:
        raise ValueError(f"timesteps must fall, within {NUM_TIMESTEPS} to 1, not {list(timesteps)}")
    scheduler = DPMSolverMultistepScheduler(**_SCHEDULE, solver_order=order)
    scheduler.set_timesteps(timesteps=[t - 1 for t in timesteps])
    scheduler.set_begin_index(0)
    return scheduler


_SCHEDULE = {
    "num_train_timesteps": NUM_TIMESTEPS,
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
}


def initial_noise(seeds: Sequence[int], *shapes: Sequence[int]) -> list[Tensor]:
    """Standard normal tensors [B, *shape], one for each of `shapes`, row i from its own CPU generator of `seeds[i]`.

    So a sample depends on its seed only: neither on the batch it is in nor on the device.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    return [torch.stack([torch.randn(*shape, generator=generator) for generator in generators]) for shape in shapes]


@torch.no_grad()
def sample(
    uvit: UViT,
    *,
    text: Tensor,
    seeds: Sequence[int],
    steps: int = 40,
    guidance: float = 6.0,
    uncond_mode: str = "true_uncond",
    empty_text: Tensor | None = None,
    face_controlnet: FaceControlNet | None = None,
    face_tokens: Tensor | None = None,
    face_scale: float = 1.0,
    latent_size: tuple[int, int] | None = None,
    scheduler: str = "dpmsolver++",
    timesteps: Sequence[int] | None = None,
    guidance_interval: Interval | None = None,
    face_interval: Interval | None = None,
    reuse: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one sample for each seed: latents [B,C,h,w] and CLIP-image embeddings [B,1,Dc], float32 on text's device.

    Rows may belong to different prompts and people: `text` is [B,T,Dt] or, for one prompt, [1,T,Dt]; `face_tokens`, as
    `FaceControlNet.join` gives them, [B,n,D] or, for one person, [1,n,D]. `guidance` is g of ε_u + g (ε_c − ε_u); at 1
    there is no unconditional pass. `empty_text` [1,T,Dt], the encoded empty prompt, is needed by the modes
    "empty_token" and "paper" (see `guidance`). `latent_size` is (height, width), by default the U-ViT's own.
    `timesteps`, from 1000 down, take the place of `steps` and `scheduler`: first-order steps, for a model distilled to
    few of them. `guidance_interval`, `face_interval` and `reuse` save work, see `plan_evaluations`.
    `progress(done, total)` is called after each evaluation.

    Raises `ValueError` for unknown names, steps outside 1 … 999 and sizes not divisible by the patch.
    """
    solver = jumps_at(timesteps) if timesteps is not None else make_scheduler(scheduler, steps)
    steps = len(solver.timesteps)
    # diffusers rounds or cuts its timesteps to whole ones; the noise levels it steps between are exact
    plan = plan_evaluations(timestep_of(solver.sigmas[:steps]).tolist(), guidance_interval, face_interval, reuse)
    latent_shape = (uvit.in_chans, *(latent_size or uvit.img_size))
    clip_shape, text_shape = (1, uvit.clip_img_dim), (uvit.num_text_tokens, uvit.text_dim)
    img, clip_img, text_noise = (
        noise.to(text.device) for noise in initial_noise(seeds, latent_shape, clip_shape, text_shape)
    )
    if uncond_mode == "true_uncond":
        uncond_text = text_noise
    else:
        uncond_text = None if empty_text is None else empty_text.expand(len(seeds), -1, -1)
    model = GuidedNoise(
        uvit,
        text.expand(len(seeds), -1, -1),
        uncond_text,
        guidance=guidance,
        uncond_mode=uncond_mode,
        face_controlnet=face_controlnet,
        face_tokens=face_tokens,
        face_scale=face_scale,
        latent_size=latent_size,
    )

    def split(joint: Tensor) -> tuple[Tensor, Tensor]:
        img, clip_img = joint.split([img_numbers, uvit.clip_img_dim], dim=1)
        return img.unflatten(1, latent_shape), clip_img.unflatten(1, clip_shape)

    def merge(img: Tensor, clip_img: Tensor) -> Tensor:
        return torch.cat([img.flatten(1), clip_img.flatten(1)], dim=1)

    joint = merge(img, clip_img)
    img_numbers = joint.shape[1] - uvit.clip_img_dim
    for done, (now, timestep) in enumerate(zip(plan, solver.timesteps, strict=True), start=1):
        noise = model(*split(joint), now.t, guided=now.guided, controlled=now.controlled, reused=now.reused)
        joint = solver.step(merge(*noise), timestep, joint).prev_sample
        if progress is not None:
            progress(done, steps)
    return split(joint)

"""Sampling: diffusers' solvers over a `State`, of whatever tensors a backbone has in it.

`sample(backbone, prompt, seeds, …) -> state`. `steps` counts evaluations of the model. Solvers, by name:
- "dpmsolver++": order 2, multistep; the default;
- "dpmsolver++3m": order 3, multistep;
- "unipc": order 2;
- "dpmsolver++singlestep": order 3, uniform in time from 1000 to 1, as the release samples;
- "ddim": uniform in time from 1000 to 1;
- "ddim:leading": on every k-th timestep, with noise of share `eta`, as latent-diffusion's programs sample;
- "ddim:flashface": as the open FlashFace's authors step, every (1000 // steps)-th timestep to 20 (up to 50 steps), then
  to 1.

The first three go from 1000 to 0 on a grid uniform in log-SNR, or, with its name behind a colon ("unipc:karras"):
- "karras": sparser at low noise (Karras et al. 2022, eq. 5, rho 7);
- "uniform": in time; sparser still at low noise. With guidance, ten evaluations or fewer come nearest to the exact
  solution on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from feedface.diffusion.ddim import LeadingDdim
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.init_image import InitImage, Noise, RowNoise
from feedface.diffusion.names import LEADING, SCHEDULERS
from feedface.diffusion.plan import Evaluation, Interval, falling, plan_evaluations
from feedface.diffusion.protocols import NoisePredictor, Personalisation, Rows
from feedface.diffusion.schedule import BETA_END, BETA_START, NUM_TIMESTEPS, timestep_of
from feedface.diffusion.state import State, expand, pack, unpack

MAX_STEPS = NUM_TIMESTEPS - 1
KEPT, ADDED = 1, 2  # streams of a row's noise: in what is kept of a picture, and what steps add


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
    if grid == "flashface":
        stride = NUM_TIMESTEPS // steps
        last = min(19, stride - 1)  # theirs is 19, which with more than 50 steps may begin beyond the first timestep
        scheduler.set_timesteps(timesteps=[number * stride + last for number in reversed(range(steps))])
    else:
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
    backbone: NoisePredictor,
    prompt: Rows,
    seeds: Sequence[int],
    *,
    steps: int = 40,
    scheduler: str = "dpmsolver++",
    timesteps: Sequence[int] | None = None,
    guidance: float | tuple[float, float] = 6.0,
    uncond_mode: str | None = None,
    empty_prompt: Rows | None = None,
    method: Personalisation | None = None,
    identity: Rows | None = None,
    scale: float = 1.0,
    latent_size: tuple[int, int] | None = None,
    guidance_interval: Interval | None = None,
    face_interval: Interval | None = None,
    pag_interval: Interval | None = None,
    reuse: int = 1,
    rescale: float = 0.0,
    pag_scale: float = 0.0,
    eta: float = 0.0,
    init: InitImage | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> State:
    """Draw one sample for each seed: the backbone's `State`, float32 on the prompt's device.

    Rows may belong to different prompts and people: `prompt` and `identity` have B rows, or one for all.
    `timesteps`, from 1000 down, take the place of `steps` and `scheduler`: first-order steps, for a model distilled to
    few of them. `guidance` is g of ε_u + g (ε_c − ε_u), or that of the first and of the last step, evenly between; at 1
    throughout there is no unconditional pass. `guidance_interval`, `face_interval`, `pag_interval` and `reuse` save
    work, see `plan_evaluations`; `rescale`, `pag_scale` and the other arguments are those of `GuidedModel`. `init` is a
    picture to begin with. `eta` is for "ddim:leading".
    `progress(done, total)` is called after each evaluation.

    Raises `ValueError` for unknown names, steps outside 1 … 999, sizes that do not fit, and what a backbone has not.
    """
    text, shapes = prompt["text"], backbone.state_shapes(latent_size)
    if eta and (timesteps is not None or scheduler != LEADING):
        raise ValueError(f"eta {eta}: only {LEADING} adds noise in its steps; use 0 with others")
    if timesteps is not None:
        solver = jumps_at(timesteps)
    elif scheduler == LEADING:
        solver = LeadingDdim(steps, eta, RowNoise(seeds, ADDED), shapes)
    else:
        solver = make_scheduler(scheduler, steps)
    # diffusers rounds or cuts its timesteps to whole ones; the noise levels it steps between are exact
    times = timestep_of(solver.sigmas[: len(solver.timesteps)]).tolist()
    plan = plan_evaluations(times, guidance_interval, face_interval, pag_interval, reuse)
    if isinstance(guidance, tuple):
        values = falling(*guidance, len(plan))
        plan = [replace(step, guidance=value) for step, value in zip(plan, values, strict=True)]
        guidance = next((value for value in guidance if value != 1), 1.0)  # whether there are two halves
    if reuse > 1 and not backbone.reusable:
        raise ValueError(f"reuse {reuse}: this backbone has no deep blocks whose output could be reused; use 1")
    # The noise that stands in for a text is drawn last: others' pictures do not depend on it.
    *start, noise = (drawn.to(text.device) for drawn in initial_noise(seeds, *shapes.values(), text.shape[1:]))
    make = GuidedModel if method is None or identity is None else method.guided_model
    model = make(
        backbone,
        expand(prompt, len(seeds)),
        empty_prompt=empty_prompt,
        noise=noise,
        guidance=guidance,
        uncond_mode=uncond_mode,
        method=method,
        identity=identity,
        scale=scale,
        latent_size=latent_size,
        **{name: value for name, value in (("rescale", rescale), ("pag_scale", pag_scale)) if value},
    )
    state = dict(zip(shapes, start, strict=True))
    if init is None:
        return integrate(model, state, solver, plan, progress)
    return integrate(model, state, solver, plan, progress, init, RowNoise(seeds, KEPT))


def integrate(
    model: Callable[..., State],
    state: State,
    solver: Any,
    plan: Sequence[Evaluation],
    progress: Callable[[int, int], None] | None = None,
    init: InitImage | None = None,
    noise_kept: Noise | None = None,
) -> State:
    """Take `state` through all the steps of a diffusers scheduler; `model` is called as a `GuidedModel` is.

    With `init`, `state` is the noise in the picture that it begins with, and steps before its strength are left out;
    `noise_kept` is the noise in what is kept of it.
    """
    shapes = {name: value.shape[1:] for name, value in state.items()}
    timesteps = solver.timesteps
    if init is not None:
        first = init.first_step([now.t for now in plan])
        if first:
            solver.set_begin_index(first)
        plan, timesteps = plan[first:], timesteps[first:]
        state = init.noised(state, plan[0].t)
    x = pack(state)
    for done, (now, timestep) in enumerate(zip(plan, timesteps, strict=True), start=1):
        if init is not None:
            x = pack(init.kept(unpack(x, shapes), now.t, noise_kept))
        own: dict[str, Any] = {} if now.guidance is None else {"guidance": now.guidance}
        if not now.perturbed:
            own["perturbed"] = False
        noise = model(unpack(x, shapes), now.t, guided=now.guided, controlled=now.controlled, reused=now.reused, **own)
        x = solver.step(pack({name: noise[name] for name in shapes}), timestep, x).prev_sample
        if progress is not None:
            progress(done, len(plan))
    return unpack(x, shapes)

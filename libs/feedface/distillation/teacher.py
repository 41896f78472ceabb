"""The teacher: the model under guidance, solved finely from noise to picture; what it passes on the way is the lesson.

Shapes: B batch, S student steps, J numbers of a packed `State`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from feedface.backbones.base import Prompt
from feedface.checkpoints.bundle import Bundle
from feedface.checkpoints.few_step import GUIDANCE_KEYS, NO_PAG
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.plan import plan_evaluations
from feedface.diffusion.sampling import initial_noise, jumps_at
from feedface.diffusion.schedule import NUM_TIMESTEPS, alphas_cumprod, timestep_of
from feedface.diffusion.state import pack, unpack
from feedface.methods.base import Identity
from feedface.settings import WITHOUT_PROMPT


def fine_timesteps(timesteps: Sequence[int], substeps: int) -> list[int]:
    """`substeps` whole timesteps for each of the student's: from it on, uniform in log-SNR, to before the next.

    The last of the student's steps is divided as if it went to timestep 1. `ValueError` where they are too close, or do
    not begin at pure noise.
    """
    if list(timesteps[:1]) != [NUM_TIMESTEPS] or timesteps[-1] < 1:
        raise ValueError(f"timesteps must fall from {NUM_TIMESTEPS} to 1 or more, not {list(timesteps)}")
    alpha_bar = alphas_cumprod()
    ratio = ((1 - alpha_bar) / alpha_bar).log() / 2  # minus half the log-SNR
    fine: list[int] = []
    for start, end in pairwise([*timesteps, 1]):
        levels = torch.linspace(ratio[start - 1], ratio[end - 1], substeps + 1, dtype=torch.float64)[:-1]
        fine += [start, *(round(float(t)) for t in timestep_of(levels[1:].exp()))]
    if any(later >= earlier for earlier, later in pairwise(fine)):
        raise ValueError(f"timesteps {list(timesteps)} leave no room for {substeps} substeps each")
    return fine


class Teacher:
    """Draws trajectories as a bundle's defaults say (`how`, `GUIDANCE_KEYS` of a few-step adapter)."""

    def __init__(self, bundle: Bundle, timesteps: Sequence[int], substeps: int, device: torch.device):
        self.bundle, self.timesteps, self.device = bundle, tuple(timesteps), device
        self.fine = fine_timesteps(timesteps, substeps)
        self.shapes = bundle.backbone.state_shapes()
        self.how = {**NO_PAG, **{key: bundle.defaults[key] for key in GUIDANCE_KEYS if key in bundle.defaults}}
        self._empty: Prompt | None = None

    @torch.no_grad()
    def draw(self, prompt: Prompt, seeds: Sequence[int], identity: Identity | None) -> Tensor:
        """States [B,S+1,J], float32: at each of the student's timesteps, the first pure noise, and at 0.

        The noise is that of `sample` with the same seeds.
        """
        text = prompt["text"]
        *start, noise = (x.to(self.device) for x in initial_noise(seeds, *self.shapes.values(), text.shape[1:]))
        model = GuidedModel(
            self.bundle.backbone,
            prompt,
            empty_prompt=None if self.how["uncond"] in WITHOUT_PROMPT else self._empty_prompt(),
            noise=noise,
            guidance=self.how["guidance"],
            uncond_mode=self.how["uncond"],
            method=self.bundle.method,
            identity=identity,
            scale=self.how["face_scale"],
            pag_scale=self.how["pag_scale"],
        )
        solver, states = jumps_at(self.fine, order=2), []
        x = pack(dict(zip(self.shapes, start, strict=True)))
        plan = plan_evaluations(self.fine, pag_interval=tuple(self.how["pag_interval"]))
        for now, timestep in zip(plan, solver.timesteps, strict=True):
            if now.t in self.timesteps:
                states.append(x)
            noise = model(unpack(x, self.shapes), float(now.t), perturbed=now.perturbed)
            x = solver.step(pack(noise), timestep, x).prev_sample
        return torch.stack([*states, x], dim=1)

    def _empty_prompt(self) -> Prompt:
        if self._empty is None:
            self._empty = {"text": self.bundle.text_encoder.encode([""]).to(self.device)}
        return self._empty

"""Sampling that begins with a picture: image-to-image, and in-painting, where the picture is kept outside a mask.

In-painting is the sampler's alone: before each step what is kept of the picture, noised for that step, takes its place
in the latent again (Lugmayr et al. 2022, "RePaint", without its resampling). After the last step nothing is put back.

Shapes: B rows, C h w latent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from feedface.diffusion.schedule import NUM_TIMESTEPS, signal_and_noise
from feedface.diffusion.state import State, take

# (name of the state's part, its shape) -> standard normal, anew at each call
Noise = Callable[[str, Sequence[int]], Tensor]


@dataclass(frozen=True)
class InitImage:
    """A picture to begin with.

    Attributes:
        clean: parts of the state without noise, B rows or one for all; parts that are not here begin as noise.
        strength: how far towards noise sampling begins, above 0 (the picture as it is) to 1 (from the first step on).
        keep: [B,1,h,w] or one row for all, 1 where the picture is kept, 0 where it is drawn anew; None: nowhere kept.
    """

    clean: State
    strength: float = 1.0
    keep: Tensor | None = None

    def __post_init__(self):
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be above 0 and at most 1, not {self.strength}")

    def rows(self, rows: slice) -> "InitImage":
        """Some of its B rows."""
        return replace(self, clean=take(self.clean, rows), keep=None if self.keep is None else self.keep[rows])

    def first_step(self, times: Sequence[float]) -> int:
        """The step to begin with, of steps at `times`: the first that is within the strength, or else the last."""
        within = (index for index, t in enumerate(times) if round(t, 1) <= self.strength * NUM_TIMESTEPS)
        return next(within, len(times) - 1)

    def noised(self, state: State, t: float) -> State:
        """The picture's parts at timestep `t`, with the noise in `state`; its other parts as they are."""
        return state | {name: self._at(name, t, state[name]) for name in self.clean}

    def kept(self, state: State, t: float, noise: Noise) -> State:
        """`state` before a step at `t`, with what is kept of the picture at that timestep."""
        if self.keep is None:
            return state
        img, keep = state["img"], self.keep.to(state["img"])
        picture = self._at("img", t, noise("img", img.shape).to(img))
        return {**state, "img": keep * picture + (1 - keep) * img}

    def _at(self, name: str, t: float, noise: Tensor) -> Tensor:
        signal, sigma = signal_and_noise(torch.tensor(t, device=noise.device))
        return signal * self.clean[name].to(noise) + sigma * noise


class RowNoise:
    """`Noise` whose row i comes from a CPU generator of `seeds[i]` alone; another `stream` gives other numbers."""

    def __init__(self, seeds: Sequence[int], stream: int):
        self.generators = [torch.Generator().manual_seed((seed << 8) + stream) for seed in seeds]

    def __call__(self, name: str, shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(*shape[1:], generator=generator) for generator in self.generators])

"""DDIM as latent-diffusion's programs step it: on every k-th timestep, with fresh noise of share η (Song et al. 2021).

What `sampling` calls "ddim" is another grid, from 1000 to 1, and without noise.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from feedface.diffusion.init_image import Noise
from feedface.diffusion.schedule import NUM_TIMESTEPS, alphas_cumprod
from feedface.diffusion.state import State, pack, unpack


class LeadingDdim:
    """A solver for `sampling.integrate`, from timestep 2 + (steps − 1) k down to 2, with k = 1000 // steps.

    η 1 puts as much noise in as the reverse process has, 0 none. `shapes` are those of one row of the state; `noise`
    gives noise for it. After the last step a noise level of timestep 1 is left.
    """

    def __init__(self, steps: int, eta: float = 0.0, noise: Noise | None = None, shapes: State | None = None):
        if not 1 <= steps < NUM_TIMESTEPS:
            raise ValueError(f"steps must be 1 to {NUM_TIMESTEPS - 1}, not {steps}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be 0 to 1, not {eta}")
        self.eta, self._noise, self._shapes = eta, noise, dict(shapes or {})
        self.timesteps = torch.arange(steps).flip(0) * (NUM_TIMESTEPS // steps) + 1  # counted from 0
        alpha_bar = alphas_cumprod().float()  # theirs are rounded before they are used
        self.alpha_bar = alpha_bar[self.timesteps]
        self.alpha_before = torch.cat([self.alpha_bar[1:], alpha_bar[:1]])
        self.sigmas = ((1 - self.alpha_bar) / self.alpha_bar).sqrt()
        share = (1 - self.alpha_before) / (1 - self.alpha_bar) * (1 - self.alpha_bar / self.alpha_before)
        self.spreads = eta * share.sqrt()  # of the noise that each step adds

    def set_begin_index(self, index: int) -> None:
        """Nothing: a step is told by its timestep."""

    def step(self, predicted: Tensor, timestep: Tensor, x: Tensor) -> SimpleNamespace:
        """One step of packed states [B,J]; eq. 12."""
        at = int((self.timesteps == timestep).nonzero()[0])
        now, before, spread = self.alpha_bar[at], self.alpha_before[at], self.spreads[at]
        clean = (x - (1 - now).sqrt() * predicted) / now.sqrt()
        x = before.sqrt() * clean + (1 - before - spread**2).sqrt() * predicted
        if self.eta:
            x = x + spread * self._drawn(x)
        return SimpleNamespace(prev_sample=x, pred_original_sample=clean)

    def _drawn(self, x: Tensor) -> Tensor:
        parts = unpack(x, self._shapes)
        return pack({name: self._noise(name, part.shape).to(part) for name, part in parts.items()})

"""DDIM's step between two noise levels."""

from torch import Tensor

from feedface.diffusion.schedule import alphas_cumprod


def signal_and_noise(t: int) -> tuple[float, float]:
    """√ᾱ_t and √(1 - ᾱ_t); t 0 is clean."""
    alpha_bar = float(alphas_cumprod()[t - 1]) if t else 1.0
    return alpha_bar**0.5, (1 - alpha_bar) ** 0.5


def ddim_step(x: Tensor, noise: Tensor, start: int, end: int) -> Tensor:
    """From timestep `start` to `end` (Song et al. 2021, eq. 12 without its random part); 0 is clean.

    The same as the steps of `diffusion.sampling.jumps_at`, and differentiable.
    """
    signal, sigma = signal_and_noise(start)
    new_signal, new_sigma = signal_and_noise(end)
    return new_signal * (x - sigma * noise) / signal + new_sigma * noise

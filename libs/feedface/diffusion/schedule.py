"""The discrete noise schedule of Stable Diffusion, which UniDiffuser shares: timesteps 1 … 1000, 0 is clean."""

from functools import lru_cache

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012


def alphas_cumprod() -> Tensor:
    """ᾱ [1000] in float64; entry `t - 1` belongs to timestep `t`."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, NUM_TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0)


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """√ᾱ_t x0 + √(1 - ᾱ_t) noise, for `x0`, `noise` [B,…] and integer timesteps `t` [B] in 1 … 1000."""
    signal, sigma = (scale[t - 1].reshape(-1, *[1] * (x0.dim() - 1)) for scale in _scales(x0.dtype, x0.device))
    return signal * x0 + sigma * noise


@lru_cache(maxsize=8)
def _scales(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """√ᾱ and √(1 - ᾱ), [1000] each, kept on the device: copying them at each step would have a GPU wait."""
    with torch.inference_mode(False):  # or what a sampler made first could not be trained with
        alpha_bar = alphas_cumprod()
        return alpha_bar.sqrt().to(dtype).to(device), (1 - alpha_bar).sqrt().to(dtype).to(device)


def _log_ratios() -> Tensor:
    """The logarithm of the noise-to-signal ratio √((1 - ᾱ)/ᾱ) at timesteps 1 … 1000, float64."""
    alpha_bar = alphas_cumprod()
    return ((1 - alpha_bar) / alpha_bar).log() / 2


def signal_and_noise(t: Tensor) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 - ᾱ_t), float32 on t's device, at timesteps 1 … 1000, also fractional ones: see `timestep_of`."""
    known, where = _log_ratios().to(t.device), t.double() - 1
    before = where.floor().long().clamp(0, NUM_TIMESTEPS - 2)
    log_ratio = torch.lerp(known[before], known[before + 1], where - before)
    return torch.sigmoid(-2 * log_ratio).sqrt().float(), torch.sigmoid(2 * log_ratio).sqrt().float()


def timestep_of(sigma: Tensor) -> Tensor:
    """Fractional timesteps, 1 … 1000, at which the noise-to-signal ratio √((1 - ᾱ)/ᾱ) is `sigma` (any shape).

    Interpolated in the ratio's logarithm, as the solvers of DPM-Solver's authors do.
    """
    known = _log_ratios()
    wanted = sigma.double().log()
    after = torch.searchsorted(known, wanted).clamp(1, NUM_TIMESTEPS - 1)
    share = (wanted - known[after - 1]) / (known[after] - known[after - 1])
    return (after + share).clamp(1, NUM_TIMESTEPS)

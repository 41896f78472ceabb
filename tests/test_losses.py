"""Losses and noise schedule against hand-made numbers (the golden set covers the authors' values)."""

import torch

from feedface.diffusion.losses import mask_loss, regularization_mask_loss, standard_loss
from feedface.diffusion.schedule import add_noise, alphas_cumprod, timestep_of

NOISE, PREDICTED, FROZEN = torch.full((2, 4, 2, 2), 3.0), torch.full((2, 4, 2, 2), 1.0), torch.full((2, 4, 2, 2), 2.0)
MASK = torch.zeros(2, 1, 2, 2)
MASK[0, :, 0] = 1  # half of the first sample, none of the second


def test_losses_are_per_sample_means():
    assert standard_loss(NOISE, PREDICTED).tolist() == [4, 4]
    assert mask_loss(NOISE, PREDICTED, MASK).tolist() == [2, 0]
    assert regularization_mask_loss(NOISE, PREDICTED, FROZEN, MASK).tolist() == [2.5, 1]


def test_a_soft_mask_weighs_both_terms():
    # the release's form, the sum of two means: (0.5 * 2)^2 + (0.5 * 1)^2
    soft = torch.full((2, 1, 2, 2), 0.5)
    assert regularization_mask_loss(NOISE, PREDICTED, FROZEN, soft).tolist() == [1.25, 1.25]


def test_half_precision_does_not_overflow():
    far = torch.full((1, 4, 2, 2), 300.0, dtype=torch.float16)
    assert standard_loss(far, -far).tolist() == [600.0**2]


def test_schedule():
    alpha_bar = alphas_cumprod()
    assert alpha_bar.shape == (1000,)
    assert (alpha_bar.diff() < 0).all()
    torch.testing.assert_close(alpha_bar[0].item(), 1 - 0.00085)
    x0, noise = torch.ones(2, 3, 1, 1), torch.full((2, 3, 1, 1), 2.0)
    noisy = add_noise(x0, noise, torch.tensor([1, 1000]))
    expected = alpha_bar[[0, 999]].sqrt() + 2 * (1 - alpha_bar[[0, 999]]).sqrt()
    torch.testing.assert_close(noisy[:, 0, 0, 0], expected.float())


def test_timestep_of_a_noise_level():
    ratios = ((1 - alphas_cumprod()) / alphas_cumprod()).sqrt()
    torch.testing.assert_close(timestep_of(ratios), torch.arange(1, 1001, dtype=torch.float64))
    between = (ratios[9] * ratios[10]).sqrt()
    torch.testing.assert_close(timestep_of(between), torch.tensor(10.5, dtype=torch.float64))
    assert timestep_of(torch.tensor([1e-6, 1e6])).tolist() == [1, 1000]

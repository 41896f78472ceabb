"""The sampler: exact on a Gaussian, whose probability flow has a closed form; the same for each seed in any batch."""

import numpy as np
import pytest
import torch
from tests.test_uvit import inputs
from tests.toy import toy_face_controlnet, toy_uvit
from torch import Tensor

from feedface.backbones.uvit import UViTOutput
from feedface.diffusion.sampling import SCHEDULERS, initial_noise, sample
from feedface.diffusion.schedule import alphas_cumprod

SEEDS = list(range(16))


class GaussianModel:
    """The exact noise prediction for data of independent N(mean, spread²), in the shape of a U-ViT."""

    img_size, in_chans, clip_img_dim, num_text_tokens, text_dim = (4, 4), 4, 8, 3, 2

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.mean = torch.randn(1, 72, generator=generator)
        self.spread = 0.1 + 0.9 * torch.rand(1, 72, generator=generator)

    def moments(self, t: float) -> tuple[Tensor, Tensor, float]:
        """At timestep t, also a fractional one: mean and deviation of the noisy data, deviation of its noise."""
        ratios = ((1 - alphas_cumprod()) / alphas_cumprod()).log().numpy()
        ratio = float(np.exp(np.interp(t, np.arange(1, 1001), ratios))) if t else 0.0
        signal, noise = (1 / (1 + ratio)) ** 0.5, (ratio / (1 + ratio)) ** 0.5
        return signal * self.mean, (signal**2 * self.spread**2 + noise**2).sqrt(), noise

    def __call__(self, img, clip_img, text, t_img, t_text, data_type, control=None) -> UViTOutput:
        mean, deviation, noise = self.moments(float(t_img[0]))
        x = torch.cat([img.flatten(1), clip_img.flatten(1)], dim=1)
        predicted = noise * (x - mean) / deviation**2
        return UViTOutput(predicted[:, :64].unflatten(1, (4, 4, 4)), predicted[:, 64:].unflatten(1, (1, 8)), text)

    def exact(self, noise: Tensor, end: int) -> Tensor:
        """Where the probability flow takes `noise` from timestep 1000 to `end`: the same quantile."""
        (start_mean, start, _), (end_mean, deviation, _) = self.moments(1000), self.moments(end)
        return end_mean + deviation / start * (noise - start_mean)


def error(scheduler: str, steps: int) -> float:
    """Root mean square distance from the exact solution."""
    model = GaussianModel()
    text = torch.zeros(1, 3, 2)
    drawn = sample(model, text=text, seeds=SEEDS, steps=steps, guidance=1, scheduler=scheduler)
    noise = initial_noise(SEEDS, (4, 4, 4), (1, 8))
    joint, noise = (torch.cat([part.flatten(1) for part in parts], dim=1) for parts in (drawn, noise))
    end = 0 if scheduler in ("dpmsolver++", "unipc") else 1
    return (joint - model.exact(noise, end)).square().mean().sqrt().item()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_converges_to_the_exact_solution(scheduler: str):
    assert error(scheduler, 400) < 5e-3
    assert error(scheduler, 20) < error(scheduler, 10) / 1.5


@pytest.mark.parametrize(
    ("scheduler", "bound"), [("dpmsolver++", 0.005), ("unipc", 0.005), ("dpmsolver++singlestep", 0.025)]
)
def test_twenty_evaluations_beat_ddim_at_forty(scheduler: str, bound: float):
    assert error(scheduler, 20) < bound < error("ddim", 40)


def test_ddim_is_ddim():
    # against diffusers' own, at a number of steps for which its grid is even
    from diffusers import DDIMScheduler

    model = GaussianModel()
    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )
    reference.set_timesteps(250)
    noise = initial_noise(SEEDS, (4, 4, 4), (1, 8))
    x = torch.cat([part.flatten(1) for part in noise], dim=1)
    start = x.clone()
    for t in reference.timesteps:
        img, clip_img = x[:, :64].unflatten(1, (4, 4, 4)), x[:, 64:].unflatten(1, (1, 8))
        out = model(img, clip_img, None, t[None] + 1, None, None)
        predicted = torch.cat([out.img.flatten(1), out.clip_img.flatten(1)], dim=1)
        x = reference.step(predicted, t, x).prev_sample
    theirs = (x - model.exact(start, 0)).square().mean().sqrt().item()
    assert error("ddim", 250) < 1.5 * theirs


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_steps_count_evaluations(scheduler: str, steps: int):
    model, seen, reported = GaussianModel(), [], []

    def counted(img, clip_img, text, t_img, *rest, **options):
        seen.append(t_img[0].item())
        return model(img, clip_img, text, t_img, *rest, **options)

    for name in ("img_size", "in_chans", "clip_img_dim", "num_text_tokens", "text_dim"):
        setattr(counted, name, getattr(model, name))
    options = {"guidance": 1, "scheduler": scheduler, "progress": lambda *done: reported.append(done)}
    latents, _ = sample(counted, text=torch.zeros(1, 3, 2), seeds=[0], steps=steps, **options)
    assert len(seen) == steps
    assert seen[0] == pytest.approx(1000, abs=1e-2)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] >= 1
    assert reported == [(i, steps) for i in range(1, steps + 1)]
    assert latents.isfinite().all()


@pytest.mark.parametrize("mode", ["true_uncond", "paper"])
def test_a_sample_depends_on_its_seed_not_on_its_batch(mode: str):
    torch.manual_seed(0)
    uvit = toy_uvit()
    net = toy_face_controlnet(uvit)
    text, empty = inputs(uvit)[2]
    tokens = net.encode(torch.rand(1, 3, 32, 32))
    options = {"text": text[None], "empty_text": empty[None], "uncond_mode": mode, "steps": 3, "guidance": 2.0}
    options |= {"face_controlnet": net, "face_tokens": tokens, "latent_size": (8, 12)}
    latents, clip_img = sample(uvit, seeds=[3, 4, 5], **options)
    assert latents.shape == (3, 4, 8, 12)
    assert clip_img.shape == (3, 1, 16)
    alone, _ = sample(uvit, seeds=[5], **options)
    torch.testing.assert_close(latents[2:], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents[0], latents[2], atol=0.1)
    unfaced, _ = sample(uvit, seeds=[5], **{**options, "face_scale": 0})
    assert not torch.allclose(alone, unfaced)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"steps": 1000}, {"scheduler": "euler"}, {"uncond_mode": "x"}, {"uncond_mode": "paper"}]
)
def test_wrong_settings_are_refused(wrong: dict):
    uvit = toy_uvit()
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        sample(uvit, text=inputs(uvit)[2], seeds=[0, 1], **wrong)

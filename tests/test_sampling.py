"""The sampler: exact on a Gaussian, whose probability flow has a closed form; the same for each seed in any batch."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tests.test_uvit import inputs
from tests.toy import face_tokens, toy_face_controlnet, toy_uvit
from torch import Tensor

from feedface.diffusion.names import LEADING
from feedface.diffusion.sampling import SCHEDULERS, initial_noise, sample
from feedface.diffusion.schedule import alphas_cumprod
from feedface.diffusion.state import pack, take, unpack

SEEDS = list(range(16))
# Two begin where their grids do.
FROM_NOISE = [name for name in SCHEDULERS if name not in (LEADING, "ddim:flashface")]
PROMPT = {"text": torch.zeros(1, 3, 2)}
DDIM = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


class GaussianModel:
    """The exact noise prediction for data of independent N(mean, spread²): all that a sampler asks of a backbone."""

    uncond_modes, reusable, shapes = ("empty_token",), False, {"img": (4, 4, 4), "clip_img": (1, 8)}

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

    def state_shapes(self, latent_size=None) -> dict:
        return self.shapes

    def conditions(self, prompt, latent_size=None):
        return None

    def __call__(self, state, t, conditions=None, control=None, memory=None) -> dict:
        mean, deviation, noise = self.moments(float(t[0]))
        return unpack(noise * (pack(state) - mean) / deviation**2, self.shapes)

    def exact(self, noise: Tensor, end: int) -> Tensor:
        """Where the probability flow takes `noise` from timestep 1000 to `end`: the same quantile."""
        (start_mean, start, _), (end_mean, deviation, _) = self.moments(1000), self.moments(end)
        return end_mean + deviation / start * (noise - start_mean)


def error(scheduler: str, steps: int) -> float:
    """Root mean square distance from the exact solution."""
    model = GaussianModel()
    drawn = sample(model, PROMPT, SEEDS, steps=steps, guidance=1, scheduler=scheduler)
    end = 1 if scheduler in ("dpmsolver++singlestep", "ddim") else 0
    return (pack(drawn) - model.exact(start_of(SEEDS), end)).square().mean().sqrt().item()


def start_of(seeds: list[int]) -> Tensor:
    """The noise that `sample` begins with, as one vector."""
    return torch.cat([part.flatten(1) for part in initial_noise(seeds, *GaussianModel.shapes.values())], dim=1)


@pytest.mark.parametrize("scheduler", FROM_NOISE)
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
    model = GaussianModel()
    reference = DDIMScheduler(**DDIM, timestep_spacing="trailing")
    reference.set_timesteps(250)
    x = start = start_of(SEEDS)
    for t in reference.timesteps:
        x = reference.step(pack(model(unpack(x, model.shapes), t[None] + 1)), t, x).prev_sample
    theirs = (x - model.exact(start, 0)).square().mean().sqrt().item()
    assert error("ddim", 250) < 1.5 * theirs


class Counted(GaussianModel):
    """Notes the timesteps that it is asked about."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __call__(self, state, t, *rest, **options):
        self.seen.append(t[0].item())
        return super().__call__(state, t)


@pytest.mark.parametrize("scheduler", FROM_NOISE)
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_steps_count_evaluations(scheduler: str, steps: int):
    model, reported = Counted(), []
    options = {"guidance": 1, "scheduler": scheduler, "progress": lambda *done: reported.append(done)}
    latents, seen = sample(model, PROMPT, [0], steps=steps, **options)["img"], model.seen
    assert len(seen) == steps
    assert seen[0] == pytest.approx(1000, abs=1e-2)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] >= 1
    assert reported == [(i, steps) for i in range(1, steps + 1)]
    assert latents.isfinite().all()


@pytest.mark.parametrize(("steps", "first"), [(50, 1000), (25, 980), (4, 770), (100, 1000), (999, 999)])
def test_flashface_steps_as_its_authors(steps: int, first: int):
    model = Counted()
    drawn = sample(model, PROMPT, SEEDS, steps=steps, guidance=1, scheduler="ddim:flashface")
    assert len(model.seen) == steps
    assert model.seen[0] == pytest.approx(first, abs=1e-2)
    if steps > 50:  # there is no such grid of theirs
        return
    assert model.seen[-1] == pytest.approx(20, abs=1e-2)
    solver = DDIMScheduler(**DDIM, timestep_spacing="leading", steps_offset=19, set_alpha_to_one=False)
    solver.set_timesteps(steps)
    x = start_of(SEEDS)
    for t in solver.timesteps:
        x = solver.step(pack(model(unpack(x, model.shapes), t[None] + 1)), t, x).prev_sample
    torch.testing.assert_close(pack(drawn), x, atol=2e-4, rtol=1e-3)


def test_jumps_at_given_timesteps():
    # a model whose data is one point gives it in any number of jumps, from any timesteps
    model = Counted()
    model.spread = torch.zeros(1, 72)
    drawn = sample(model, PROMPT, SEEDS, guidance=1, timesteps=[1000, 700, 300, 40])
    assert model.seen == pytest.approx([1000, 700, 300, 40], abs=1e-2)
    torch.testing.assert_close(pack(drawn), model.mean.expand(len(SEEDS), -1), atol=1e-3, rtol=1e-3)
    # where the data is spread, each jump is DDIM's
    model, x = GaussianModel(), start_of([7])
    drawn = sample(model, PROMPT, [7], guidance=1, timesteps=[1000, 400])
    for t, later in ((1000, 400), (400, 0)):
        mean, deviation, noise = model.moments(t)
        predicted = noise * (x - mean) / deviation**2
        clean = (x - noise * predicted) / (1 - noise**2) ** 0.5
        noise = model.moments(later)[2]
        x = (1 - noise**2) ** 0.5 * clean + noise * predicted
    torch.testing.assert_close(pack(drawn), x, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("timesteps", [[], [400, 400], [300, 500], [1001], [500, 0]])
def test_timesteps_that_do_not_fall_are_refused(timesteps: list[int]):
    with pytest.raises(ValueError, match="must fall"):
        sample(GaussianModel(), PROMPT, [0], guidance=1, timesteps=timesteps)


SAVINGS = {"guidance_interval": (200, 800), "face_interval": (0, 600), "reuse": 2}


def toy_options(mode: str = "true_uncond") -> dict:
    """A toy model with a face, a prompt and the empty one."""
    torch.manual_seed(0)
    uvit = toy_uvit()
    net = toy_face_controlnet(uvit)
    text, empty = inputs(uvit)[2]
    prompts = {"prompt": {"text": text[None]}, "empty_prompt": {"text": empty[None]}}
    with torch.no_grad():
        identity = {"tokens": face_tokens(net, torch.rand(1, 3, 32, 32))}
    shown = {"method": net, "identity": identity, "latent_size": (8, 12)}
    return {"backbone": uvit, **prompts, "uncond_mode": mode, "guidance": 2.0, **shown}


TENSORS = {"prompt": "text", "empty_prompt": "text", "identity": "tokens"}


@pytest.mark.parametrize("mode", ["true_uncond", "paper"])
def test_the_fast_path_is_the_plain_path(mode: str):
    """Against a loop written plainly: two passes, all inputs and the face's keys anew at each step, DDIM's formula."""
    options = toy_options(mode)
    uvit, net = options["backbone"], options["method"]
    text, empty, tokens = (options[key][name] for key, name in TENSORS.items())
    timesteps = [1000, 650, 300]
    drawn = sample(seeds=[3, 4], scale=0.7, timesteps=timesteps, **options)

    parts = initial_noise([3, 4], (4, 8, 12), (1, 16), (16, 8))
    x, uncond_text = parts[:2], parts[2] if mode == "true_uncond" else empty.expand(2, -1, -1)
    ones, zeros = torch.ones(2, dtype=torch.long), torch.zeros(2)
    with torch.no_grad():
        for t, later in zip(timesteps, [*timesteps[1:], 0], strict=True):
            now = torch.full((2,), float(t))
            faces = net.bind(uvit, {"tokens": tokens.expand(2, -1, -1)}, 0.7)
            c = uvit.predict(*x, text.expand(2, -1, -1), now, zeros, ones, control=faces)
            faces = net.bind(uvit, {"tokens": torch.zeros_like(tokens)}, 0.7) if mode == "paper" else None
            u = uvit.predict(*x, uncond_text, now, zeros + 1000 * (mode == "true_uncond"), ones, control=faces)
            noise = [b + 2 * (a - b) for a, b in ((c.img, u.img), (c.clip_img, u.clip_img))]
            alpha_bar = alphas_cumprod().float()
            before, after = alpha_bar[t - 1], alpha_bar[later - 1] if later else torch.tensor(1.0)
            clean = [(part - (1 - before).sqrt() * e) / before.sqrt() for part, e in zip(x, noise, strict=True)]
            x = [after.sqrt() * part + (1 - after).sqrt() * e for part, e in zip(clean, noise, strict=True)]
    torch.testing.assert_close(drawn["img"], x[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(drawn["clip_img"], x[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_does_not_change_is_computed_once():
    options = toy_options()
    uvit, net = options["backbone"], options["method"]
    calls = []
    modules = {"text": uvit.text_embed, "type": uvit.token_embedding, "img": uvit.patch_embed, "head": uvit.text_out}
    for name, module in {**modules, "keys": net.blocks[0].cross_attn.to_k}.items():
        module.register_forward_hook(lambda *_, name=name: calls.append(name))
    sample(seeds=[0, 1], steps=4, **options)
    assert sorted(calls) == ["img"] * 4 + ["keys", "text", "type"]


@torch.no_grad()
def test_savings_that_cover_everything_change_nothing_and_others_save_work():
    options = {**toy_options(), "seeds": [0, 1], "steps": 8}
    uvit, net = options["backbone"], options["method"]
    deep, faces = [], []
    uvit.mid_block.register_forward_pre_hook(lambda module, args: deep.append(len(args[0])))
    net.blocks[0].register_forward_pre_hook(lambda module, args: faces.append(len(args[0])))
    plain = sample(**options)["img"]
    everything = sample(guidance_interval=(0, 1000), face_interval=(0, 1000), reuse=1, **options)["img"]
    assert torch.equal(everything, plain)
    assert (deep, faces) == ([4] * 16, [2] * 16)
    for name, value in SAVINGS.items():
        deep.clear()
        faces.clear()
        saved = sample(**options, **{name: value})["img"]
        assert not torch.equal(saved, plain)
        assert sum(deep) < 32 or sum(faces) < 16


@pytest.mark.parametrize("savings", [{}, SAVINGS], ids=["plain", "savings"])
@pytest.mark.parametrize("mode", ["true_uncond", "paper"])
def test_rows_of_a_batch_may_have_prompts_and_faces_of_their_own(mode: str, savings: dict):
    options = {**toy_options(mode), "steps": 6, **savings}
    text, empty, _ = (options[key][name] for key, name in TENSORS.items())
    options["prompt"] = {"text": torch.cat([text, empty + 1])}
    with torch.no_grad():
        options["identity"] = {"tokens": face_tokens(options["method"], torch.rand(2, 3, 32, 32))}
    together = sample(seeds=[3, 4], **options)["img"]
    for row in range(2):
        own = {name: take(options[name], slice(row, row + 1)) for name in ("prompt", "identity")}
        alone = sample(seeds=[3 + row], **{**options, **own})["img"]
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("savings", [{"steps": 3}, {"steps": 8, **SAVINGS}], ids=["plain", "savings"])
@pytest.mark.parametrize("mode", ["true_uncond", "paper"])
def test_a_sample_depends_on_its_seed_not_on_its_batch(mode: str, savings: dict):
    options = {**toy_options(mode), **savings}
    drawn = sample(seeds=[3, 4, 5], **options)
    latents = drawn["img"]
    assert latents.shape == (3, 4, 8, 12)
    assert drawn["clip_img"].shape == (3, 1, 16)
    alone = sample(seeds=[5], **options)["img"]
    torch.testing.assert_close(latents[2:], alone, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(latents[0], latents[2], atol=0.1)
    unfaced = sample(seeds=[5], **{**options, "scale": 0})["img"]
    assert not torch.allclose(alone, unfaced)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"steps": 0}, {"steps": 1000}, {"scheduler": "euler"}, {"scheduler": "ddim:karras"}),
        *({"uncond_mode": "x"}, {"uncond_mode": "paper"}),
    ],
)
def test_wrong_settings_are_refused(wrong: dict):
    uvit = toy_uvit()
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        sample(uvit, {"text": inputs(uvit)[2]}, [0, 1], **wrong)


def test_reuse_needs_a_backbone_that_can():
    with pytest.raises(ValueError, match="reuse 2: this backbone has no deep blocks"):
        sample(GaussianModel(), PROMPT, [0], guidance=1, reuse=2)

"""Sampling that begins with a picture, and DDIM on the grid of latent-diffusion's programs."""

import pytest
import torch
from diffusers import DDIMScheduler
from tests.test_sampling import PROMPT, Counted, GaussianModel

from feedface.diffusion.ddim import LeadingDdim
from feedface.diffusion.init_image import InitImage, RowNoise
from feedface.diffusion.sampling import sample
from feedface.diffusion.schedule import signal_and_noise

PICTURE = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))


def drawn(model=None, seeds=(3, 4), **options):
    options = {"steps": 10, "guidance": 1, **options}
    return sample(model or GaussianModel(), PROMPT, list(seeds), **options)["img"]


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("steps", [20, 30])
def test_leading_ddim_is_diffusers_own(steps: int, eta: float):
    reference = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    reference.set_timesteps(steps)
    generator = torch.Generator().manual_seed(0)
    noises = [torch.randn(2, 6, generator=generator) for _ in range(2 * steps + 1)]
    own = iter(noises[:steps])
    solver = LeadingDdim(steps, eta, lambda name, shape: next(own), {"x": (6,)})
    assert torch.equal(solver.timesteps, reference.timesteps)
    x = theirs = noises[-1]
    for t, predicted, noise in zip(reference.timesteps, noises[steps:], noises, strict=False):
        x = solver.step(predicted, t, x).prev_sample
        theirs = reference.step(predicted, t, theirs, eta=eta, variance_noise=noise).prev_sample
        torch.testing.assert_close(x, theirs, atol=1e-4, rtol=1e-4)


def test_only_the_leading_grid_takes_eta():
    with pytest.raises(ValueError, match="only ddim:leading adds noise"):
        drawn(eta=0.5)
    with pytest.raises(ValueError, match="eta must be 0 to 1"):
        drawn(scheduler="ddim:leading", eta=1.5)


@pytest.mark.parametrize("options", [{}, {"scheduler": "unipc"}, {"scheduler": "ddim:leading", "eta": 1.0}])
def test_a_row_depends_on_its_own_seed_alone(options):
    keep = (torch.arange(4) < 2).float().expand(1, 1, 4, 4)
    init = InitImage({"img": PICTURE}, 0.8, keep)
    together, alone = drawn(init=init, **options), drawn(seeds=[4], init=init, **options)
    torch.testing.assert_close(together[1:], alone)
    assert not torch.allclose(together[:1], together[1:])


def test_strength_leaves_out_the_first_steps():
    counts = []
    for strength in (0.05, 0.3, 1.0):
        model = Counted()
        drawn(model, init=InitImage({"img": PICTURE}, strength), scheduler="dpmsolver++:uniform")
        counts.append(len(model.seen))
        assert model.seen[0] <= max(1000 * strength, model.seen[-1]) + 0.1
    assert counts == [1, 2, 10]
    for strength in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength must be above 0 and at most 1"):
            InitImage({"img": PICTURE}, strength)


def test_little_strength_keeps_the_picture_and_full_strength_begins_from_noise():
    near, far = (drawn(init=InitImage({"img": PICTURE}, strength)) for strength in (0.05, 1.0))
    assert (near - PICTURE).square().mean() < 0.1 * (far - PICTURE).square().mean()
    plain = drawn()
    # noised all the same, as Dense-Face's authors do: at timestep 1000 there is little of the picture left
    assert (far - plain).square().mean() < 0.05 * (plain - PICTURE).square().mean()


def test_what_is_kept_is_the_picture_at_each_step():
    seen = []

    class Watched(GaussianModel):
        def __call__(self, state, t, *rest, **options):
            seen.append((state["img"].clone(), t[0]))
            return super().__call__(state, t)

    keep = (torch.arange(4) < 2).float().expand(1, 1, 4, 4)
    drawn(Watched(), init=InitImage({"img": PICTURE}, keep=keep), steps=5)
    for x, t in seen:
        signal, sigma = signal_and_noise(t)
        noise = ((x - signal * PICTURE) / sigma)[..., :2]
        if sigma > 0.1:
            assert 0.5 < noise.std() < 1.5  # standard normal noise, anew at each step
    stds = [float((x[..., :2] - seen[0][0][..., :2]).std()) for x, _ in seen[1:]]
    assert min(stds) > 0.1


def test_all_kept_is_the_picture_and_none_kept_is_as_without_a_mask():
    ones, zeros = torch.ones(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    kept = drawn(init=InitImage({"img": PICTURE}, keep=ones))
    model = GaussianModel()
    # the last step goes from little noise around the picture to what the model expects of that
    assert (kept - PICTURE).square().mean() < 0.1 * (
        model.mean[:, :64].reshape(PICTURE.shape) - PICTURE
    ).square().mean()
    without = drawn(init=InitImage({"img": PICTURE}))
    assert torch.equal(drawn(init=InitImage({"img": PICTURE}, keep=zeros)), without)


def test_noise_of_a_row_is_its_seeds_and_streams_differ():
    first, again, other = RowNoise([7], 1), RowNoise([6, 7], 1), RowNoise([7], 2)
    shape = (1, 3)
    one = first("img", shape)
    assert torch.equal(one, again("img", (2, 3))[1:])
    assert not torch.equal(one, first("img", shape))
    assert not torch.equal(one, other("img", shape))

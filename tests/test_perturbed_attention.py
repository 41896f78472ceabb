"""Perturbed-attention guidance: its third prediction is what the paper says, and all else is as without it."""

import pytest
import torch
from tests.test_methods import ROWS, Row, Setting
from tests.toy import attentive, toy_unet, toy_uvit
from torch import Tensor

from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.sampling import sample
from feedface.diffusion.state import take

T = 500.0


def drawing(row: Row) -> Setting:
    setting = Setting(row).trained()
    attentive(setting.backbone)
    return setting


def blind_middle(uvit) -> None:
    """The middle block's attention, in which each image token by itself stands behind the tokens that are none."""
    attention, start = uvit.mid_block.attn, uvit.image_start
    plain = attention.forward

    def forward(x: Tensor, maps=None) -> Tensor:
        alone = [plain(torch.cat([x[:, :start], x[:, i : i + 1]], 1))[:, -1:] for i in range(start, x.shape[1])]
        return torch.cat([plain(x)[:, :start], *alone], dim=1)

    attention.forward = forward


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@torch.no_grad()
def test_what_it_leads_away_from(guidance: float):
    setting = drawing(ROWS[0])
    people, uvit = setting.people(), setting.backbone
    prompt, noise = setting.prompt(people), torch.randn_like(setting.text)
    shown = {"method": setting.method, "identity": people, "noise": noise, "guidance": guidance}
    plain = GuidedModel(uvit, prompt, **shown)(setting.state, T)
    conditional = GuidedModel(uvit, prompt, method=setting.method, identity=people)(setting.state, T)
    out = GuidedModel(uvit, prompt, pag_scale=1.5, **shown)(setting.state, T)
    nobody = GuidedModel(uvit, prompt)(setting.state, T)
    blind_middle(uvit)
    perturbed = GuidedModel(uvit, prompt)(setting.state, T)  # of nobody
    for name, value in out.items():
        assert (nobody[name] - perturbed[name]).abs().max() > 1e-3
        expected = plain[name] + 1.5 * (conditional[name] - perturbed[name])
        torch.testing.assert_close(value, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=str)
@torch.no_grad()
def test_every_method_in_every_mode(row: Row):
    """It makes a difference, and none at steps that leave it out; without the face it is nobody's."""
    setting = drawing(row)
    people, backbone = setting.people(), setting.backbone
    prompt = setting.prompt(people)
    noise, empty = torch.randn(2, *prompt["text"].shape)
    for mode in backbone.uncond_modes:
        options = {"uncond_mode": mode, "noise": noise, "empty_prompt": {"text": empty}, "guidance": 3.0}
        options |= {"method": setting.method, "identity": people}
        plain, model = (GuidedModel(backbone, prompt, pag_scale=s, **options) for s in (0.0, 2.0))
        assert not torch.allclose(plain(setting.state, T)["img"], model(setting.state, T)["img"], atol=1e-3)
        for how in ({}, {"guided": False}, {"guided": False, "controlled": False}):
            a, b = (one(setting.state, T, perturbed=False, **how)["img"] for one in (plain, model))
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        without = {key: value for key, value in options.items() if key not in ("method", "identity")}
        nobody = GuidedModel(backbone, prompt, pag_scale=2.0, **without)
        if not setting.method.changes_prompt:
            a, b = (one(setting.state, T, **how)["img"] for one, how in ((model, {"controlled": False}), (nobody, {})))
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("row", ROWS, ids=str)
@torch.no_grad()
def test_a_sample_depends_on_its_seed_and_person_alone(row: Row):
    setting = drawing(row)
    people = setting.people()
    prompt, second = setting.prompt(people), slice(1, 2)
    options = {"steps": 3, "guidance": 2.0, "method": setting.method, "empty_prompt": {"text": setting.text[:1]}}
    options |= {"pag_scale": 1.0, "pag_interval": (300, 1000), "guidance_interval": (300, 1000)}
    together = sample(setting.backbone, prompt, [3, 4], identity=people, **options)
    alone = sample(setting.backbone, take(prompt, second), [4], identity=take(people, second), **options)
    for name, value in alone.items():
        torch.testing.assert_close(together[name][1:], value, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_reused_blocks_are_each_predictions_own():
    uvit = attentive(toy_uvit())
    prompt = {"text": torch.randn(2, uvit.text_tokens, uvit.text_dim)}
    first, second = ({name: torch.randn(2, *shape) for name, shape in uvit.state_shapes().items()} for _ in range(2))
    model, conditions, times = GuidedModel(uvit, prompt, pag_scale=2.0), uvit.conditions(prompt), torch.full((2,), T)
    model(first, T)
    out = model(second, T, reused=True)["img"]

    def reused(control) -> Tensor:
        memory: dict[str, Tensor] = {}
        uvit(first, times, conditions, control, memory=memory)
        return uvit(second, times, conditions, control, memory=memory)["img"]

    conditional, perturbed = reused(None), reused(uvit.perturbed())
    assert not torch.allclose(conditional, perturbed, atol=1e-3)
    torch.testing.assert_close(out, conditional + 2 * (conditional - perturbed), atol=1e-5, rtol=1e-5)


def test_it_is_the_coarsest_attentions_that_are_perturbed():
    unet = toy_unet()
    cells = {site.name: site.cells for site in unet.sites.values() if site.kind == "self_attention"}
    assert set(unet.deep_attentions) == {name for name, value in cells.items() if value == max(cells.values())}
    assert len(set(cells.values())) > 1 and toy_uvit().deep_attentions == ("mid_block.attn",)

"""Classifier-free guidance: one batch gives what two passes give, in each unconditional mode."""

import pytest
import torch
from tests.test_uvit import inputs
from tests.toy import face_tokens, toy_face_controlnet, toy_uvit

from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.names import UNCOND_MODES

BATCH, T, GUIDANCE, SCALE = 2, 700.0, 6.0, 0.8


@pytest.fixture
def setting():
    torch.manual_seed(0)
    uvit = toy_uvit()
    net = toy_face_controlnet(uvit)
    img, clip_img, text, *_ = inputs(uvit, BATCH)
    tokens = face_tokens(net, torch.rand(BATCH, 3, 32, 32) * 2 - 1)
    return uvit, net, {"img": img, "clip_img": clip_img}, text, torch.randn_like(text), tokens


def guided(uvit, text, uncond_text=None, mode="true_uncond", tokens=None, **options) -> GuidedModel:
    """A model with what each mode takes."""
    if mode == "true_uncond":
        options["noise"] = uncond_text
    elif uncond_text is not None:
        options["empty_prompt"] = {"text": uncond_text}
    identity = None if tokens is None else {"tokens": tokens}
    return GuidedModel(uvit, {"text": text}, uncond_mode=mode, identity=identity, **options)


@pytest.mark.parametrize("mode", UNCOND_MODES)
@torch.no_grad()
def test_one_batch_equals_two_passes(setting, mode: str):
    uvit, net, state, text, uncond_text, tokens = setting
    model = guided(uvit, text, uncond_text, mode, tokens, method=net, guidance=GUIDANCE, scale=SCALE)
    out = model(state, T)

    t, ones = torch.full((BATCH,), T), torch.ones(BATCH, dtype=torch.long)
    t_uncond = torch.full((BATCH,), 1000.0 if mode == "true_uncond" else 0.0)
    face, zero = ({"tokens": value} for value in (tokens, torch.zeros_like(tokens)))
    no_face = net.bind(uvit, zero, SCALE) if mode == "paper" else None
    parts = state.values()
    c = uvit.predict(*parts, text, t, torch.zeros(BATCH), ones, control=net.bind(uvit, face, SCALE))
    u = uvit.predict(*parts, uncond_text, t, t_uncond, ones, control=no_face)
    for name, conditional, unconditional in (("img", c.img, u.img), ("clip_img", c.clip_img, u.clip_img)):
        expected = unconditional + GUIDANCE * (conditional - unconditional)
        torch.testing.assert_close(out[name], expected, atol=2e-5, rtol=1e-5)
        # the release's convention: c + s (c - u) with g = 1 + s
        released = conditional + (GUIDANCE - 1) * (conditional - unconditional)
        torch.testing.assert_close(out[name], released, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_the_unconditional_half_costs_no_control(setting):
    uvit, net, state, text, uncond_text, tokens = setting
    rows = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    for mode in UNCOND_MODES:
        guided(uvit, text, uncond_text, mode, tokens, method=net, guidance=3)(state, T)
    assert rows == [BATCH, BATCH, 2 * BATCH]


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_pass_alone(setting):
    uvit, net, state, text, _, tokens = setting
    sizes = rows_evaluated(uvit)
    out = guided(uvit, text, tokens=tokens, method=net)(state, T)
    t, ones = torch.full((BATCH,), T), torch.ones(BATCH, dtype=torch.long)
    control = net.bind(uvit, {"tokens": tokens})
    assert torch.equal(out["img"], uvit.predict(*state.values(), text, t, 0 * t, ones, control=control).img)
    assert sizes[0] == BATCH


@pytest.mark.parametrize("mode", UNCOND_MODES)
@torch.no_grad()
def test_an_evaluation_without_guidance_or_face_is_that_pass_alone(setting, mode: str):
    uvit, net, state, text, uncond_text, tokens = setting
    options = {"guidance": GUIDANCE, "method": net}
    model = guided(uvit, text, uncond_text, mode, tokens, **options)
    alone = guided(uvit, text, tokens=tokens, method=net)
    faceless = guided(uvit, text, uncond_text, mode, **options)
    sizes = rows_evaluated(uvit)
    assert torch.equal(model(state, T, guided=False)["img"], alone(state, T)["img"])
    assert torch.equal(model(state, T, controlled=False)["img"], faceless(state, T)["img"])
    assert sizes == [BATCH, BATCH, 2 * BATCH, 2 * BATCH]
    # one face for all rows, too
    shared = guided(uvit, text, uncond_text, mode, tokens[:1], **options)
    alone = guided(uvit, text, tokens=tokens[:1], method=net)
    torch.testing.assert_close(shared(state, T, guided=False)["img"], alone(state, T)["img"])


def rows_evaluated(uvit) -> list[int]:
    """Filled with the number of rows of each evaluation."""
    sizes: list[int] = []
    uvit.mid_block.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


def test_without_faces_or_at_scale_zero_there_is_no_control(setting):
    uvit, net, _, text, uncond_text, tokens = setting
    assert guided(uvit, text, uncond_text, guidance=2, method=net).control is None
    for mode in UNCOND_MODES:
        assert guided(uvit, text, uncond_text, mode, tokens, guidance=2, method=net, scale=0).control is None


@pytest.mark.parametrize("mode", UNCOND_MODES)
def test_what_is_missing_is_named(setting, mode: str):
    uvit, _, _, text, _, _ = setting
    with pytest.raises(ValueError, match=f"'{mode}' needs {'noise' if mode == 'true_uncond' else 'empty_prompt'}"):
        guided(uvit, text, mode=mode, guidance=2)
    with pytest.raises(ValueError, match="none"):
        guided(uvit, text, mode="none")

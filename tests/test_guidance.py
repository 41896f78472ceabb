"""Classifier-free guidance: one batch gives what two passes give, in each unconditional mode."""

import pytest
import torch
from tests.test_uvit import inputs
from tests.toy import toy_face_controlnet, toy_uvit

from feedface.diffusion.guidance import UNCOND_MODES, GuidedNoise

BATCH, T, GUIDANCE, SCALE = 2, 700.0, 6.0, 0.8


@pytest.fixture
def setting():
    torch.manual_seed(0)
    uvit = toy_uvit()
    net = toy_face_controlnet(uvit)
    img, clip_img, text, *_ = inputs(uvit, BATCH)
    tokens = net.encode(torch.rand(BATCH, 3, 32, 32) * 2 - 1)
    return uvit, net, img, clip_img, text, torch.randn_like(text), tokens


@pytest.mark.parametrize("mode", UNCOND_MODES)
@torch.no_grad()
def test_one_batch_equals_two_passes(setting, mode: str):
    uvit, net, img, clip_img, text, uncond_text, tokens = setting
    options = {"guidance": GUIDANCE, "uncond_mode": mode, "face_scale": SCALE}
    guided = GuidedNoise(uvit, text, uncond_text, face_controlnet=net, face_tokens=tokens, **options)(img, clip_img, T)

    t, ones = torch.full((BATCH,), T), torch.ones(BATCH, dtype=torch.long)
    t_uncond = torch.full((BATCH,), 1000.0 if mode == "true_uncond" else 0.0)
    no_face = net.bind(torch.zeros_like(tokens), SCALE) if mode == "paper" else None
    c = uvit(img, clip_img, text, t, torch.zeros(BATCH), ones, control=net.bind(tokens, SCALE))
    u = uvit(img, clip_img, uncond_text, t, t_uncond, ones, control=no_face)
    for ours, conditional, unconditional in ((guided[0], c.img, u.img), (guided[1], c.clip_img, u.clip_img)):
        expected = unconditional + GUIDANCE * (conditional - unconditional)
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)
        # the release's convention: c + s (c - u) with g = 1 + s
        released = conditional + (GUIDANCE - 1) * (conditional - unconditional)
        torch.testing.assert_close(ours, released, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_the_unconditional_half_costs_no_control(setting):
    uvit, net, img, clip_img, text, uncond_text, tokens = setting
    rows = []
    net.blocks[0].register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    for mode in UNCOND_MODES:
        model = GuidedNoise(
            uvit, text, uncond_text, guidance=3, uncond_mode=mode, face_controlnet=net, face_tokens=tokens
        )
        model(img, clip_img, T)
    assert rows == [BATCH, BATCH, 2 * BATCH]


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_pass_alone(setting):
    uvit, net, img, clip_img, text, _, tokens = setting
    sizes = []
    uvit.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    out = GuidedNoise(uvit, text, face_controlnet=net, face_tokens=tokens)(img, clip_img, T)
    t, ones = torch.full((BATCH,), T), torch.ones(BATCH, dtype=torch.long)
    assert torch.equal(out[0], uvit(img, clip_img, text, t, 0 * t, ones, control=net.bind(tokens)).img)
    assert sizes[0] == BATCH


@pytest.mark.parametrize("mode", UNCOND_MODES)
@torch.no_grad()
def test_an_evaluation_without_guidance_or_face_is_that_pass_alone(setting, mode: str):
    uvit, net, img, clip_img, text, uncond_text, tokens = setting
    options = {"guidance": GUIDANCE, "uncond_mode": mode, "face_controlnet": net}
    model = GuidedNoise(uvit, text, uncond_text, face_tokens=tokens, **options)
    alone = GuidedNoise(uvit, text, face_controlnet=net, face_tokens=tokens)
    faceless = GuidedNoise(uvit, text, uncond_text, **options)
    sizes = []
    uvit.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    assert torch.equal(model(img, clip_img, T, guided=False)[0], alone(img, clip_img, T)[0])
    assert torch.equal(model(img, clip_img, T, controlled=False)[0], faceless(img, clip_img, T)[0])
    assert sizes == [BATCH, BATCH, 2 * BATCH, 2 * BATCH]
    # one face for all rows, too
    shared = GuidedNoise(uvit, text, uncond_text, face_tokens=tokens[:1], **options)
    alone = GuidedNoise(uvit, text, face_controlnet=net, face_tokens=tokens[:1])
    torch.testing.assert_close(shared(img, clip_img, T, guided=False)[0], alone(img, clip_img, T)[0])


def test_without_faces_or_at_scale_zero_there_is_no_control(setting):
    uvit, net, _, _, text, uncond_text, tokens = setting
    assert GuidedNoise(uvit, text, uncond_text, guidance=2, face_controlnet=net).control is None
    for mode in UNCOND_MODES:
        options = {"guidance": 2, "uncond_mode": mode, "face_controlnet": net, "face_tokens": tokens, "face_scale": 0}
        assert GuidedNoise(uvit, text, uncond_text, **options).control is None


def test_what_is_missing_is_named(setting):
    uvit, _, _, _, text, uncond_text, _ = setting
    with pytest.raises(ValueError, match="needs uncond_text"):
        GuidedNoise(uvit, text, guidance=2)
    with pytest.raises(ValueError, match="none"):
        GuidedNoise(uvit, text, uncond_text, uncond_mode="none")

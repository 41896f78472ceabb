"""Backbone and method as the one module that training wraps: precision of each part, and the same as before."""

import pytest
import torch
from tests.toy import CLIP_CONFIG, toy_face_controlnet, toy_unet, toy_uvit

from feedface.backbones.base import Backbone
from feedface.methods.feedface import FeedFace
from feedface.training.controlled import ControlledBackbone, InContext


def given(backbone: Backbone) -> tuple:
    """State, timesteps, prompt and features of two faces."""
    torch.manual_seed(1)
    state = {name: torch.randn(2, *shape) for name, shape in backbone.state_shapes().items()}
    text = torch.randn(2, backbone.text_tokens or 5, backbone.text_dim)
    return state, torch.tensor([20, 700]), {"text": text}, {"faces": torch.randn(2, 2, 5, 32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("with_face", [True, False])
def test_it_is_what_was_trained_before_to_the_bit(dtype: torch.dtype, with_face: bool):
    torch.manual_seed(0)
    uvit = toy_uvit()
    net = toy_face_controlnet(uvit)
    uvit.to(dtype)
    state, t, prompt, features = given(uvit)
    control = None
    if with_face:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            control = InContext(
                net.bind(uvit, net.identity(features)),
                lambda: torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32),
            )
    zeros = torch.zeros_like(t)
    expected = uvit.predict(state["img"], state["clip_img"], prompt["text"], t, zeros, zeros, control=control).img
    model = ControlledBackbone(uvit, net, {"data_type": 0})
    assert torch.equal(model(state, t, prompt, features if with_face else None)["img"], expected)
    other = ControlledBackbone(uvit, net)(state, t, prompt, features if with_face else None)["img"]
    assert not torch.equal(other, expected)  # the data type of inference


@pytest.mark.parametrize("make", [toy_uvit, toy_unet])
def test_the_backbone_is_in_low_precision_and_what_is_trained_is_not(make):
    torch.manual_seed(0)
    backbone = make().to(torch.bfloat16).requires_grad_(False)
    sites = [name for name, site in backbone.sites.items() if site.kind == "block"]
    method = FeedFace(sites, [backbone.sites[name].width for name in sites], 4, CLIP_CONFIG, with_encoder=False)
    for block in method.blocks:
        torch.nn.init.normal_(block.zero_linear.weight, std=0.1)
    model = ControlledBackbone(backbone, method)
    inside = []
    method.blocks[0].mlp.register_forward_hook(lambda module, args, out: inside.append(out.dtype))
    state, t, prompt, features = given(backbone)
    with torch.no_grad():
        frozen = model(state, t, prompt)["img"]
    out = model(state, t, prompt, features)["img"]
    assert inside == [torch.bfloat16]
    assert out.dtype == frozen.dtype == torch.bfloat16
    assert not torch.equal(out, frozen)
    out.float().square().sum().backward()
    for name, parameter in method.trained_parameters(backbone):
        assert parameter.dtype == parameter.grad.dtype == torch.float32, name
        assert parameter.grad.any(), name
    backbone.gradient_checkpointing = True
    plain = {name: parameter.grad.clone() for name, parameter in method.named_parameters()}
    method.zero_grad()
    model(state, t, prompt, features)["img"].float().square().sum().backward()
    for name, parameter in method.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name])

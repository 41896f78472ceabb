"""Compiled, quantised and laid out otherwise, a model answers what it answered before, within what is said of each."""

import shutil

import pytest
import torch
from tests.toy import toy_face_controlnet, toy_uvit
from torch import nn

from feedface.common.errors import UserError
from feedface.inference import acceleration
from feedface.inference.acceleration import (
    DynamicInt8Linear,
    Int8Linear,
    blocks,
    channels_last,
    compile_blocks,
    quantise_int8,
)
from feedface.training.controlled import ControlledBackbone

CPU = torch.device("cpu")


def toy_networks() -> ControlledBackbone:
    torch.manual_seed(0)
    uvit = toy_uvit()
    return ControlledBackbone(uvit, toy_face_controlnet(uvit), {"data_type": 0}).eval().requires_grad_(False)


def answer(networks: ControlledBackbone, batch_size: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(1)
    shapes = ((batch_size, 4, 8, 8), (batch_size, 1, 16), (batch_size, 16, 8))
    latents, clip_img, text = (torch.randn(shape, generator=random) for shape in shapes)
    faces = torch.randn(batch_size, 1, 5, 32, generator=random)
    with torch.no_grad():
        state, t = {"img": latents, "clip_img": clip_img}, torch.full((batch_size,), 500)
        return networks(state, t, {"text": text}, {"faces": faces})["img"]


def test_int8_linear_rounds_each_output_by_its_own_scale():
    linear = nn.Linear(16, 8)
    with torch.no_grad():
        linear.weight *= torch.logspace(-3, 3, 8)[:, None]
        linear.weight[3] = 0
    rounded = Int8Linear(linear)
    assert rounded.weight.dtype == torch.int8
    steps = linear.weight.abs().amax(dim=1, keepdim=True) / 127
    assert ((rounded.weight * rounded.scale - linear.weight).abs() <= 0.501 * steps).all()
    x = torch.randn(5, 16)
    expected = x @ (rounded.weight * rounded.scale).T + linear.bias
    torch.testing.assert_close(rounded(x), expected)
    assert rounded(x.half()).dtype == torch.float16
    assert torch.isfinite(Int8Linear(nn.Linear(6144, 8))(torch.full((1, 6144), 50.0).half())).all()


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_int8_weights_in_the_blocks_only(device: torch.device):
    """What a GPU gets, too, can be computed on the CPU."""
    networks = toy_networks()
    before = answer(networks)
    quantise_int8(networks, device)
    change = (answer(networks) - before).norm() / before.norm()
    assert 0 < change < 0.05  # of random networks; pictures are measured in docs/performance.md
    for block in blocks(networks):
        assert not any(isinstance(module, nn.Linear) for module in block.modules())
    outside = (networks.backbone.text_embed, networks.backbone.decoder_pred, networks.method.projector)
    assert {type(module) for module in outside} == {nn.Linear}
    stored = sum(
        value.itemsize * value.numel()
        for value in networks.backbone.mid_block.state_dict().values()
        if isinstance(value, torch.Tensor)
    )
    assert stored < 0.5 * sum(4 * value.numel() for value in toy_uvit().mid_block.parameters())


def test_int8_needs_arithmetic_for_it(monkeypatch):
    monkeypatch.setattr(acceleration, "int8_engine", lambda: "none")
    with pytest.raises(UserError, match="--int8: this PyTorch has no int8 arithmetic"):
        quantise_int8(toy_networks(), CPU)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_int8_on_a_cpu_with_inputs_in_half_precision(dtype: torch.dtype):
    linear = nn.Linear(64, 32)
    rounded, x = DynamicInt8Linear(linear), torch.randn(3, 64)
    answer = rounded(x.to(dtype))
    assert answer.dtype == dtype and rounded(x).dtype == torch.float32
    torch.testing.assert_close(answer.float(), linear(x), atol=0.05, rtol=0.05)


def test_int8_of_weights_that_are_no_numbers():
    networks = toy_networks()
    networks.backbone.mid_block.mlp.fc1.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="--int8: the model's weights hold NaN"):
        quantise_int8(networks, CPU)


@pytest.mark.slow
def test_compiled_blocks_answer_the_same_for_any_batch_size():
    networks = toy_networks()
    expected = {batch_size: answer(networks, batch_size) for batch_size in (1, 2, 3)}
    compile_blocks(networks)
    for batch_size, value in expected.items():
        torch.testing.assert_close(answer(networks, batch_size), value, atol=1e-4, rtol=1e-4)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs a C\\+\\+ compiler"):
        compile_blocks(toy_networks())


def test_channels_last():
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 3, 3))
    x = torch.randn(1, 3, 9, 9)
    before = network(x)
    channels_last(network)
    assert all(module.weight.is_contiguous(memory_format=torch.channels_last) for module in (network[0], network[2]))
    torch.testing.assert_close(network(x), before)

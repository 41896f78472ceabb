"""Few-step adapters on disk, and as a second pair of networks beside a model's own."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import make_toy_bundle

from feedface.checkpoints.bundle import add_few_step, load_bundle, read_index, save_component, write_derived_index
from feedface.checkpoints.few_step import (
    FewStep,
    adapted,
    merge_network,
    read_few_step,
    save_few_step,
)
from feedface.common.errors import UserError
from feedface.inference.model_files import load_model

MODULES = {"backbone.mid_block.attn.qkv": (32, 96), "method.blocks.1.mlp.fc1": (32, 128)}  # in, out


def some_adapter(rank: int = 3) -> FewStep:
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: (torch.randn(rank, inner, generator=generator), torch.randn(outer, rank, generator=generator))
        for name, (inner, outer) in MODULES.items()
    }
    return FewStep((1000, 600, 250), 4.0, 0.8, "true_uncond", weights)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = make_toy_bundle(tmp_path_factory.mktemp("toy"))
    save_few_step(folder.parent / "adapter", some_adapter(), {"steps": 7})
    add_few_step(folder, folder.parent / "adapter")
    return folder


def test_it_comes_back_from_its_folder_in_8_bits(tmp_path):
    wanted = some_adapter()
    save_few_step(tmp_path / "a", wanted, {"loss": 0.5})
    found = read_few_step(tmp_path / "a")
    assert (found.timesteps, found.steps, found.guidance) == ((1000, 600, 250), 3, 4.0)
    assert (found.face_scale, found.uncond) == (0.8, "true_uncond")
    assert found.weights.keys() == wanted.weights.keys()
    for name, (a, b) in found.weights.items():
        product = wanted.weights[name][1] @ wanted.weights[name][0]
        assert (b @ a - product).norm() < 0.02 * product.norm()
    stored = load_file(tmp_path / "a" / "model.safetensors")
    assert {str(value.dtype) for key, value in stored.items() if not key.endswith("scale")} == {"torch.int8"}
    save_few_step(tmp_path / "b", FewStep((1000, 600, 251), 4.0, 0.8, "true_uncond", wanted.weights))
    assert len({found.digest, read_few_step(tmp_path / "b").digest, ""}) == 3


def test_a_matrix_of_zeros_can_be_stored(tmp_path):
    a, b = torch.randn(2, 32), torch.zeros(96, 2)
    save_few_step(tmp_path, FewStep((1000,), 1.0, 1.0, "paper", {"backbone.mid_block.attn.qkv": (a, b)}))
    a, b = read_few_step(tmp_path).weights["backbone.mid_block.attn.qkv"]
    assert torch.equal(b @ a, torch.zeros(96, 32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_second_pair_has_the_adapter_and_the_first_is_left_alone(toy, dtype):
    plain, bundle = load_bundle(toy, dtype=dtype), load_bundle(toy, dtype=dtype)
    pair = dict(zip(("backbone", "method"), bundle.networks(few_step=True), strict=True))
    assert bundle.networks(few_step=True) == tuple(pair.values())  # made once
    assert bundle.networks() == (bundle.backbone, bundle.method)
    for kind, network in pair.items():
        own, before = getattr(bundle, kind).state_dict(), getattr(plain, kind).state_dict()
        assert all(torch.equal(value, own[key]) for key, value in before.items())
        for key, value in network.state_dict().items():
            if (name := f"{kind}.{key.removesuffix('.weight')}") in MODULES:
                a, b = bundle.few_step.weights[name]
                assert torch.equal(value, (before[key].float() + b @ a).to(dtype))
                assert not torch.equal(value, before[key])
            else:
                assert value.data_ptr() == own[key].data_ptr(), key  # memory for what changes only


def test_the_second_network_of_a_compiled_one_is_compiled(toy):
    uvit = load_bundle(toy, components=["backbone"]).backbone
    uvit.mid_block.compile()
    twin = adapted(some_adapter(), "backbone", uvit)
    compiled = [name for name, module in twin.named_modules() if module._compiled_call_impl is not None]
    assert compiled == ["mid_block"]


def test_an_adapter_is_not_used_with_other_weights_than_its_own(toy, tmp_path):
    """A training checkpoint points to its base's parts and has its own control; nor does `ckpt_path` keep it."""
    other = load_bundle(toy, components=["backbone", "method"])
    save_component("method", other.method, tmp_path / "face_controlnet")
    write_derived_index(tmp_path, toy, {"method": "face_controlnet"}, "trained")
    assert "few_step" in read_index(toy).components and "few_step" not in read_index(tmp_path).components
    assert "few_step" not in load_model(toy, tmp_path, torch.device("cpu"), torch.float32).components


def test_adding_keeps_the_rest_of_the_index(toy, tmp_path):
    plain = make_toy_bundle(tmp_path / "plain")
    before = json.loads((plain / "model_index.json").read_text())
    add_few_step(plain, toy / "few_step")
    after = json.loads((plain / "model_index.json").read_text())
    assert after["adapters"].pop("few_step") == "few_step"
    assert after == before
    assert read_few_step(read_index(plain).components["few_step"]).steps == 3


def test_what_is_wrong_is_said(toy, tmp_path):
    with pytest.raises(UserError, match="no few-step adapter"):
        load_bundle(make_toy_bundle(tmp_path / "plain"), components=["backbone"]).networks(few_step=True)
    uvit = load_bundle(toy, components=["backbone"]).backbone
    for name, shape, words in (
        ("backbone.mid_block.attn.query", (32, 96), "no such linear"),
        ("backbone.norm", (32, 32), "no such linear"),
        ("backbone.mid_block.attn.qkv", (64, 192), "another model"),
    ):
        weights = {name: (torch.zeros(1, shape[0]), torch.zeros(shape[1], 1))}
        with pytest.raises(UserError, match=words):
            merge_network(FewStep((1000,), 1.0, 1.0, "paper", weights), "backbone", uvit)
    method = load_bundle(toy, components=["method"]).method
    weights = {"method.projector": (torch.eye(32), torch.eye(32))}  # identities would depend on the adapter
    with pytest.raises(UserError, match="blocks only"):
        merge_network(FewStep((1000,), 1.0, 1.0, "paper", weights), "method", method)


def test_names_of_older_adapters(tmp_path):
    save_few_step(tmp_path, some_adapter())
    old = {"backbone": "uvit", "method": "face_controlnet"}
    state = load_file(tmp_path / "model.safetensors")
    renamed = {old[key.partition(".")[0]] + "." + key.partition(".")[2]: value for key, value in state.items()}
    new = read_few_step(tmp_path).weights
    save_file(renamed, tmp_path / "model.safetensors")
    weights = read_few_step(tmp_path).weights
    assert weights.keys() == MODULES.keys()
    for name, pair in weights.items():
        assert all(torch.equal(*both) for both in zip(pair, new[name], strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"timesteps": [1000, 250, 600]},
        {"timesteps": [1001, 600]},
        {"timesteps": [1000, 0]},
        {"timesteps": [1000.5]},
        {"timesteps": []},
        {"timesteps": 4},
        {"guidance": "4"},
        {"guidance": None},
        {"face_scale": -1},
        {"uncond": "none"},
        {"scale": 1},
    ],
)
def test_broken_config(toy, tmp_path, change):
    config = json.loads((toy / "few_step" / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"config.json.*{next(iter(change))}"):
        read_few_step(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone.mid_block.attn.qkv.lora_A": None}, "needs lora_A"),
        ({"backbone.mid_block.attn.qkv.lora_B": torch.zeros(96, 2)}, "needs lora_A"),
        ({"backbone.mid_block.attn.qkv.lora_scale": torch.zeros(4)}, "lora_scale"),
        ({"backbone.mid_block.attn.qkv.bias": torch.zeros(96)}, "bias is unknown"),
        ({"backbone.mid_block.attn.qkv.lora_scale": torch.tensor([1, float("nan"), 1])}, "holds NaN or infinity"),
        ({f"vae.decoder.conv_in.lora_{end}": torch.eye(32) for end in "AB"}, "backbone and method only"),
    ],
)
def test_broken_weights(toy, tmp_path, change, words):
    (tmp_path / "config.json").write_bytes((toy / "few_step" / "config.json").read_bytes())
    state = load_file(toy / "few_step" / "model.safetensors") | change
    save_file({key: value for key, value in state.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=words):
        read_few_step(tmp_path)

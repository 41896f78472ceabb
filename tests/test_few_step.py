"""Few-step adapters on disk, and as a second pair of networks beside a model's own."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy import make_toy_bundle, toy_unet, toy_uvit

from feedface.checkpoints.bundle import add_few_step, load_bundle, read_index, save_component, write_derived_index
from feedface.checkpoints.few_step import (
    FewStep,
    adapted,
    merge_network,
    read_few_step,
    save_few_step,
)
from feedface.checkpoints.stable_diffusion import merge_lora
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


def test_it_comes_back_from_its_folder_in_half_precision(tmp_path):
    wanted = some_adapter()
    save_few_step(tmp_path / "a", wanted, {"loss": 0.5})
    found = read_few_step(tmp_path / "a")
    assert (found.timesteps, found.steps, found.guidance) == ((1000, 600, 250), 3, 4.0)
    assert (found.face_scale, found.uncond) == (0.8, "true_uncond")
    assert found.weights.keys() == wanted.weights.keys()
    for name, pair in found.weights.items():
        assert all(
            torch.equal(*both) for both in zip(pair, (x.half().float() for x in wanted.weights[name]), strict=True)
        )
    pag = {"pag_scale": 2.0, "pag_interval": (500.0, 900.0)}
    save_few_step(tmp_path / "b", FewStep((1000, 600, 251), 4.0, 0.8, "true_uncond", wanted.weights, **pag))
    assert {key: getattr(read_few_step(tmp_path / "b"), key) for key in pag} == pag and found.pag_scale == 0
    assert len({found.digest, read_few_step(tmp_path / "b").digest, ""}) == 3


def test_alpha_counts(toy, tmp_path):
    shutil.copytree(toy / "few_step", tmp_path / "a")
    file = tmp_path / "a" / "method" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 6}))  # of rank 3
    name, twice = "method.blocks.1.mlp.fc1", read_few_step(tmp_path / "a")
    once = read_few_step(toy / "few_step")
    assert torch.equal(twice.weights[name][0], once.weights[name][0])
    assert torch.equal(twice.weights[name][1], 2 * once.weights[name][1])
    assert twice.digest != once.digest


def test_peft_puts_it_onto_the_same_network(tmp_path):
    """What it then answers is what the merged network does."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    layers = ("mid_block.attn.qkv", "in_blocks.0.attn.qkv")
    weights = {f"backbone.{layer}": (torch.randn(3, 32), torch.randn(96, 3) / 9) for layer in layers}
    save_few_step(tmp_path, FewStep((1000,), 1.0, 1.0, "paper", weights))
    folder, network = tmp_path / "backbone", toy_uvit()
    plain, merged = copy.deepcopy(network), adapted(read_few_step(tmp_path), "backbone", network)
    inject_adapter_in_model(LoraConfig.from_pretrained(folder), network)
    state = load_file(folder / "adapter_model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    loaded = set_peft_model_state_dict(network, state)
    assert not loaded.unexpected_keys and not [key for key in loaded.missing_keys if "lora_" in key]
    x = torch.randn(2, 32)
    for layer in layers:
        expected = merged.get_submodule(layer)(x)
        torch.testing.assert_close(network.get_submodule(layer)(x), expected, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(plain.get_submodule(layer)(x), expected, atol=1e-1)


def test_diffusers_puts_it_onto_a_stable_diffusion(tmp_path):
    unet = toy_unet()
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    out, inner = unet.get_submodule(layer).weight.shape
    pair = (torch.randn(2, inner), torch.randn(out, 2))
    save_few_step(tmp_path, FewStep((1000,), 1.0, 1.0, "empty_token", {f"backbone.{layer}": pair}))
    merged = adapted(read_few_step(tmp_path), "backbone", unet)
    own = unet.get_submodule(layer).weight.clone()
    merge_lora(tmp_path / "backbone" / "adapter_model.safetensors", unet)
    expected = merged.get_submodule(layer).weight
    assert not torch.allclose(own, expected, atol=1e-1)
    torch.testing.assert_close(unet.get_submodule(layer).weight, expected, atol=1e-5, rtol=1e-5)


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


def older_adapter(folder, networks=("uvit", "face_controlnet")) -> dict[str, torch.Tensor]:
    """Fill `folder` with one file of 8 bits; what is in it."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for network, (name, (inner, outer)) in zip(networks, MODULES.items(), strict=True):
        key = f"{network}.{name.partition('.')[2]}"
        for end, shape in {"lora_A": (3, inner), "lora_B": (outer, 3)}.items():
            state[f"{key}.{end}"] = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8)
        state[f"{key}.lora_scale"] = torch.rand(3, generator=generator)
    save_few_step(folder, some_adapter())
    for network in ("backbone", "method"):
        shutil.rmtree(folder / network)
    save_file(state, folder / "model.safetensors")
    return state


@pytest.mark.parametrize("networks", [("uvit", "face_controlnet"), ("backbone", "method")])
def test_older_adapters(toy, tmp_path, networks):
    state = older_adapter(tmp_path / "old", networks)
    found = read_few_step(tmp_path / "old")
    assert found.weights.keys() == MODULES.keys() and len(found.digest) == 16
    for network, name in zip(networks, MODULES, strict=True):
        key, (a, b) = f"{network}.{name.partition('.')[2]}", found.weights[name]
        assert torch.equal(a, state[f"{key}.lora_A"].float())
        assert torch.equal(b, state[f"{key}.lora_B"].float() * state[f"{key}.lora_scale"])
    model = make_toy_bundle(tmp_path / "model")
    add_few_step(model, tmp_path / "old")
    assert load_bundle(model, components=["backbone"]).few_step.digest == found.digest
    add_few_step(model, toy / "few_step")  # in its place, whole
    assert not (model / "few_step" / "model.safetensors").exists()


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
        {"pag_scale": -1},
        {"pag_interval": [900, 500]},
        {"changes": ["vae"]},
        {"changes": 3},
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
        ({"mid_block.attn.qkv.lora_A.weight": None}, "needs lora_A"),
        ({"mid_block.attn.qkv.lora_B.weight": torch.zeros(96, 2)}, "needs lora_A"),
        ({f"mid_block.attn.qkv.lora_{end}.weight": torch.eye(32) for end in "AB"}, "of rank 32, but .* says 3"),
        ({"mid_block.attn.qkv.lora_B.weight": torch.full((96, 3), float("nan"))}, "holds NaN or infinity"),
        ({"mid_block.attn.qkv.bias": torch.zeros(96)}, "bias is unknown"),
        ({f"mid_block.attn.qkv.lora_{end}.weight": None for end in "AB"}, "holds no weights"),
    ],
)
def test_broken_weights(toy, tmp_path, change, words):
    shutil.copytree(toy / "few_step", tmp_path / "a")
    file = tmp_path / "a" / "backbone" / "adapter_model.safetensors"
    state = load_file(file) | change
    save_file({key: value for key, value in state.items() if value is not None}, file)
    with pytest.raises(UserError, match=rf"backbone/adapter_model\.safetensors: .*{words}"):
        read_few_step(tmp_path / "a")


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"r": 0},
        {"r": None},
        {"lora_alpha": "3"},
        {"lora_alpha": float("nan")},
        {"rank_pattern": {"mid_block": 4}},
        {"alpha_pattern": {"mid_block": 3}},
        {"use_dora": True},
    ],
)
def test_broken_description(toy, tmp_path, change):
    shutil.copytree(toy / "few_step", tmp_path / "a")
    file = tmp_path / "a" / "backbone" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(UserError, match=r"backbone/adapter_config\.json") as caught:
        read_few_step(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_parts_that_are_not_there(toy, tmp_path):
    shutil.copytree(toy / "few_step", tmp_path / "a")
    (tmp_path / "a" / "method" / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"method/adapter_model\.safetensors"):
        read_few_step(tmp_path / "a")
    shutil.rmtree(tmp_path / "a" / "method")  # and is no adapter of the other network alone
    with pytest.raises(UserError, match=r"method/adapter_config\.json: no such file"):
        read_few_step(tmp_path / "a")
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    assert config["changes"] == ["backbone", "method"]
    (tmp_path / "a" / "config.json").write_text(json.dumps({**config, "changes": []}))
    with pytest.raises(UserError, match="a: holds no weights; they are in folders backbone and method"):
        read_few_step(tmp_path / "a")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"uvit.mid_block.attn.qkv.lora_A": None}, "needs lora_A"),
        ({"uvit.mid_block.attn.qkv.lora_B": torch.zeros(96, 2)}, "needs lora_A"),
        ({"uvit.mid_block.attn.qkv.lora_scale": torch.zeros(4)}, "lora_scale"),
        ({"uvit.norm.lora_scale": torch.zeros(4)}, "lora_scale"),
        ({"uvit.mid_block.attn.qkv.bias": torch.zeros(96)}, "bias is unknown"),
        ({"uvit.mid_block.attn.qkv.lora_scale": torch.tensor([1, float("nan"), 1])}, "holds NaN or infinity"),
        ({f"vae.decoder.conv_in.lora_{end}": torch.eye(32) for end in "AB"}, "backbone and method only"),
    ],
)
def test_broken_weights_of_older_adapters(tmp_path, change, words):
    state = older_adapter(tmp_path) | change
    save_file({key: value for key, value in state.items() if value is not None}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=words):
        read_few_step(tmp_path)


def test_an_adapter_is_added_to_its_own_model_only(toy, tmp_path):
    """And the model keeps what it had."""
    from tests.toy import make_toy_bundle

    other = make_toy_bundle(tmp_path / "other")
    save_few_step(tmp_path / "wide", FewStep((1000,), 1.0, 1.0, "true_uncond", {
        "backbone.mid_block.attn.proj": (torch.ones(2, 64), torch.ones(64, 2)),
    }))  # fmt: skip
    before = {path: path.read_bytes() for path in other.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="belongs to another model"):
        add_few_step(other, tmp_path / "wide")
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    with pytest.raises(UserError, match="folder"):
        add_few_step(tmp_path / "folder", toy / "few_step")
    assert {path: path.read_bytes() for path in other.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "folder" / "few_step").exists()

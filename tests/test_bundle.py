"""Bundles: written and read back, in other formats and from other folders; what is wrong with one is said in a line."""

import json
import os
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from tests.toy import FOLDERS, make_toy_bundle, toy_face_controlnet
from torch import nn

from feedface.backbones.uvit import UViT
from feedface.checkpoints import storage
from feedface.checkpoints.bundle import (
    NETWORKS,
    load_bundle,
    read_index,
    save_component,
    write_derived_index,
    write_index,
)
from feedface.checkpoints.storage import empty
from feedface.common.errors import UserError
from feedface.encoders import LatentCodec, load_tokenizer, preprocess_face, resize_and_crop, to_tensor


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def folder(shared: Path, tmp_path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(shared, tmp_path / "toy"))


def test_all_parts_load_frozen_in_the_wanted_dtype(shared: Path):
    for dtype in (torch.float32, torch.bfloat16):
        bundle = load_bundle(shared, dtype=dtype)
        for kind in NETWORKS:
            module = getattr(bundle, kind)
            assert not module.training
            assert {parameter.dtype for parameter in module.parameters()} == {dtype}
            assert not any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))
            assert not any(parameter.requires_grad for parameter in module.parameters())
    assert (bundle.name, bundle.image_size, bundle.faces_root) == ("toy", 64, None)
    assert bundle.defaults == {"steps": 3, "guidance": 2.0, "face_scale": 1.0, "uncond": "true_uncond"}


def test_weights_come_back(shared: Path, tmp_path):
    net = toy_face_controlnet()
    save_component("method", net, tmp_path / "face_controlnet", dtype=None)
    write_derived_index(tmp_path, shared, own={"method": "face_controlnet"}, name="trained")
    bundle = load_bundle(tmp_path)
    assert bundle.name == "trained"
    for name, value in net.state_dict().items():
        assert torch.equal(bundle.method.state_dict()[name], value)
    base = load_bundle(shared, components=["backbone"])
    assert base.vae is None
    for name, value in base.backbone.state_dict().items():
        assert torch.equal(bundle.backbone.state_dict()[name], value)
        assert torch.equal(value, value.half().float())  # stored in half


def test_only_what_was_asked_for_is_needed(folder: Path):
    (folder / "face_controlnet" / "model.safetensors").unlink()
    assert load_bundle(folder, components=["backbone", "text_encoder"]).method is None
    with pytest.raises(UserError, match=r"face_controlnet/model.safetensors: no such file"):
        load_bundle(folder)


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in {**content, **changes}.items() if value is not None}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "diffusers"}, "format: must be 'feedface'"),
        ({"version": 3}, "version: must be at most 2, not 3"),
        ({"version": True}, "version: must be a whole number, not True"),
        ({"image_size": "64"}, "image_size: must be a whole number, not '64'"),
        ({"parts": None}, "parts: missing"),
        ({"parts": {"unet": "unet"}}, "parts: unknown key 'unet'; known are 'vae', 'text_encoder', 'tokenizer' or"),
        ({"parts": {"vae": "v" * 5000}}, "parts.vae: is longer than a file's name can be"),
        ({"parts": {"vae": "vae"}}, 'names no "text_encoder", which is needed'),
        ({"backbone": {"kind": "uvit", "folder": "nowhere"}}, "nowhere: no such folder"),
        ({"backbone": {"kind": "uvit"}}, "backbone.folder: missing"),
        ({"backbone": {"kind": "transformer", "folder": "uvit"}}, "'transformer' is no backbone"),
        ({"backbone": {"kind": "unet", "folder": "uvit"}}, "uvit: is a uvit, but .*model_index.json says 'unet'"),
        ({"method": {"kind": "flash", "folder": "face_controlnet"}}, "'flash' is no method"),
        ({"parts": {"vae": "/models/vae"}}, 'parts.vae: must be relative to this file, such as "vae"'),
        ({"parts": {"vae": "C:\\vae"}}, "parts.vae: must be relative"),
        ({"parts": {"vae": ""}}, "parts.vae: must be a string with something in it"),
        ({"version": 1}, "components: missing"),
        ({"version": 1, "components": {"unet": "unet"}}, "'unet'"),
        ({"version": 1, "components": {"uvit": "uvit"}}, 'names no "vae", which is needed'),
        ({"version": 1, "components": {"uvit": "nowhere"}}, "nowhere: no such folder"),
        ({"defaults": {"stpes": 3}}, "'stpes'"),
        ({"defaults": {"steps": "many"}}, "'many'"),
        ({"defaults": {"uncond": "none"}}, "'none'"),
        ({"defaults": {"preset": "best"}}, "'best'"),
    ],
)
def test_a_wrong_index_is_named(folder: Path, changes: dict, message: str):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(UserError, match=message) as error:
        load_bundle(folder)
    assert str(folder) in str(error.value)


def test_an_extra_that_is_named_and_not_there(folder: Path):
    edit(folder / "model_index.json", extras={"faces": "nowhere"})
    bundle = load_bundle(folder)
    with pytest.raises(UserError, match=r"nowhere: no such folder, but .*model_index.json names it as its faces"):
        _ = bundle.faces_root
    assert bundle.extra("inspector") is None


def test_an_index_that_is_no_json(folder: Path, tmp_path):
    (folder / "model_index.json").write_text('{"format": "feedface",\n oops}')
    with pytest.raises(UserError, match=r"model_index.json:2: not valid JSON: "):
        read_index(folder)
    with pytest.raises(UserError, match=r"no model_index.json in it"):
        read_index(tmp_path)
    with pytest.raises(UserError, match=r"no such model folder"):
        read_index(tmp_path / "none")


def test_wrong_parts_are_named(folder: Path):
    weights = folder / "uvit" / "model.safetensors"
    good = weights.read_bytes()
    for broken in (b"", good[:1000], b"x" * 100):
        weights.write_bytes(broken)
        with pytest.raises(UserError, match=r"uvit/model.safetensors: not a safetensors file"):
            load_bundle(folder, components=["backbone"])
    weights.write_bytes(good)
    edit(folder / "uvit" / "config.json", depth=4)
    with pytest.raises(
        UserError, match=r"uvit/model.safetensors: \d+ missing weights for UViT, the first is in_blocks.1"
    ):
        load_bundle(folder, components=["backbone"])
    edit(folder / "uvit" / "config.json", depth=2, embed_dim=64)
    with pytest.raises(UserError, match=r"uvit/model.safetensors: \S+ has shape \[.*32.*\], needed is \[.*64.*\]"):
        load_bundle(folder, components=["backbone"])
    edit(folder / "uvit" / "config.json", layers=2)
    with pytest.raises(UserError, match=r"uvit/config.json:\d+: does not describe a UViT: .*layers"):
        load_bundle(folder, components=["backbone"])


def test_large_files_are_read_in_pieces(shared: Path, tmp_path, monkeypatch):
    file = Path(shutil.copy(shared / "uvit" / "model.safetensors", tmp_path))
    whole = storage.read_safetensors(file, "cpu", torch.float32)
    monkeypatch.setattr(storage, "MAPPED_BYTES", 10_000)
    pieces = storage.read_safetensors(file, "cpu", torch.float32)
    assert whole.keys() == pieces.keys()
    assert all(torch.equal(value, pieces[key]) for key, value in whole.items())
    identities = iter(range(100))  # as if another file took its place after each piece
    monkeypatch.setattr(storage, "_identity", lambda _: next(identities))
    with pytest.raises(UserError, match=r"model.safetensors: was replaced while it was read"):
        storage.read_safetensors(file, "cpu", None)


def test_meta_tells_shapes_without_reading(shared: Path):
    bundle = load_bundle(shared, "meta", None, ["backbone", "method", "vae", "text_encoder"])
    assert all(value.is_meta for value in (*bundle.backbone.parameters(), *bundle.vae.parameters()))
    assert bundle.backbone.mid_block.mlp.fc1.weight.dtype == torch.float16
    assert bundle.size_multiple == 16


def test_broken_library_parts_are_named(folder: Path):
    from safetensors.torch import load_file, save_file

    for part, file in (("vae", "diffusion_pytorch_model.safetensors"), ("text_encoder", "model.safetensors")):
        state = load_file(folder / part / file)
        lost = sorted(state)[0]
        save_file({key: value for key, value in state.items() if key != lost}, folder / part / file, {"format": "pt"})
        with pytest.raises(UserError, match=rf"{part}: 1 weights missing"):
            load_bundle(folder, components=[part])
        (folder / part / file).unlink()
        with pytest.raises(UserError, match=rf"{part}: cannot be read"):
            load_bundle(folder, components=[part])
        # a pickle in its place is not even looked at
        torch.save(state, folder / part / file.replace("safetensors", "bin"))
        with pytest.raises(UserError, match=rf"{part}: cannot be read"):
            load_bundle(folder, components=[part])


def test_parts_that_do_not_belong_together_are_named(folder: Path, tmp_path):
    net = toy_face_controlnet()
    net.config["sites"] = ["in_blocks.0", "out_blocks.7"]
    save_component("method", net, folder / "face_controlnet")
    with pytest.raises(UserError, match=r"another backbone: the uvit has no site out_blocks.7"):
        load_bundle(folder)
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"].pop("A")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="no CLIP tokenizer"):
        load_bundle(folder, components=["text_encoder"])
    (folder / "tokenizer" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="does not belong to a text encoder"):
        load_bundle(folder, components=["text_encoder"])
    with pytest.raises(UserError, match="'layers'"):
        write_index(tmp_path, name="x", image_size=64, components={}, defaults={"layers": 2})


# ------------------------------------------------------------------------------------------------------ version 1


def as_version_1(folder: Path, vae: str = "vae") -> Path:
    """The toy's folder as models were written before: no kinds, no groups, one width of the method."""
    for folder_name in FOLDERS.values():
        edit(folder / folder_name / "config.json", kind=None)
    edit(folder / FOLDERS["method"] / "config.json", widths=None, context_dim=None, self_attention=None, embed_dim=32)
    for part, folder_name in FOLDERS.items():
        assert "embed_dim" in json.loads((folder / folder_name / "config.json").read_text()), part
    names = {"uvit": "uvit", "face_controlnet": "face_controlnet", "vae": vae}
    names |= {name: name for name in ("text_encoder", "tokenizer", "image_encoder")}
    index = {"format": "feedface", "version": 1, "name": "old", "image_size": 64, "components": names}
    (folder / "model_index.json").write_text(json.dumps({**index, "defaults": {"guidance": 3.0}}))
    return folder


def test_version_1_is_the_same_model(shared: Path, folder: Path):
    """Also with an absolute folder, which it might have."""
    old, new = load_bundle(as_version_1(folder, vae=str(shared / "vae"))), load_bundle(shared)
    assert (old.name, old.kinds) == ("old", {"backbone": "uvit", "method": "feedface"})
    assert old.defaults == {"guidance": 3.0, "face_scale": 0.8, "uncond": "true_uncond"}
    for name in NETWORKS:
        ours, theirs = getattr(old, name).state_dict(), getattr(new, name).state_dict()
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), name
    assert old.method.config == new.method.config
    assert old.size_multiple == read_index(folder).size_multiple == 16


def test_what_is_made_of_version_1_is_version_2(folder: Path, tmp_path):
    net = toy_face_controlnet()
    save_component("method", net, tmp_path / "derived" / "method")
    write_derived_index(tmp_path / "derived", as_version_1(folder), {"method": "method"}, "new")
    index = json.loads((tmp_path / "derived" / "model_index.json").read_text())
    assert index["version"] == 2 and index["backbone"] == {"kind": "uvit", "folder": "../toy/uvit"}
    assert index["method"] == {"kind": "feedface", "folder": "method"}
    assert index["parts"]["vae"] == "../toy/vae" and index["adapters"] == index["extras"] == {}
    assert json.loads((tmp_path / "derived" / "method" / "config.json").read_text())["kind"] == "feedface"
    load_bundle(tmp_path / "derived")
    shutil.move(folder / "vae", folder / "elsewhere")
    with pytest.raises(
        UserError, match=r"derived/../toy/vae: no such folder, but .*model_index.json names it as its vae"
    ):
        load_bundle(tmp_path / "derived")


@pytest.mark.parametrize(("kind", "words"), [("flash", "config.json: 'flash' is no method"), (5, '"kind" must be')])
def test_a_folder_of_an_unknown_kind(folder: Path, kind: object, words: str):
    edit(folder / "face_controlnet" / "config.json", kind=kind)
    with pytest.raises(UserError, match=words):
        load_bundle(folder, components=["method"])


def test_an_unconditional_mode_that_the_backbone_has_not(folder: Path, monkeypatch):
    monkeypatch.setattr(UViT, "uncond_modes", ("empty_token",))
    assert read_index(folder).defaults["uncond"] == "empty_token"
    edit(folder / "model_index.json", defaults={"uncond": "paper"})
    with pytest.raises(UserError, match=r"defaults.uncond: this backbone has empty_token, not 'paper'"):
        read_index(folder)


# ------------------------------------------------------------------------------------------------------- encoders


def test_text(shared: Path):
    encoder = load_bundle(shared, components=["text_encoder"]).text_encoder
    assert encoder.encode(["a man", "a man with a hat" * 1000, "", "😀\n/.."]).shape == (4, 16, 8)
    assert (encoder.num_tokens, encoder.text_dim) == (16, 8)
    ids = encoder.tokenize(["A  man"])[0].tolist()
    assert ids == encoder.tokenize(["a man"])[0].tolist()
    assert ids[0] == encoder.tokenizer.bos_token_id
    assert ids[-1] == encoder.tokenizer.eos_token_id
    together = encoder.encode(["a man", "a hat"])
    torch.testing.assert_close(together[1:], encoder.encode(["a hat"]), atol=1e-5, rtol=1e-5)


def test_image_encoder_takes_pictures_and_tensors(shared: Path):
    encoder = load_bundle(shared, components=["image_encoder"]).image_encoder
    picture = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
    embedding = encoder.encode([picture])
    assert embedding.shape == (1, 1, 16)
    assert torch.equal(embedding, encoder.encode(to_tensor(picture)[None]))
    grey = torch.full((1, 3, 32, 32), 0.2)  # CLIP's own mean and deviation, of values in [0,1]
    mean, deviation = (torch.tensor(x)[:, None, None] for x in ([0.481, 0.458, 0.408], [0.269, 0.261, 0.276]))
    expected = encoder.clip(pixel_values=((0.6 - mean) / deviation).expand(1, 3, 32, 32)).image_embeds[:, None]
    torch.testing.assert_close(encoder.encode(grey), expected, atol=1e-2, rtol=1e-2)


def test_resize_and_crop():
    picture = np.zeros((40, 80, 3), dtype=np.uint8)
    picture[:, 20:60] = (255, 0, 51)  # the centre square
    face = preprocess_face(picture, 20)
    assert face.shape == (3, 20, 20)
    centre = face[:, 5:15, 5:15]
    torch.testing.assert_close(centre, torch.tensor([1.0, -1.0, -0.6])[:, None, None].expand_as(centre))
    same = torch.rand(1, 3, 20, 20)
    assert torch.equal(resize_and_crop(same, 20), same)


def test_latent_codec(shared: Path):
    codec = load_bundle(shared, components=["vae"]).vae
    images = torch.rand(2, 3, 64, 32) * 2 - 1
    mode = codec.encode(images, sample=False)
    assert mode.shape == (2, 4, 8, 4)
    assert codec.factor == 8
    samples = [codec.encode(images, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(samples[0], samples[1])
    assert not torch.equal(samples[0], samples[2])
    decoded = codec.decode(100 * mode)
    assert decoded.shape == images.shape
    assert decoded.abs().max() <= 1
    codec.vae.register_to_config(scaling_factor=0.5)
    torch.testing.assert_close(codec.encode(images, sample=False), mode / 2)


def test_latent_codec_with_stacked_pixels():
    from diffusers import AutoencoderKL

    blocks = {"block_out_channels": [8], "norm_num_groups": 4}
    codec = LatentCodec(AutoencoderKL(in_channels=48, out_channels=48, **blocks))
    assert codec.factor == 4
    latents = codec.encode(torch.rand(1, 3, 32, 16))
    assert latents.shape == (1, 4, 8, 4)
    assert codec.decode(latents).shape == (1, 3, 32, 16)
    with pytest.raises(ValueError, match="3·f²"):
        LatentCodec(AutoencoderKL(in_channels=4, out_channels=4, **blocks))


def test_tokenizer_of_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match="no CLIP tokenizer"):
        load_tokenizer(tmp_path)


def test_a_saved_autoencoder_does_not_say_where_it_was_loaded_from(shared: Path, tmp_path):
    vae = load_bundle(shared, components=["vae"]).vae
    save_component("vae", vae, tmp_path / "vae")
    assert str(shared) not in (tmp_path / "vae" / "config.json").read_text()


# ------------------------------------------------------------------------------------------- folders that lie


BILLION = 1_000_000_000


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("uvit", {"depth": BILLION}, r"does not describe a UViT: depth: must be at most"),
        ("uvit", {"embed_dim": BILLION}, r"embed_dim: must be at most"),
        ("uvit", {"embed_dim": 65_536, "num_heads": 4}, r"model.safetensors: \S+ has shape .*65536"),
        ("uvit", {"img_size": [16_000, 16_000]}, r"pos_embed has shape"),
        ("uvit", {"img_size": [8, 8, 8]}, r"img_size: cannot be"),
        ("uvit", {"num_heads": 0}, r"num_heads: must be at least 1"),
        ("uvit", {"num_heads": 5}, r"does not describe a UViT: embed_dim 32 is not divisible"),
        (
            "face_controlnet",
            {"clip_config": {"num_hidden_layers": BILLION}},
            r"clip_config.num_hidden_layers: must be at",
        ),
        ("face_controlnet", {"clip_config": {"hidden_size": "32"}}, r"clip_config.hidden_size: must be a whole number"),
        ("face_controlnet", {"clip_config": []}, r"clip_config: must be an object"),
        ("face_controlnet", {"clip_config": {"attn_implementation": "a/b"}}, r"clip_config: unknown key"),
        ("face_controlnet", {"sites": ["a"] * 5000}, r"sites: "),
        ("face_controlnet", {"with_encoder": False}, r"unknown key 'with_encoder'"),
        ("vae", {"scaling_factor": "1"}, r"does not describe a AutoencoderKL: scaling_factor: must be a number"),
        ("vae", {"scaling_factor": 0}, r"scaling_factor: must be above 0"),
        ("vae", {"block_out_channels": [BILLION] * 4}, r"block_out_channels\[0\]: must be at most"),
        ("vae", {"block_out_channels": [8192] * 4}, r"describes \d+ weights, but \d+ are there"),
        ("vae", {"layers_per_block": BILLION}, r"layers_per_block: must be at most"),
        ("vae", {"latent_channels": True}, r"latent_channels: must be a whole number"),
        ("text_encoder", {"num_hidden_layers": BILLION}, r"num_hidden_layers: must be at most"),
        ("text_encoder", {"hidden_size": 8192}, r"describes \d+ weights, but \d+ are there"),
        ("text_encoder", {"eos_token_id": True}, r"eos_token_id: must be a whole number"),
        ("text_encoder", {"attn_implementation": "nobody/kernel"}, r"attn_implementation: must be 'eager' or 'sdpa'"),
        ("image_encoder", {"image_size": BILLION}, r"image_size: must be at most"),
        ("tokenizer/tokenizer_config.json", {"model_max_length": []}, r"model_max_length: cannot be"),
        ("tokenizer/tokenizer_config.json", {"pad_token": 5}, r"pad_token: cannot be 5"),
        ("tokenizer/tokenizer.json", {"model": 5}, r"no CLIP tokenizer that can be read"),
        ("model_index.json", {"image_size": BILLION}, r"image_size: must be at most"),
        ("model_index.json", {"name": 5}, r"name: must be a string"),
        ("model_index.json", {"defaults": {"guidance": 1e9}}, r"defaults.guidance: must be at most 50"),
        ("model_index.json", {"defaults": []}, r"defaults: must be an object"),
        (
            "model_index.json",
            {"defaults": {"pag_interval": [500, 400]}},
            r"defaults.pag_interval: must be two timesteps",
        ),
        ("model_index.json", {"defaults": {"pag_interval": [0, 2000]}}, r"defaults.pag_interval\[1\]: must be at most"),
    ],
)
def test_sizes_and_types_are_checked_before_memory_is_taken(folder: Path, file: str, changes: dict, message: str):
    edit(folder / (file if file.endswith(".json") else f"{file}/config.json"), **changes)
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=message) as caught:
        load_bundle(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - begin < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10  # KiB


@pytest.mark.parametrize("file", sorted({"model_index.json", "uvit/config.json", "uvit/model.safetensors",
    "vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
    "text_encoder/model.safetensors", "text_encoder/prefix.safetensors", "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json", "text_encoder/adapter_config.json"}))  # fmt: skip
def test_a_pipe_in_the_place_of_any_file_is_not_waited_for(folder: Path, file: str):
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(UserError, match=r"not a regular file|no model_index.json"):
        load_bundle(folder)


def test_whole_numbers_in_the_place_of_weights(folder: Path):
    from safetensors.torch import load_file, save_file

    file = folder / "uvit" / "model.safetensors"
    state = load_file(file)
    state["norm.weight"] = state["norm.weight"].to(torch.int64)
    save_file(state, file)
    with pytest.raises(UserError, match=r"norm.weight is of torch.int64"):
        load_bundle(folder, components=["backbone"])


def test_tokens_beyond_the_vocabulary(folder: Path):
    file = folder / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    tokenizer["model"]["vocab"]["A"] = 100_000
    file.write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match=r"the last has number 100000\) does not belong"):
        load_bundle(folder, components=["text_encoder"])


def test_a_network_made_without_memory_in_one_thread_leaves_those_of_others_alone():
    inside, go = Event(), Event()

    class Slow(nn.Linear):
        def __init__(self):
            inside.set()
            assert go.wait(60)
            super().__init__(2, 3)
            self.register_buffer("places", torch.arange(3))

    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(empty, Slow, {}, "config.json")
        assert inside.wait(60)
        plain, other = nn.Linear(2, 3), empty(nn.Linear, {"in_features": 2, "out_features": 3}, "config.json")
        go.set()
        made = making.result()
    assert made.weight.is_meta and made.weight.requires_grad and not made.places.is_meta
    assert other.weight.is_meta and not plain.weight.is_meta
    assert not nn.Linear(2, 3).weight.is_meta

"""The authors' files: every name and shape of the release at full size, clear refusals, and conversion."""

import os
import pickle
import random
import re
import sys
import time
import zipfile

import pytest
import torch
from tests import golden
from tests.toy import CLIP_CONFIG, face_tokens, save_toy_clips, toy_uvit

from feedface.checkpoints import official
from feedface.checkpoints.__main__ import main
from feedface.checkpoints.bundle import NETWORKS, load_bundle, read_index
from feedface.checkpoints.release import FILES, Architecture, convert, load_release
from feedface.common.errors import UserError, run_cli
from feedface.inference.low_memory import LowMemoryBundle
from feedface.methods.feedface import FeedFace

LOADERS = {
    "backbone": official.load_uvit,
    "method": official.load_face_controlnet,
    "vae": official.load_vae,
    "text_encoder": official.load_text_prefix,
}


def full_size(kind: str) -> dict[str, torch.Tensor]:
    """The released file's names and shapes, without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in golden.shapes()[FILES[kind]].items()}


@pytest.mark.parametrize(
    ("kind", "millions"), [("backbone", 952.5), ("method", 782.6), ("vae", 83.7), ("text_encoder", 0.05)]
)
def test_released_names_and_shapes_at_full_size(kind: str, millions: float):
    module = LOADERS[kind](full_size(kind))
    assert sum(value.numel() for value in module.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    if kind == "backbone":
        assert set(module.state_dict()) == set(full_size("backbone"))
        assert set(official.OFFICIAL_SITES) < set(module.block_names)


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("backbone", "out_blocks.3.skip_linear.weight"),
        ("method", "blocks.13.blocks.0.attn2.to_out.0.bias"),
        ("method", "preprocess_module.clip_model.vision_model.pre_layrnorm.weight"),
        ("vae", "decoder.conv_in.weight"),
        ("vae", "encoder.mid.attn_1.q.weight"),
        ("text_encoder", "module.encode_prefix.weight"),
    ],
)
def test_missing_extra_and_misshapen_keys_are_named(kind: str, key: str):
    load, state = LOADERS[kind], full_size(kind)
    their_key = key.removeprefix("module.")
    misshapen = {**state, key: torch.empty(*[3] * state[key].dim(), device="meta")}
    with pytest.raises(UserError, match=f"{their_key} has shape .*needed is"):
        load(misshapen)
    with pytest.raises(UserError, match=r"unknown 1 weights, the first is stray.weight"):
        load({**state, "stray.weight": torch.empty(1, device="meta")})
    del state[key]
    with pytest.raises(UserError, match="lacks 1 weights, the first is .*" + ("" if kind == "vae" else their_key)):
        load(state)


def test_a_state_dict_saved_from_data_parallel():
    state = {f"module.{key}": value for key, value in full_size("backbone").items()}
    assert official.load_uvit(state).embed_dim == 1536


class Payload:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_broken_files_are_refused(tmp_path, capsys):
    path = tmp_path / "uvit_v1.pth"
    with pytest.raises(UserError, match=r"uvit_v1.pth: no such file.*huggingface"):
        official.load_uvit(path)
    for content in (b"", b"not a checkpoint", b"PK\x03\x04 a cut archive"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"uvit_v1.pth: "):
            official.load_uvit(path)
    torch.save({"pos_embed": torch.zeros(1), "payload": Payload()}, path)
    with pytest.raises(UserError, match="more than tensors"):
        official.load_uvit(path)
    path.write_bytes(pickle.dumps({"payload": Payload()}, protocol=2))
    with pytest.raises(UserError, match=r"uvit_v1.pth: "):
        official.load_uvit(path)
    assert "must not run" not in capsys.readouterr().out
    torch.save([torch.zeros(1)], path)
    with pytest.raises(UserError, match="not a state dict"):
        official.load_uvit(path)
    torch.save({"epoch": torch.zeros(1)}, path, _use_new_zipfile_serialization=False)  # the old format is read
    with pytest.raises(UserError, match="lacks"):
        official.load_uvit(path)


# --------------------------------------------------------------------------------------------------- conversion

VAE = {"block_out_channels": [8] * 4, "norm_num_groups": 4, "layers_per_block": 2}
SMALL = Architecture(
    image_size=64,
    backbone=toy_uvit().config,
    method={"sites": ["in_blocks.0"], "num_heads": 4, "clip_config": CLIP_CONFIG, "mlp_ratio": 2},
    vae=VAE,
    text_prefix={"out_features": 8},
)


@pytest.fixture
def release(tmp_path):
    """A folder with the four files at small size, in the authors' naming, and two small CLIP models."""
    folder = tmp_path / "models"
    folder.mkdir()
    uvit = {name: [*value.shape] for name, value in toy_uvit().state_dict().items()}
    net = FeedFace(widths=32, context_dim=32, **SMALL.method)
    adapter = {official._their_face_key(name): [*value.shape] for name, value in net.state_dict().items()}
    vae = {}
    for name, shape in golden.shapes()["autoencoder_kl.pth"].items():
        # the widths of the autoencoder are all 8 here, which also removes its two shortcut convolutions a half
        narrow = [{128: 8, 256: 8, 512: 8}.get(size, size) for size in shape]
        if "nin_shortcut" not in name:
            vae[name] = narrow
    text = {"module.encode_prefix.weight": [8, 16], "module.encode_prefix.bias": [8], "module.gpt.lm_head.weight": [2]}
    for file, shapes in zip(FILES.values(), (uvit, vae, text, adapter), strict=True):
        torch.save(golden.weights(shapes), folder / file)
    position_ids = "preprocess_module.clip_model.vision_model.embeddings.position_ids"
    state = torch.load(folder / FILES["method"])
    torch.save({**state, position_ids: torch.arange(5)[None]}, folder / FILES["method"])
    save_toy_clips(tmp_path / "text", tmp_path / "image")
    return folder


def clips(release) -> dict[str, str]:
    return {"text_encoder": str(release.parent / "text"), "image_encoder": str(release.parent / "image")}


def test_conversion_reads_back_equal(release, tmp_path):
    direct = load_release(release, components=NETWORKS, architecture=SMALL, **clips(release))
    target = tmp_path / "models" / "feedface-v1"
    convert(release, target, architecture=SMALL, **clips(release))
    converted = load_bundle(target)
    assert converted.name == "feedface-v1"
    assert converted.defaults == direct.defaults
    for kind in NETWORKS:
        ours, theirs = (getattr(bundle, kind).state_dict() for bundle in (converted, direct))
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours), kind
    prompts = ["a man with a hat", ""]
    assert torch.equal(converted.text_encoder.encode(prompts), direct.text_encoder.encode(prompts))
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(face_tokens(converted.method, pixels), face_tokens(direct.method, pixels))
    # again, over the old one, in half the size
    convert(release, target, architecture=SMALL, dtype=torch.float16, **clips(release))
    assert (target / "uvit" / "model.safetensors").stat().st_size < 0.6 * (release / "uvit_v1.pth").stat().st_size


def test_with_little_memory(release):
    def read(kinds, device, dtype):
        return load_release(release, components=kinds, architecture=SMALL, device=device, dtype=dtype, **clips(release))

    kinds = ["backbone", "method", "vae", "text_encoder"]
    cpu = torch.device("cpu")
    low = LowMemoryBundle(read(kinds, torch.device("meta"), None), read, cpu, torch.float32)
    direct = read(kinds, cpu, torch.float32)
    assert low.size_multiple == direct.size_multiple == 16
    for kind in (*kinds, "backbone"):
        ours, theirs = (getattr(bundle, kind).state_dict() for bundle in (low, direct))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs), kind


def test_conversion_refuses_and_leaves_nothing_half_written(release, tmp_path):
    target = tmp_path / "converted"
    (release / "uvit_v1.pth").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"lacks uvit_v1.pth .*huggingface"):
        convert(release, target, architecture=SMALL, **clips(release))
    (tmp_path / "kept").rename(release / "uvit_v1.pth")
    with pytest.raises(UserError, match=r"exists and is not a converted model"):
        convert(release, release, architecture=SMALL, **clips(release))
    with pytest.raises(UserError, match=r"--text_encoder"):
        convert(release, target, architecture=SMALL, **{**clips(release), "text_encoder": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"16 tokens, but the uvit takes 12"):
        other = {**SMALL.backbone, "num_text_tokens": 12}
        state = torch.load(release / "uvit_v1.pth")
        state["pos_embed"] = state["pos_embed"][:, 4:].contiguous()
        torch.save(state, release / "uvit_v1.pth")
        convert(release, target, architecture=Architecture(**{**vars(SMALL), "backbone": other}), **clips(release))
    assert not target.exists()


def test_command_line(release, tmp_path, monkeypatch, capsys):
    # files of another size than the release's: one line, exit code 2
    target = tmp_path / "converted"
    monkeypatch.setattr(sys, "argv", ["checkpoints", "convert", "--from", str(release), "--to", str(target)])
    with pytest.raises(SystemExit) as stop:
        run_cli(main)
    assert stop.value.code == 2
    assert re.fullmatch(r"error: .*uvit_v1.pth: .*\n", capsys.readouterr().err)
    assert not target.exists()


def test_read_index_of_authors_files_says_what_to_do(release):
    with pytest.raises(UserError, match=r"feedface.checkpoints convert"):
        read_index(release)


# ------------------------------------------------------------------------------------------ weights of others


def projector(value) -> dict:
    return {official._their_face_key("projector.weight"): value}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({1: torch.zeros(2), "a": torch.zeros(2)}, r"tensors by name: 1 is a Tensor"),
        ({"state_dict": {"a": torch.zeros(2)}}, r"tensors by name: 'state_dict' is a dict"),
        (torch.zeros(3), r"not a state dict, .* but a Tensor"),
        (projector(torch.zeros(1, 1).expand(1_000_000_000, 768)), r"is not in the file as a whole"),
        (projector(torch.eye(4).to_sparse()), r"is not a plain tensor"),
        (projector(torch.zeros(4, 4, device="meta")), r"is not a plain tensor"),
        (projector(torch.zeros(64, 768)), r"lacks \d+ weights"),
        (projector(torch.zeros(7)), r"has no matrix"),
    ],
)
def test_state_dicts_that_are_none(tmp_path, state, message):
    path = tmp_path / "adapter.pt"
    torch.save(state, path)
    begin = time.monotonic()
    with pytest.raises(UserError, match=message) as caught:
        official.load_face_controlnet(path)
    assert str(path) in str(caught.value) and time.monotonic() - begin < 20


def test_whole_numbers_in_the_place_of_weights(release):
    path = release / FILES["backbone"]
    state = torch.load(path)
    torch.save({**state, "norm.weight": state["norm.weight"].to(torch.int64)}, path)
    with pytest.raises(UserError, match=r"norm.weight is of torch.int64"):
        official.load_uvit(path, **SMALL.backbone)


def test_every_flipped_bit_and_every_cut_of_a_torch_file_is_named(release):
    """Also in the numbers themselves, which PyTorch reads without a look at their checksums."""
    path = release / FILES["text_encoder"]
    whole = path.read_bytes()
    rng = random.Random(0)
    official.load_text_prefix(path, 16, 8)
    tensor = golden.weights({"module.encode_prefix.bias": [8]})["module.encode_prefix.bias"].numpy().tobytes()
    places = [whole.index(tensor) + 5, *(rng.randrange(len(whole)) for _ in range(60))]
    for place in places:
        content = bytearray(whole)
        content[place] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try:  # what lies between the parts does not count
            read, _ = official.read_state_dict(path)
            assert place != places[0] and read["encode_prefix.bias"].numpy().tobytes() == tensor
        except UserError as error:
            assert str(path) in str(error)
    for _ in range(30):
        path.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(UserError, match=path.name):
            official.load_text_prefix(path, 16, 8)


def test_a_torch_file_is_a_file_of_stored_parts(release):
    path = release / FILES["backbone"]
    with zipfile.ZipFile(path) as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"compressed"):
        official.load_uvit(path, **SMALL.backbone)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"not a regular file"):
        official.load_uvit(path, **SMALL.backbone)


def test_an_adapter_as_safetensors(release, tmp_path):
    from safetensors.torch import save_file

    state = torch.load(release / FILES["method"])
    path = tmp_path / "adapter.safetensors"
    save_file(state, path)
    net = official.load_face_controlnet(path, **SMALL.method)
    wanted = official.load_face_controlnet(release / FILES["method"], **SMALL.method)
    assert all(torch.equal(value, wanted.state_dict()[key]) for key, value in net.state_dict().items())
    for broken in (b"", path.read_bytes()[:1000], pickle.dumps({"payload": Payload()})):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"adapter.safetensors: not a safetensors file"):
            official.load_face_controlnet(path, **SMALL.method)


def test_an_archive_is_checked_once(release, monkeypatch):
    """With little memory a file is opened for every picture."""
    path, read = release / FILES["backbone"], []
    monkeypatch.setattr(zipfile.ZipFile, "testzip", lambda archive: read.append(archive))
    for _ in range(3):
        official.load_uvit(path, **SMALL.backbone)
    assert len(read) == 1

"""ImageReward: its package where there is one, else its weights in transformers' classes, else a reason."""

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from feedface.common.errors import UserError
from feedface.encoders import CLIP_MEAN, CLIP_STD
from feedface.evaluation.image_reward import MEAN, STD, HostedReward, load

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "man", "woman", "in", "red"]
SIDE, PATCH, WIDTH, TEXT_WIDTH = 32, 8, 128, 64  # heads of 64: two in the picture encoder, one in the other


@pytest.fixture(autouse=True)
def no_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)


def pictures(count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8))


def toy_state() -> dict[str, torch.Tensor]:
    """Random tensors under the published names, in miniature."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def add(name: str, *shape: int) -> None:
        state[name] = 0.2 * torch.randn(*shape, generator=generator)

    def linear(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name: str, width: int) -> None:
        add(f"{name}.weight", width)
        add(f"{name}.bias", width)

    eye, text = "blip.visual_encoder", "blip.text_encoder"
    add(f"{eye}.cls_token", 1, 1, WIDTH)
    add(f"{eye}.pos_embed", 1, 1 + (SIDE // PATCH) ** 2, WIDTH)
    add(f"{eye}.patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH)
    add(f"{eye}.patch_embed.proj.bias", WIDTH)
    for block in (f"{eye}.blocks.0", f"{eye}.blocks.1"):
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 96, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 96)
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
    norm(f"{eye}.norm", WIDTH)
    add(f"{text}.embeddings.word_embeddings.weight", len(WORDS) + 2, TEXT_WIDTH)
    add(f"{text}.embeddings.position_embeddings.weight", 40, TEXT_WIDTH)
    norm(f"{text}.embeddings.LayerNorm", TEXT_WIDTH)
    state[f"{text}.embeddings.position_ids"] = torch.arange(40)[None]
    layer = f"{text}.encoder.layer.0"
    for attention, width in (("attention", TEXT_WIDTH), ("crossattention", WIDTH)):
        linear(f"{layer}.{attention}.self.query", TEXT_WIDTH, TEXT_WIDTH)
        linear(f"{layer}.{attention}.self.key", TEXT_WIDTH, width)
        linear(f"{layer}.{attention}.self.value", TEXT_WIDTH, width)
        linear(f"{layer}.{attention}.output.dense", TEXT_WIDTH, TEXT_WIDTH)
        norm(f"{layer}.{attention}.output.LayerNorm", TEXT_WIDTH)
    linear(f"{layer}.intermediate.dense", 80, TEXT_WIDTH)
    linear(f"{layer}.output.dense", TEXT_WIDTH, 80)
    norm(f"{layer}.output.LayerNorm", TEXT_WIDTH)
    linear("mlp.layers.0", 16, TEXT_WIDTH)  # dropout lies between
    linear("mlp.layers.2", 1, 16)
    linear("blip.vision_proj", 4, WIDTH)  # of BLIP's training
    return state


def by_hand(state: dict[str, torch.Tensor], picture: np.ndarray, ids: list[int]) -> float:
    """The published network in plain tensor operations, for one picture and one unpadded prompt."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)

    def attend(q, k, v):  # [tokens, D], heads of 64
        q, k, v = (part.unflatten(-1, (-1, 64)).transpose(0, 1) for part in (q, k, v))
        return (((q @ k.mT) / 8).softmax(-1) @ v).transpose(0, 1).flatten(1)

    pixels = (torch.from_numpy(picture) / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)
    name = "blip.visual_encoder"
    patches = F.conv2d(pixels.permute(2, 0, 1)[None], state[f"{name}.patch_embed.proj.weight"], stride=PATCH)[0]
    patches = patches.flatten(1).T + state[f"{name}.patch_embed.proj.bias"]
    x = torch.cat([state[f"{name}.cls_token"][0], patches]) + state[f"{name}.pos_embed"][0]
    for block in (f"{name}.blocks.0", f"{name}.blocks.1"):
        queries_keys_values = linear(norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(*queries_keys_values), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1")), f"{block}.mlp.fc2")
    seen = norm(x, f"{name}.norm", 1e-6)

    name, layer = "blip.text_encoder.embeddings", "blip.text_encoder.encoder.layer.0"
    x = state[f"{name}.word_embeddings.weight"][ids] + state[f"{name}.position_embeddings.weight"][: len(ids)]
    x = norm(x, f"{name}.LayerNorm", 1e-12)
    for attention, other in (("attention", None), ("crossattention", seen)):
        part = f"{layer}.{attention}"
        context = x if other is None else other
        heads = attend(
            linear(x, f"{part}.self.query"), linear(context, f"{part}.self.key"), linear(context, f"{part}.self.value")
        )
        x = norm(x + linear(heads, f"{part}.output.dense"), f"{part}.output.LayerNorm", 1e-12)
    wide = F.gelu(linear(x, f"{layer}.intermediate.dense"))
    x = norm(x + linear(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", 1e-12)
    return ((linear(linear(x[0], "mlp.layers.0"), "mlp.layers.2").item()) - MEAN) / STD


@pytest.fixture
def folder(tmp_path):
    torch.save(toy_state(), tmp_path / "ImageReward.pt")
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return tmp_path


def test_the_published_weights_score_as_the_published_network_does(folder):
    reward = load(folder=folder)
    assert isinstance(reward, HostedReward) and reward.reason is None
    shown = [*pictures(2), pictures(1)[0]]
    scores = reward.score(["a man in red", "a woman", "a blue man"], shown)
    tokens = ([2, 5, 6, 8, 9, 3], [2, 5, 7, 3], [2, 5, 1, 6, 3])
    expected = [by_hand(toy_state(), picture, ids) for picture, ids in zip(shown, tokens, strict=True)]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert scores.std() > 1e-3 and scores.dtype == np.float64
    assert reward.score([], []).shape == (0,)
    large = np.kron(shown[0], np.ones((2, 2, 1), np.uint8))  # any size
    assert np.isfinite(reward.score(["a " * 200], [np.hstack([large, large])])).all()
    with pytest.raises(ValueError, match="2 prompts for 3 pictures"):
        reward.score(["a", "a"], shown)


def test_other_files_are_refused(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(UserError, match="bert-base-uncased has 10"):
        load(folder=folder)
    state = toy_state()
    del state["blip.text_encoder.encoder.layer.0.crossattention.self.key.bias"]
    torch.save(state, folder / "ImageReward.pt")
    with pytest.raises(UserError, match="missing weights"):
        load(folder=folder)
    torch.save({"weight": torch.zeros(2)}, folder / "ImageReward.pt")
    with pytest.raises(UserError, match="not the weights of ImageReward"):
        load(folder=folder)


def test_without_package_and_weights_it_is_said_how_to_measure(tmp_path):
    absent = load(folder=tmp_path)
    assert "\n" not in absent.reason
    for part in ("ImageReward.pt", "vocab.txt", str(tmp_path)):
        assert part in absent.reason


def test_the_package_is_asked_first(folder, monkeypatch):
    asked = []

    class Model:
        def score(self, prompt, image):
            asked.append((prompt, image.size))
            return float(np.asarray(image)[0, 0, 0])

    def load_model(name, device, download_root):
        assert name == "ImageReward-v1.0" and device == "cpu"
        return Model()

    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=load_model))
    reward = load("cpu", folder)
    shown = pictures(2)
    assert reward.score(["a", "b"], shown).tolist() == [float(picture[0, 0, 0]) for picture in shown]
    assert asked == [("a", (SIDE, SIDE)), ("b", (SIDE, SIDE))]

    def broken(*_, **__):
        raise OSError("no\nconnection")

    monkeypatch.setitem(sys.modules, "ImageReward", types.SimpleNamespace(load=broken))
    assert isinstance(load("cpu", folder), HostedReward)
    (folder / "ImageReward.pt").unlink()
    assert "no connection" in load("cpu", folder).reason

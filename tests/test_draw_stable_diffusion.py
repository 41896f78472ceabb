"""`inference.py` on a Stable Diffusion, small: both forms, with and without a method, and what cannot be drawn."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from PIL import Image
from safetensors.torch import save_file
from tests.test_stable_diffusion import Toy
from tests.toy import CLIP_CONFIG, make_toy_bundle
from torch import nn

from feedface.backbones.unet import UNet
from feedface.checkpoints import stable_diffusion
from feedface.checkpoints.bundle import load_bundle, read_index, save_component, write_derived_index
from feedface.commands import inference
from feedface.common.errors import UserError
from feedface.methods.base import method_class
from feedface.pipeline import FeedFacePipeline
from feedface.settings import Settings

CONTROL = {"sites": (), "num_heads": 2, "mlp_ratio": 2.0, "control_input": "output", "projector": False}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """folder/, file.safetensors (the same model), a method trained on it, a checkpoint that points to it, a face."""
    here = tmp_path_factory.mktemp("models")
    toy = Toy(here)
    toy.save_folder(here / "folder")
    save_file(toy.single_file(), here / "file.safetensors")
    backbone = UNet(toy.unet)
    method = method_class("feedface").fresh(ConfigDict({"control": CONTROL}), backbone, clip_config=CLIP_CONFIG)
    for block in method.blocks:
        nn.init.normal_(block.zero_linear.weight, std=0.5)
    save_component("method", method, here / "method", None)
    save_component("method", method, here / "run" / "method", None)
    write_derived_index(here / "run", here / "folder", {"method": "method"}, "trained")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)).save(here / "face.png")
    return here


@pytest.fixture
def run(here, tmp_path, monkeypatch):
    """-> (pixels, results) of one picture."""
    monkeypatch.chdir(here)
    opened = stable_diffusion.open_stable_diffusion
    versions = (Toy(tmp_path).version,)
    monkeypatch.setattr(stable_diffusion, "open_stable_diffusion", lambda path: opened(path, versions=versions))

    def run(*options):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        base = ["--prompt", "a man", "--device", "cpu", "--no_detect", "--size", "128", "--steps", "2"]
        assert inference.main([*base, "--output", str(output), *options]) == 0
        results = json.loads((output / "results.json").read_text())
        return np.asarray(Image.open(output / results["pictures"][0]["file"])).astype(int), results

    return run


def test_text_alone_from_both_forms(run):
    folder, results = run("--model", "folder")
    file, _ = run("--model", "file.safetensors")
    assert folder.shape == (128, 128, 3)
    np.testing.assert_array_equal(folder, file)
    assert results["settings"]["uncond"] == "empty_token" and results["settings"]["guidance"] == 7.5
    assert results["references"] == [] and results["notices"] == []


def test_faces_without_a_method_are_said_and_left_out(run, capsys):
    plain, _ = run("--model", "folder")
    picture, _ = run("--model", "folder", "--image", "face.png")
    np.testing.assert_array_equal(picture, plain)
    [notice] = [line for line in capsys.readouterr().out.splitlines() if "no method to show a face with" in line]
    assert "--ckpt_path" in notice and notice.endswith("drawn without a face")


def test_a_method_that_was_trained_on_it(run):
    plain, _ = run("--model", "folder")
    shown, results = run("--model", "folder", "--ckpt_path", "method", "--image", "face.png")
    assert len(results["references"]) == 1 and not (shown == plain).all()
    np.testing.assert_array_equal(
        run("--model", "file.safetensors", "--ckpt_path", "run", "--image", "face.png")[0], shown
    )
    # A training checkpoint is a model by itself, its other parts where they were.
    np.testing.assert_array_equal(run("--model", "run", "--image", "face.png")[0], shown)
    less = run("--model", "run", "--image", "face.png", "--low_memory")[0]
    np.testing.assert_allclose(less, shown, atol=1)
    int8 = run("--model", "run", "--image", "face.png", "--int8")[0]
    assert 0 < np.abs(int8 - shown).mean() < 20


def test_negative_prompt_clip_skip_and_loras_change_pictures(run, here):
    plain, _ = run("--model", "folder")
    target = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    rank = {f"unet.{target}.lora_A.weight": torch.randn(2, 8), f"unet.{target}.lora_B.weight": torch.randn(8, 2)}
    save_file(rank, here / "style.safetensors")
    no_prefix = {key.removeprefix("unet."): value for key, value in rank.items()}
    save_file(no_prefix, here / "peft.safetensors")
    digests = set()
    for options in (["--negative_prompt", "a hat"], ["--clip_skip", "1"], ["--lora", "style.safetensors:3"]):
        picture, results = run("--model", "folder", *options)
        assert not (picture == plain).all(), options
        digests.add(results["model"]["digest"])
    assert len(digests) == 3
    assert results["settings"]["loras"] == ["style.safetensors:3"]
    style, _ = run("--model", "folder", "--lora", "style.safetensors")
    np.testing.assert_array_equal(run("--model", "folder", "--lora", "peft.safetensors")[0], style)
    np.testing.assert_array_equal(run("--model", "folder", "--lora", "style.safetensors:0")[0], plain)


def test_the_index_of_one_needs_no_weights(here):
    index = read_index(here / "folder")
    assert (index.name, index.image_size, index.kinds, index.size_multiple) == ("folder", 512, {"backbone": "unet"}, 8)
    run = read_index(here / "run")
    assert run.kinds == {"backbone": "unet", "method": "feedface"} and run.components["vae"].samefile(here / "folder")
    assert json.loads((here / "run" / "model_index.json").read_text())["parts"]["vae"] == "../folder"


def test_a_backbone_is_a_part_like_others(here, tmp_path):
    unet = load_bundle(here / "folder", components=["backbone"]).backbone
    save_component("backbone", unet, tmp_path / "unet", None)
    write_derived_index(tmp_path, here / "folder", {"backbone": "unet"}, "own")
    again = load_bundle(tmp_path)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in again.backbone.state_dict().items())
    assert again.method is None and again.size_multiple == 8 and read_index(tmp_path).size_multiple == 8


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "folder", "--reuse", "2"], "no deep blocks to reuse"),
        (["--model", "folder", "--uncond", "true_uncond"], "this model's backbone has empty_token, paper"),
        (["--model", "folder", "--clip_skip", "3"], "use 0 to 2"),
        (["--model", "folder", "--lora", "none.safetensors"], "--lora none.safetensors: no such file"),
        (["--model", "folder", "--lora", "file.safetensors"], "needed is a LoRA"),
        (["--model", "toy", "--clip_skip", "1", "--image", "face.png"], "is for Stable Diffusion's U-Net"),
        (
            ["--model", "toy", "--negative_prompt", "hat", "--uncond", "true_uncond", "--image", "face.png"],
            "leave that out, or take --uncond empty_token",
        ),
        (["--model", "toy"], "give --prompt and --image"),
        (["--model", "folder", "--ckpt_path", "toy", "--image", "face.png"], "belongs to another backbone: the unet"),
        (["--model", "toy", "--ckpt_path", "method", "--image", "face.png"], "belongs to another backbone: the uvit"),
        (["--model", "xl.safetensors"], "xl.safetensors: this is Stable Diffusion XL; needed is a whole Stable"),
        (["--model", "lora.safetensors"], "this is a LoRA, which changes a model and is none; needed is"),
        (["--model", "vae.safetensors"], "this is a VAE alone; needed is"),
        (["--ckpt_path", "folder", "--image", "face.png", "--model", "toy"], "a Stable Diffusion .*, not a method"),
        (["--model", "folder", "--lora", "half.safetensors"], "lora_unet_x has one of its two matrices alone"),
        (["--model", "folder", "--lora", "nan.safetensors"], "nan.safetensors: .*holds NaN"),
        (["--model", "folder", "--lora", "other.safetensors"], "belong to this model: its U-Net has no down_blocks.7"),
        (["--model", "sizeless"], '"sample_size" must be a whole number, not None'),
        (["--model", ""], "--model: is empty"),
        (["--output", ""], "--output: is empty"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(run, here, options, words):
    if not (here / "toy").exists():
        make_toy_bundle(here / "toy")
        save_file({"conditioner.embedders.0.weight": torch.zeros(1)}, here / "xl.safetensors")
        save_file({"lora_unet_x.lora_down.weight": torch.zeros(1)}, here / "lora.safetensors")
        save_file({"decoder.conv_in.weight": torch.zeros(1)}, here / "vae.safetensors")
        save_file({"lora_unet_x.lora_up.weight": torch.zeros(2, 2)}, here / "half.safetensors")
        for name, module, value in (("nan", "down_blocks.0", float("nan")), ("other", "down_blocks.7", 1.0)):
            pair = {f"unet.{module}.attn1.to_q.lora_{end}.weight": torch.full((2, 2), value) for end in "AB"}
            save_file(pair, here / f"{name}.safetensors")
        shutil.copytree(here / "folder", here / "sizeless")
        config = json.loads((here / "sizeless" / "unet" / "config.json").read_text())
        (here / "sizeless" / "unet" / "config.json").write_text(json.dumps({**config, "sample_size": None}))
    with pytest.raises(UserError, match=words) as caught:
        run(*options)
    assert "\n" not in str(caught.value)


def test_negative_prompts_on_the_u_vit(here):
    make_toy_bundle(here / "u_vit")
    pipe = FeedFacePipeline.from_pretrained(here / "u_vit", device="cpu")
    draw = lambda **options: np.asarray(pipe.generate("a man", uncond="empty_token", progress=False, **options)[0])  # noqa: E731
    plain, away = draw(), draw(negative_prompt="a hat")
    assert not (plain == away).all()
    np.testing.assert_array_equal(draw(negative_prompt=""), plain)
    with_hat = Settings(uncond="empty_token", negative_prompt="a hat", guidance=1)
    assert "without effect at guidance 1" in pipe.settings_notice(with_hat)
    assert pipe.settings_notice(replace(with_hat, guidance=2)) is None
    with pytest.raises(UserError, match="--negative_prompt: the prompt has 3000 characters"):
        Settings(negative_prompt="x" * 3000)

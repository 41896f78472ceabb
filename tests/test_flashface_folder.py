"""The authors' form of FlashFace, a diffusers folder with a second U-Net: drawn with, written, refused."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from configs import flashface
from diffusers import UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from tests.test_stable_diffusion import Toy

from feedface.checkpoints.flashface_export import export
from feedface.commands import inference
from feedface.common.errors import EXIT_USER_ERROR, UserError
from feedface.inference import low_memory, stages
from feedface.inference.model_files import model_with
from feedface.pipeline import FeedFacePipeline
from feedface.training.setup import build_models

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """theirs/ and pictures of two people."""
    here = tmp_path_factory.mktemp("flashface")
    toy = Toy(here)
    toy.save_folder(here / "theirs", steps_offset=19)
    UNet2DConditionModel(**{**toy.unet.config}).save_pretrained(here / "theirs" / "refnet")
    rng = np.random.default_rng(0)
    for name, mode, size in (("a", "RGB", (48, 40)), ("b", "L", (64, 64)), ("c", "RGBA", (30, 50))):
        channels = {"RGB": 3, "L": 1, "RGBA": 4}[mode]
        pixels = rng.integers(0, 255, (*size, channels), dtype=np.uint8).squeeze()
        Image.fromarray(pixels, mode).save(here / f"{name}.png")
    return here


@pytest.fixture
def run(here, tmp_path, monkeypatch):
    """-> (pixels, results) of one picture."""
    monkeypatch.chdir(here)

    def run(*options, model="theirs"):
        output = tmp_path / str(len(list(tmp_path.iterdir())))
        base = ["--prompt", "a man", "--device", "cpu", "--no_detect", "--size", "128", "--steps", "2"]
        assert inference.main([*base, "--output", str(output), "--model", str(model), *options]) == 0
        results = json.loads((output / "results.json").read_text())
        return np.asarray(Image.open(output / results["pictures"][0]["file"])).astype(int), results

    return run


def test_references_of_any_kind_and_number(run):
    one, results = run("--method", "flashface", "--image", "a.png")
    assert results["settings"]["guidance"] == 3.0 and results["settings"]["face_scale"] == 0.85
    three, _ = run("--image", "a.png", "b.png", "c.png")
    nobody, _ = run("--image", "a.png", "--face_scale", "0")
    assert (one != three).any() and (one != nobody).any()
    assert run("--image", *["a.png"] * 20)[0].shape == one.shape
    np.testing.assert_allclose(run("--image", "a.png", "--guidance", "1")[0].shape, one.shape)


def test_a_blend(run):
    one, _ = run("--image", "a.png")
    both, results = run("--image", "a.png", "--blend", "b.png", "c.png", "--blend_weight", "0.3")
    assert (one != both).any()
    assert results["settings"]["blend_weight"] == 0.3
    np.testing.assert_allclose(run("--image", "a.png", "--blend", "b.png", "--blend_weight", "0")[0], one, atol=1)


def test_with_little_memory_the_reference_net_is_gone_before_the_backbone_comes(run, monkeypatch):
    plain, _ = run("--image", "a.png", "b.png")
    filled: list[list[str]] = []
    ready = low_memory.LowMemoryBundle.ready

    def watched(bundle, kind):
        module = ready(bundle, kind)
        filled.append(sorted(bundle._filled))
        return module

    monkeypatch.setattr(low_memory.LowMemoryBundle, "ready", watched)
    np.testing.assert_allclose(run("--image", "a.png", "b.png", "--low_memory")[0], plain, atol=1)
    assert ["method"] in filled and ["backbone"] in filled
    assert not any({"backbone", "method"} <= set(there) for there in filled)


def test_with_little_memory_each_net_is_read_once_for_as_much_as_may_wait(run, monkeypatch):
    counted, fill = Counter(), low_memory.LowMemoryBundle._fill
    monkeypatch.setattr(
        low_memory.LowMemoryBundle, "_fill", lambda self, kind: counted.update([kind]) or fill(self, kind)
    )
    together = run("--image", "a.png", "--n_samples", "2", "--low_memory")[0]
    assert counted == {"text_encoder": 1, "method": 1, "backbone": 1, "vae": 2}  # the references, the pictures
    monkeypatch.setattr(stages, "PROMPTED_BYTES", 1)
    counted.clear()
    np.testing.assert_array_equal(run("--image", "a.png", "--n_samples", "2", "--low_memory")[0], together)
    assert counted == {"text_encoder": 1, "method": 2, "backbone": 2, "vae": 2}


def test_text_is_encoded_as_the_authors_do(here):
    pipe = FeedFacePipeline.from_pretrained(here / "theirs", device="cpu")
    assert (pipe.bundle.text_encoder.clip_skip, pipe.bundle.text_encoder.negative_skip) == (1, 0)
    both = FeedFacePipeline.from_pretrained(here / "theirs", device="cpu", clip_skip=2)
    assert (both.bundle.text_encoder.clip_skip, both.bundle.text_encoder.negative_skip) == (2, None)


def test_written_again_it_is_the_same(run, here, tmp_path):
    assert export(here / "theirs", tmp_path / "again") == tmp_path / "again"
    for net in ("unet", "refnet"):
        first, second = (load_file(folder / net / WEIGHTS) for folder in (here / "theirs", tmp_path / "again"))
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
        UNet2DConditionModel.from_pretrained(tmp_path / "again" / net)
    np.testing.assert_array_equal(run("--image", "a.png", model=tmp_path / "again")[0], run("--image", "a.png")[0])
    with pytest.raises(UserError, match="is there already"):
        export(here / "theirs", tmp_path / "again")
    shutil.copytree(here / "theirs", tmp_path / "plain", ignore=shutil.ignore_patterns("refnet"))
    with pytest.raises(UserError, match="only a U-Net with FlashFace and a reference net of its own"):
        export(tmp_path / "plain", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_training_goes_on_from_it(here):
    config = flashface.get_config()
    config.model = str(here / "theirs")
    trained = build_models(config, torch.device("cpu"), "no").trained
    stored = load_file(here / "theirs" / "refnet" / WEIGHTS)
    own = trained.method.refnet.unet.state_dict()
    assert own.keys() == stored.keys() and all(torch.equal(own[key], stored[key]) for key in own)
    names = trained.trained().keys()
    assert {name.split(".")[0] for name in names} == {"backbone", "refnet"}
    assert not any(name.startswith("refnet.unet.up_blocks.3") for name in names)
    config.control.backbone = "frozen"
    with pytest.raises(
        UserError, match=r"config\.control: .*'s own flashface was trained with the backbone trained too"
    ):
        build_models(config, torch.device("cpu"), "no")
    config.control.update(backbone="all", reference_px=250)
    (notice,) = build_models(config, torch.device("cpu"), "no").notices
    assert "own flashface: reference_px 250 (it has 256)" in notice


def test_what_cannot_be(here, tmp_path):
    with pytest.raises(UserError, match=r"--method feedface: the method of .*theirs is flashface"):
        model_with("feedface", here / "theirs")
    with pytest.raises(UserError, match=r"'x' is no method of this version; known are .*feedface, flashface"):
        model_with("x", None)
    shutil.copytree(here / "theirs", tmp_path / "broken")
    config = json.loads((tmp_path / "broken/refnet/config.json").read_text())
    (tmp_path / "broken/refnet/config.json").write_text(json.dumps(config | {"block_out_channels": [8, 8, 16, 24]}))
    with pytest.raises(UserError, match="refnet"):
        FeedFacePipeline.from_pretrained(tmp_path / "broken", device="cpu")
    base = ["--prompt", "a", "--output", str(tmp_path / "out"), "--model", str(here / "theirs"), "--device", "cpu"]
    with pytest.raises(UserError, match="--blend: somebody to blend with"):
        inference.main([*base, "--blend", str(here / "b.png")])
    with pytest.raises(UserError, match=r"--blend_weight 2\.0: out of range"):
        inference.main([*base, "--image", str(here / "a.png"), "--blend_weight", "2"])
    assert EXIT_USER_ERROR == 2 and not (tmp_path / "out").exists()

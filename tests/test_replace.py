"""A model with another one's text encoder or VAE."""

import pytest
import torch
from tests.test_stable_diffusion import Toy, same
from tests.toy import make_toy_bundle

from feedface.checkpoints.bundle import load_bundle
from feedface.checkpoints.replace import REPLACEABLE, replace_part
from feedface.common.errors import UserError
from feedface.pipeline import FeedFacePipeline


def inner(bundle, part):
    module = getattr(bundle, part)
    return module.clip if part == "text_encoder" else module.vae


@pytest.mark.parametrize("part", REPLACEABLE)
def test_a_bundle_gets_one_part_of_another_and_keeps_the_rest(part, tmp_path):
    one, other = (make_toy_bundle(tmp_path / name, seed) for seed, name in enumerate(("one", "other")))
    replace_part(part, one, other, tmp_path / "made", None)
    loaded = {name: load_bundle(tmp_path / name, dtype=None) for name in ("one", "other", "made")}
    for name in REPLACEABLE:
        source, left = ("other", "one") if name == part else ("one", "other")
        assert same(inner(loaded["made"], name), inner(loaded[source], name))
        assert not same(inner(loaded["made"], name), inner(loaded[left], name))
    assert same(loaded["made"].backbone, loaded["one"].backbone)
    assert FeedFacePipeline.from_pretrained(tmp_path / "made", device="cpu").generate("a", progress=False)
    with pytest.raises(UserError, match="made: is there already"):
        replace_part(part, one, other, tmp_path / "made", None)
    with pytest.raises(UserError, match="no such model folder"):
        replace_part(part, one, tmp_path / "none", tmp_path / "new", None)


def test_a_stable_diffusion_gets_another_text_encoder_or_is_refused_one_that_does_not_fit(tmp_path):
    toy = Toy(tmp_path)
    toy.save_folder(tmp_path / "sd")
    with torch.no_grad():
        for parameter in toy.clip.parameters():
            parameter.add_(1)
    toy.save_folder(tmp_path / "tuned")
    replace_part("text_encoder", tmp_path / "sd", tmp_path / "tuned", tmp_path / "made", None)
    made = load_bundle(tmp_path / "made", dtype=None)
    assert same(made.text_encoder.clip, toy.clip)
    assert same(made.backbone.unet, toy.unet)
    bundle = make_toy_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"gives 16 tokens, but|gives 8 numbers a token, but the unet takes 16"):
        replace_part("text_encoder", tmp_path / "sd", bundle, tmp_path / "wrong", None)
    assert not (tmp_path / "wrong").exists()

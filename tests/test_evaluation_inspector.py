"""The judge: its files, its inputs, and the damage it is trained to see through."""

import json

import ml_collections
import numpy as np
import pytest
import torch
from PIL import Image

from feedface.common.errors import UserError
from feedface.evaluation.inspector import Inspector
from feedface.synthetic.train.inspector import CosineMarginHead, damage, random_affine, random_blocks, random_blur, run
from feedface.synthetic.world import make_portraits
from feedface.training.fit import fit_config

ATTRIBUTES = {"gender": 2, "hat": 4}


@pytest.fixture
def inspector():
    torch.manual_seed(0)
    return Inspector(ATTRIBUTES, width=8, embedding_dim=16).eval()


def pictures(count: int, size: int = 64) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_findings_do_not_depend_on_the_batch(inspector):
    images = pictures(5)
    found = inspector.inspect(images, batch_size=2)
    assert found.embedding.shape == (5, 16)
    assert np.linalg.norm(found.embedding, axis=1) == pytest.approx(np.ones(5), abs=1e-5)
    assert {name: classes.shape for name, classes in found.attributes.items()} == {"gender": (5,), "hat": (5,)}
    alone = inspector.inspect(images[3:4])
    assert found.embedding[3:4] == pytest.approx(alone.embedding, abs=1e-5)


def test_features_are_means_over_the_picture_and_do_not_depend_on_the_batch(inspector):
    images = pictures(5)
    features = inspector.features(images, batch_size=2)
    assert features.shape == (5, 32)
    assert features[3:4] == pytest.approx(inspector.features(images[3:4]), abs=1e-5)
    assert features.std(axis=0).max() > 0


def test_pictures_of_another_size_are_resized(inspector):
    blots = [Image.fromarray(blot) for blot in pictures(4, size=4)]
    small, large = (
        np.stack([np.asarray(blot.resize((side, side), Image.Resampling.BICUBIC)) for blot in blots])
        for side in (64, 128)
    )
    cosines = (inspector.inspect(large).embedding * inspector.inspect(small).embedding).sum(axis=1)
    assert cosines == pytest.approx(np.ones(4), abs=0.01)


def test_saved_and_read_back_it_judges_the_same(inspector, tmp_path):
    inspector.save_pretrained(tmp_path / "inspector")
    again = Inspector.from_pretrained(tmp_path / "inspector")
    assert again.config == inspector.config
    assert not again.training
    assert next(again.parameters()).dtype == torch.float32
    assert again.inspect(pictures(3)).embedding == pytest.approx(inspector.inspect(pictures(3)).embedding, abs=5e-3)


def test_the_shipped_size_stays_below_its_limit(tmp_path):
    Inspector({"gender": 2, "expression": 5, "clothes": 5, "background": 10}).save_pretrained(tmp_path / "inspector")
    assert (tmp_path / "inspector/model.safetensors").stat().st_size < 2.5e6


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_or_foreign_files_are_user_errors(inspector, tmp_path, name):
    folder = tmp_path / "inspector"
    inspector.save_pretrained(folder)
    (folder / name).write_text("nonsense")
    with pytest.raises(UserError, match=name):
        Inspector.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=name):
        Inspector.from_pretrained(folder)


def test_margin_asks_for_more_than_being_nearest():
    torch.manual_seed(0)
    embedding = torch.eye(4)
    losses = []
    for margin in (0.0, 0.3):
        head = CosineMarginHead(4, 4, scale=10, margin=margin)
        head.centres.data = torch.eye(4)
        losses.append(head(embedding, torch.arange(4)).item())
    # log(1 + 3 exp(-s (1 - m)))
    assert losses == pytest.approx([np.log1p(3 * np.exp(-10)), np.log1p(3 * np.exp(-7))], rel=1e-3)


@pytest.mark.parametrize("change", [random_affine, random_blur, random_blocks, damage])
def test_damage_changes_pictures_and_repeats_with_its_seed(change):
    images = torch.rand(6, 3, 64, 64, generator=generator())
    changed = change(images.clone(), generator())
    assert changed.shape == images.shape
    assert not torch.allclose(changed, images, atol=1e-3)
    assert torch.equal(changed, change(images.clone(), generator()))


def test_damaged_pictures_stay_in_range():
    damaged = damage(torch.rand(8, 3, 64, 64, generator=generator()), generator())
    assert damaged.min() >= 0 and damaged.max() <= 1


@pytest.mark.parametrize("change", [random_affine, random_blur])
def test_an_even_picture_stays_even(change):
    even = torch.full((4, 3, 64, 64), 0.3)
    assert change(even, generator()) == pytest.approx(even, abs=1e-5)


def test_blur_removes_detail_and_keeps_the_mean():
    images = torch.rand(8, 3, 64, 64, generator=generator())
    blurred = random_blur(images, generator())
    inside = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert blurred[inside].std() < 0.6 * images[inside].std()
    assert float(blurred.mean()) == pytest.approx(float(images.mean()), abs=0.02)


def test_blocks_stay_near_the_picture():
    images = torch.rand(8, 3, 64, 64, generator=generator())
    assert float((random_blocks(images, generator()) - images).abs().mean()) < 0.1


def test_stage_trains_and_leaves_a_judge(tmp_path):
    """Minutes cut to seconds: too few people to learn faces from, but it knows backgrounds on pictures never seen."""
    config = ml_collections.ConfigDict()
    config.inspector = fit_config(
        batch_size=32, steps=80, lr=4e-3, warmup_steps=5, ema_decay=0.9, device="cpu", image_size=64,
        world_seed=0, width=8, embedding_dim=32, first_identity=30_000, identities=20, per_identity=4, held_out=4,
        scale=16.0, margin=0.1, attribute_weight=1.0,
    )  # fmt: skip
    run(config, tmp_path)
    judge = Inspector.from_pretrained(tmp_path / "bundle/inspector")
    world = make_portraits(np.arange(31_000, 31_050), np.arange(50))
    right = judge.inspect(world.images).attributes["background"] == world.attributes["background"]
    assert right.mean() > 0.5  # chance: 0.1
    metrics = json.loads((tmp_path / "inspector/metrics.json").read_text())["metrics"]
    assert 0 <= metrics["damaged_nearest_identity_of_4"] <= 1

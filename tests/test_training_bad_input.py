"""Wrong training input: each kind ends in one line that names the file, line or value, and leaves checkpoints alone."""

import json
import re
import shutil
from collections import namedtuple

import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.test_training import fresh_accelerate, make_config, world  # noqa: F401

from feedface.common.errors import UserError
from feedface.training.trainer import fill_cache, train


@pytest.fixture
def records(world, tmp_path):  # noqa: F811
    folder = tmp_path / "records"
    shutil.copytree(world.records.parent, folder)
    return folder / "records.jsonl"


def change_line(records, line, **changes):
    """Change keys of a line (counted from 1); None takes the key away."""
    rows = records.read_text().splitlines()
    row = json.loads(rows[line - 1]) | changes
    rows[line - 1] = json.dumps({key: value for key, value in row.items() if value is not None})
    records.write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_path": None}, r"records\.jsonl:3: mask_path: missing"),
        ({"caption": None}, r"records\.jsonl:3: caption: missing"),
        ({"caption": ""}, r"records\.jsonl:3: caption: must be a string with something in it"),
        ({"caption": 7}, r"records\.jsonl:3: caption: must be a string .* not 7"),
        ({"caption": ["a", "b"]}, r"records\.jsonl:3: caption: must be a string"),
        ({"bbox": [70, 70, 90, 90]}, r"records\.jsonl:3: bbox: .* lies outside the picture of 64 x 64 pixels"),
        ({"square_bbox": [-40, 0, -10, 30]}, r"records\.jsonl:3: square_bbox: .* lies outside"),
        ({"bbox": [30, 30, 30, 40]}, r"records\.jsonl:3: bbox: .* is empty"),
        ({"width": 63}, r"0_2\.png: 64 x 64 px, but its record says 63 x 64"),
    ],
)
@pytest.mark.parametrize("cached", [True, False])
def test_records(world, tmp_path, records, cached, changes, words):  # noqa: F811
    change_line(records, 3, **changes)
    config = make_config(world, **{"data.records": (str(records),), "cache.enabled": cached, "train.steps": 9})
    with pytest.raises(UserError, match=words):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("cached", [True, False])
def test_mask_of_another_size(world, tmp_path, records, cached):  # noqa: F811
    Image.new("L", (32, 48)).save(records.parent / "masks" / "0_2.png")
    config = make_config(world, **{"data.records": (str(records),), "cache.enabled": cached, "train.steps": 9})
    with pytest.raises(UserError, match=r"masks/0_2\.png: mask of 32 x 48 px for a picture of 64 x 64"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("cached", [True, False])
def test_broken_files_are_listed(world, tmp_path, records, cached, capsys):  # noqa: F811
    """A mask that is none, by its value, among them."""
    (records.parent / "masks" / "0_0.png").unlink()
    Image.new("L", (64, 64), 255).save(records.parent / "masks" / "1_1.png")
    changes = {"data.records": (str(records),), "cache.enabled": cached, "train.steps": 3, "data.max_broken": 2}
    assert train(make_config(world, **changes), tmp_path / "run") == 0
    listed = json.loads((tmp_path / "run" / "broken.json").read_text())
    assert {path.rpartition("/")[2] for path in listed} == {"0_0.png", "1_1.png"}
    assert any("value 255 (at x 0, y 0) is none of a mask's" in reason for reason in listed.values())
    assert "2 broken files were passed over, listed in" in capsys.readouterr().out


def test_empty_jsonl(world, tmp_path, records):  # noqa: F811
    records.write_text("\n\n")
    with pytest.raises(UserError, match=r"records\.jsonl: holds no records"):
        train(make_config(world, **{"data.records": (str(records),)}), tmp_path / "run")


@pytest.mark.parametrize(
    ("part", "name"), [("uvit", "mid_block.attn.qkv.weight"), ("face_controlnet", "projector.weight")]
)
def test_weights_of_another_shape(world, tmp_path, part, name):  # noqa: F811
    shutil.copytree(world.full, tmp_path / "model")
    file = tmp_path / "model" / part / "model.safetensors"
    state = load_file(file)
    state[name] = state[name][:-1].contiguous()
    save_file(state, file, metadata={"format": "pt"})
    config = make_config(world, model=str(tmp_path / "model"), face_encoder="")
    with pytest.raises(UserError, match=rf"{part}/model\.safetensors: {name} has shape \[.*\], needed is"):
        train(config, tmp_path / "run")


def test_cache_of_other_weights(world, tmp_path):  # noqa: F811
    cache = tmp_path / "cache"
    assert fill_cache(make_config(world, **{"cache.dir": str(cache)}), tmp_path / "first") == 0
    shutil.copytree(world.full, tmp_path / "model")
    file = tmp_path / "model" / "image_encoder" / "model.safetensors"
    state = load_file(file)
    first = next(iter(state))
    save_file(state | {first: state[first] + 1}, file, metadata={"format": "pt"})
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    config = make_config(world, **{"cache.dir": str(cache), "model": str(tmp_path / "model")})
    with pytest.raises(UserError, match=rf"{cache}.*image_encoder.*config\.cache\.dir"):
        train(config, tmp_path / "run")
    assert before == {path.name: path.read_bytes() for path in cache.iterdir()}


def test_full_disk_before_the_start(world, tmp_path, monkeypatch):  # noqa: F811
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"run: 1000 B free, but one checkpoint takes .* KiB; make room"):
        train(make_config(world), tmp_path / "run")


def test_cache_only_needs_a_cache(world, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match=r"--cache_only: .*config\.cache\.dir"):
        fill_cache(make_config(world, **{"cache.enabled": False}), tmp_path)


def test_control_settings_without_effect_on_the_models_own_method_are_said(world, tmp_path, records, capsys):  # noqa: F811
    own = {"model": str(world.full), "face_encoder": "", "data.records": (str(records),), "control.mlp_ratio": 2.0}
    said = "without effect, as training goes on from .*s own feedface: "
    for number, (change, words) in enumerate(
        [
            ({"control.mlp_ratio": 3.0}, r"mlp_ratio 3.0 \(it has 2\.0\)"),
            ({"control.sites": ("in_blocks.0",)}, r"sites \['in_blocks.0'\] \(it has"),
            ({"control.sites": ("in_blocks.7",)}, "has no in_blocks.7"),
            ({}, None),
        ]
    ):
        assert train(make_config(world, **{**own, "train.steps": 1, **change}), tmp_path / str(number)) == 0
        out = capsys.readouterr().out
        assert re.search(said + ".*" + words, out) if words else "without effect" not in out

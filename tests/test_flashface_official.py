"""The official FlashFace: golden data, the released checkpoint's names, a converted folder that draws."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests import golden, golden_flashface
from tests.golden_check import compare, read
from tests.test_stable_diffusion import Toy

from feedface.checkpoints.flashface_official import ALIASES, convert, load_official
from feedface.common.errors import UserError
from feedface.methods.flashface_official import face_mask
from feedface.pipeline import FeedFacePipeline


@pytest.mark.parametrize("name", ["flashface_official_A", "flashface_data"])
def test_golden_arrays(name: str):
    config, arrays = read(golden.FOLDER / f"{name}.npz")
    lines, good = compare(golden_flashface.computed(config, arrays), arrays)
    assert good, "\n".join(lines)


def test_every_name_of_the_released_file_has_its_place():
    keys = json.loads(gzip.decompress((golden.FOLDER / "flashface_official.json.gz").read_bytes()))
    assert len(keys) == 2142
    with torch.device("meta"):
        backbone, method = load_official({name: torch.empty(shape) for name, shape in keys.items()})
    ours = [*backbone.parameters(), *method.parameters()]
    shared = [name for name in keys if name.startswith(("time_embedding", "head", "ori_middle"))]
    second = [name for name in shared if "self_attn_first" in name]
    once = [name for name in keys if not name.startswith(ALIASES)]
    assert len(ours) == len(once) + len(shared) - len(second)
    assert (len(method.sites), backbone.latent_channels, backbone.unet.config.in_channels) == (10, 4, 5)
    assert backbone.unet.conv_norm_out.eps == 1e-6


def small_state(width: int = 8, text: int = 16) -> dict[str, torch.Tensor]:
    """A checkpoint of the released one's form, of narrow nets."""
    keys = json.loads(gzip.decompress((golden.FOLDER / "flashface_official.json.gz").read_bytes()))

    def narrow(shape: list[int]) -> list[int]:
        return [text if size == 768 else size if size < 320 else size * 32 // 320 for size in shape]

    assert width == 8
    return {name: 0.05 * torch.randn(narrow(shape)) for name, shape in keys.items()}


def test_converted_it_draws(tmp_path: Path):
    toy = Toy(tmp_path)
    toy.save_folder(tmp_path / "base")
    torch.manual_seed(0)
    torch.save(small_state(), tmp_path / "flashface.ckpt")
    folder = convert(tmp_path / "flashface.ckpt", tmp_path / "base", tmp_path / "model")
    pipe = FeedFacePipeline.from_pretrained(folder, device="cpu")
    faces = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)) for i in range(3)]
    pictures = []
    for shown in (faces[:1], faces):
        pipe.set_faces(shown)
        pictures += pipe.generate("a man", seed=1, steps=2, size=192, progress=False)
    assert pictures[0].size == (192, 192)
    assert pictures[0].tobytes() != pictures[1].tobytes()

    def placed(box):
        return pipe.generate("a man", seed=1, steps=2, size=192, face_box=box, progress=False)[0]

    assert placed((0, 0, 0, 0)).tobytes() == pictures[1].tobytes()
    left, right = placed((0.0, 0.2, 0.5, 0.7)), placed((0.5, 0.2, 1.0, 0.7))
    assert len({one.tobytes() for one in (left, right, pictures[1])}) == 3
    with pytest.raises(UserError, match=r"^--face_box 0\.5 0 0\.2 1: is empty"):
        placed((0.5, 0, 0.2, 1))
    with pytest.raises(UserError, match="is there already"):
        convert(tmp_path / "flashface.ckpt", tmp_path / "base", tmp_path / "model")


def test_what_is_no_such_checkpoint(tmp_path: Path):
    state = small_state()
    for change, words in (
        ({"ori_encoder.0.weight": None}, "has no ori_encoder.0.weight, so is not"),
        ({"x": torch.zeros(1)}, "x has no place in FlashFace's network"),
        ({"ori_middle.0.layer1.0.bias": None}, "1 missing weights for UNet2DConditionModel"),
        ({"ref_encoder.0.bias": torch.zeros(3)}, "conv_in.bias has shape"),
    ):
        broken = {key: value for key, value in {**state, **change}.items() if value is not None}
        with pytest.raises(UserError, match=words):
            load_official(broken)


def test_a_face_box_is_a_square_or_no_constraint():
    mask = face_mask((0.3, 0.2, 0.6, 0.5), (16, 16))
    assert mask.shape == (1, 1, 16, 16) and mask.unique().tolist() == [0, 1]
    assert not face_mask((0, 0, 0, 0), (16, 16)).any()
    with pytest.raises(UserError, match="face box"):
        face_mask((0, 0, 2, 1), (16, 16))

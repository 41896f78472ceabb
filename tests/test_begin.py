"""Pictures that drawing begins with, by the command line: what is kept is kept exactly; what cannot be is said."""

import json
from pathlib import Path

import numpy as np
import pytest
from configs.mini_denseface import ATTRIBUTES
from PIL import Image

from feedface.commands.inference import main
from feedface.common.errors import UserError
from feedface.faces.face_region import composited, keep_mask, region_of
from feedface.faces.types import Face
from feedface.inference.start import inner_square, start_with_face
from feedface.synthetic.world.dataset import make_portraits

MODEL = Path(__file__).parent.parent / "models" / "mini-unet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("begin")
    for number, picture in enumerate(make_portraits([30000, 30001], [0, 1], 0, 128).images):
        Image.fromarray(picture).save(folder / f"{number}.png")
    mask = np.full((128, 128), 255, np.uint8)
    mask[40:100, 40:90] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(np.full((128, 128, 3), 128, np.uint8)).save(folder / "grey.png")
    Image.fromarray(mask[:64]).save(folder / "half.png")
    Image.fromarray(np.full((128, 128), 255, np.uint8)).save(folder / "white.png")
    Image.fromarray(np.zeros((128, 128), np.uint8)).save(folder / "black.png")
    return folder


def run(folder: Path, *args: str) -> int:
    arguments = ["--model", str(MODEL), "--prompt", "a man", "--image", str(folder / "1.png"), "--steps", "2"]
    return main([*arguments, "--device", "cpu", *map(str, args)])


def picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_in_painting_keeps_the_picture_outside_the_mask_exactly(folder, tmp_path):
    assert run(folder, "--init", folder / "0.png", "--mask", folder / "mask.png", "--output", tmp_path) == 0
    drawn, base = picture(tmp_path / "0000.png"), picture(folder / "0.png")
    kept = picture(folder / "mask.png")[..., 0] == 255
    np.testing.assert_array_equal(drawn[kept], base[kept])
    assert (drawn[~kept] != base[~kept]).any(axis=-1).mean() > 0.5
    settings = json.loads((tmp_path / "results.json").read_text())["settings"]
    assert settings["strength"] == 1.0
    assert len(settings["start"]) == 16
    # known again; another strength is another picture
    run(folder, "--init", folder / "0.png", "--mask", folder / "mask.png", "--output", tmp_path)
    assert not (tmp_path / "0001.png").exists()
    run(folder, "--init", folder / "0.png", "--strength", "0.4", "--output", tmp_path)
    assert (tmp_path / "0001.png").exists()


def test_the_face_of_a_base_picture_of_any_size_is_drawn_anew(folder, tmp_path):
    large = Image.new("RGB", (301, 203), (40, 90, 60))
    large.paste(Image.open(folder / "0.png"), (130, 40))
    large.save(tmp_path / "base.png")
    assert run(folder, "--base", tmp_path / "base.png", "--output", tmp_path / "out") == 0
    drawn, base = picture(tmp_path / "out/0000.png"), picture(tmp_path / "base.png")
    assert drawn.shape == base.shape
    changed = (drawn != base).any(axis=-1)
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    assert 130 < columns[0] < columns[-1] < 258  # inside the portrait
    assert 40 < rows[0] < rows[-1] < 168
    assert 0.02 < changed.mean() < 0.25


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--base", "grey.png"], "grey.png: no face found in the base picture"),
        (["--base", "0.png", "--mask", "half.png"], "half.png: a mask of 128x64, but the base picture has 128x128"),
        (["--base", "0.png", "--mask", "white.png"], "white.png: the mask is white everywhere"),
        (["--init", "0.png", "--mask", "black.png"], "black.png: the mask is black everywhere"),
        (["--mask", "mask.png"], "--mask: of --init or --base; give one of them"),
        (["--base", "0.png", "--init", "0.png"], "--base and --init: each is a picture to begin with"),
        (["--init", "0.png", "--strength", "0"], "--strength 0"),
        (["--strength", "1.5"], "--strength 1.5: out of range"),
        (["--mode", "inpaint"], "--mode inpaint: give the picture whose face is drawn anew as --base"),
        (["--mode", "edit"], "--mode edit: shows nobody"),
        (["--pose", "120,0,0"], "yaw 120 is out of range; use -90 to 90"),
        (["--pose", "1,2"], "--pose 1,2: give yaw,pitch,roll in degrees"),
        (["--pose", "1,2,3"], "the method feedface cannot turn heads; denseface can"),
        (["--dense"], "has no dense heads"),
        (["--people", "."], "--people: whose faces --base gets"),
        (["--init", "missing.png"], "missing.png: no such picture"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(folder, tmp_path, args, message):
    given = [str(folder / arg) if arg.endswith(".png") else arg for arg in args]
    with pytest.raises(UserError) as caught:
        run(folder, *given, "--output", str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_dense_heads_say_lies_beside_each_picture(folder, tmp_path):
    given = ["--model", str(MODEL.with_name("mini-unet-denseface")), "--prompt", "a photo of *", "--steps", "2"]
    given += ["--image", str(folder / "1.png"), "--device", "cpu", "--output", str(tmp_path), "--dense"]
    assert main(given) == 0
    height, width = picture(tmp_path / "0000.png").shape[:2]
    assert picture(tmp_path / "0000_dense.png").shape == (height, 4 * width, 3)  # it, parsing, depth, landmarks
    told = json.loads((tmp_path / "0000_dense.json").read_text())
    points = np.array(told["landmarks"])
    assert points.shape == (5, 2) and ((points >= 0) & (points <= 1)).all()
    assert set(told["attributes"]) == set(ATTRIBUTES)
    assert all(0 <= value <= 1 for value in told["attributes"].values())


# ---------------------------------------------------------------------------------------------------------- the parts


def test_white_is_kept_and_black_is_drawn_anew():
    grey = np.zeros((64, 64), np.uint8)
    grey[:, 32:] = 255
    assert keep_mask(grey, (8, 8)).tolist() == [[False] * 4 + [True] * 4] * 8
    base, drawn = (np.full((64, 64, 3), value, np.uint8) for value in (10, 200))
    out = composited(drawn, base, grey)
    assert (out[:, 32:] == 10).all()
    assert (out[:, :28] == 200).all()


def test_a_face_region_holds_the_face_and_a_little_more():
    classes = np.zeros((100, 100), np.uint8)
    classes[20:30, 30:70] = 10  # hair
    classes[30:80, 30:70] = 1
    mask = region_of(classes)
    assert (mask[30:80, 30:70] == 0).all()
    assert mask[20, 50] == 255
    assert region_of(classes, hair=True)[20, 50] == 0
    assert 0 < (mask == 0).mean() - 0.2 < 0.1
    with pytest.raises(UserError, match="finds no face"):
        region_of(np.zeros((10, 10), np.uint8))


@pytest.mark.parametrize("box", [(0, 0, 30, 30), (80, 90, 120, 130), (40, 40, 60, 60), (-10, 0, 100, 140)])
def test_the_square_around_a_face_lies_in_the_picture(box):
    x0, y0, x1, y1 = inner_square(box, (120, 140))
    assert x1 - x0 == y1 - y0
    assert 0 <= x0 < x1 <= 120
    assert 0 <= y0 < y1 <= 140


def test_a_picture_of_the_drawn_size_is_taken_whole():
    picture, mask = np.zeros((64, 64, 3), np.uint8), np.full((64, 64), 255, np.uint8)
    mask[20:40, 20:40] = 0
    face = Face(np.array([20, 20, 40, 40], np.float32), 1.0)
    start = start_with_face(picture, face, (64, 64), mask=mask)
    assert start.whole is None
    assert start.picture is picture

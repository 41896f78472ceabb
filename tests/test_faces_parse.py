"""Face parsing: the mini parser's geometry, batching, training stage and committed weights, and what is said where a
parser is missing. pyfacer's own code is tested in test_faces_facer.py."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from feedface.common.errors import UserError
from feedface.data.transforms import LAPA_VALUES
from feedface.faces.detect import Face, make_detector
from feedface.faces.parse import (
    CLASS_NAMES,
    MiniParser,
    make_parser,
    mask_box,
    mask_values,
    paste,
    pixel_square,
)
from feedface.faces.parser_net import CLASSES, ParserNet
from feedface.synthetic.train import parser as stage
from feedface.synthetic.train.common import read_metrics
from feedface.synthetic.train.parser import UNKNOWN, CropMaker, class_iou, parsing_loss
from feedface.synthetic.world import make_portraits

MINI = Path(__file__).parents[1] / "models" / "mini"


def face(*box) -> Face:
    return Face(box=np.array(box, np.float32), score=1.0)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """A parser with random weights."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "parser"
    ParserNet(crop_px=32, expand=2.0, width=4).save_pretrained(folder)
    return MiniParser(folder)


class Red(nn.Module):
    """A stand-in network: the class of a pixel is its red, in tenths."""

    crop_px, expand = 64, 2.0

    def forward(self, crops):
        return -(crops[:, :1] * 10 - torch.arange(CLASSES)[None, :, None, None]).abs() * 10


@pytest.fixture
def red(toy, monkeypatch):
    monkeypatch.setattr(toy, "network", Red())
    return toy


def red_picture(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture in five steps from left to right, classes 1, 3, 5, 7, 9, and the classes."""
    classes = np.broadcast_to(np.arange(width) * 5 // width * 2 + 1, (height, width)).astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.round(classes * 25.5)
    return image, classes


# ------------------------------------------------------------------------------------------------------------ masks


def test_mask_values_are_the_releases():
    classes = np.arange(11, dtype=np.uint8).reshape(1, 11)
    assert mask_values(classes).tolist() == [[0, 23, 46, 69, 92, 115, 139, 162, 185, 208, 231]]
    assert mask_values(classes).dtype == np.uint8 and tuple(mask_values(classes)[0]) == LAPA_VALUES
    assert len(CLASS_NAMES) == CLASSES


def test_mask_box_is_the_smallest_and_none_for_nothing():
    classes = np.zeros((20, 30), np.uint8)
    assert mask_box(classes) is None
    classes[4, 7], classes[9, 12] = 10, 1
    assert mask_box(classes) == (7, 4, 13, 10)


# --------------------------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(
    "box", [(20, 20, 60, 50), (0, 0, 30, 30), (-10.5, 30.2, 19.7, 71.3), (85, 55, 110, 90), (3.4, 2.2, 8.9, 9.1)]
)
def test_masks_lie_on_the_pictures_own_pixels_also_at_its_border(red, box):
    image, classes = red_picture(80, 100)
    (mask,) = red.parse(image, [face(*box)])
    x0, y0, x1, y1 = pixel_square(box, 2.0)
    inside = np.zeros_like(mask, bool)
    inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
    assert mask.shape == (80, 100) and mask.dtype == np.uint8
    assert not mask[~inside].any()
    # All but the pixel on each side of a step, where colours mix.
    steps = (classes != np.roll(classes, 1, 1)) | (classes != np.roll(classes, -1, 1))
    steps[:, [0, -1]] = False
    wide = steps | np.roll(steps, 1, 1) | np.roll(steps, -1, 1)
    np.testing.assert_array_equal(mask[inside & ~wide], classes[inside & ~wide])


def test_a_box_beside_the_picture_gives_an_empty_mask(red):
    (mask,) = red.parse(red_picture(80, 100)[0], [face(500, 500, 520, 530)])
    assert mask.shape == (80, 100) and not mask.any()


def test_a_face_larger_than_the_logits_is_labelled_too(red, monkeypatch):
    image, classes = red_picture(400, 300)
    monkeypatch.setattr(red, "FINEST_PX", 100)
    (mask,) = red.parse(image, [face(50, 100, 250, 300)])
    assert (mask == classes).mean() > 0.9


def test_pasting_cuts_off_what_lies_outside():
    patch = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    np.testing.assert_array_equal(paste(patch, (-1, -2, 2, 1), 4, 4)[:2, :3], [[8, 9, 0], [0, 0, 0]])
    np.testing.assert_array_equal(paste(patch, (2, 3, 5, 6), 4, 4)[3], [0, 0, 1, 2])
    assert not paste(patch, (4, 0, 7, 3), 4, 4).any()


def test_pictures_together_give_what_each_gives_alone(toy, monkeypatch):
    generator = np.random.default_rng(0)
    pictures = [
        (generator.integers(0, 256, (*size, 3), np.uint8), faces)
        for size, faces in (
            ((50, 60), [face(10, 10, 30, 35), face(30, 5, 55, 25)]),
            ((40, 40), []),
            ((90, 30), [face(-5, 40, 20, 70)]),
        )
    ]
    together = toy.parse_many(pictures)
    assert [len(masks) for masks in together] == [2, 0, 1]
    monkeypatch.setattr(toy, "batch_size", 1)
    for (image, faces), masks in zip(pictures, together, strict=True):
        for alone, mask in zip(toy.parse(image, faces), masks, strict=True):
            assert (alone == mask).mean() > 0.999  # sums in another order may tip a tie
    assert toy.parse_many([]) == []


def test_the_network_keeps_its_answers_on_disk(tmp_path):
    torch.manual_seed(0)
    network = ParserNet(crop_px=32, expand=2.0, width=4).train()
    crops = torch.rand(4, 3, 32, 32)
    network(crops)  # batch statistics of its own
    network.eval().save_pretrained(tmp_path / "parser")
    again = ParserNet.from_pretrained(tmp_path / "parser")
    assert again.config == network.config and not again.training
    with torch.no_grad():
        assert again(crops).shape == (4, CLASSES, 32, 32)
        torch.testing.assert_close(again(crops), network(crops), atol=5e-3, rtol=5e-3)
    with pytest.raises(ValueError, match="multiple of 16"):
        ParserNet(crop_px=40, expand=2.0, width=4)


# --------------------------------------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def portraits():
    return make_portraits([0, 0, 1, 1, 2, 2], [0, 1] * 3)


def test_crops_and_classes_belong_together(portraits):
    """Portraits whose colour says the class: where the crop is sharp, the classes follow from it."""
    masks = np.zeros_like(portraits.masks)
    for mask, box in zip(masks, portraits.boxes.round().astype(int), strict=True):
        mask[box[1] : box[3], box[0] : box[2]] = 1
    images = np.repeat(masks[..., None] * 255, 3, -1).astype(np.uint8)
    images[..., 2] = 128
    maker = CropMaker(type(portraits)(**{**vars(portraits), "images": images, "masks": masks}), 48, 2.0)
    crops, classes = maker.draw(32, torch.Generator().manual_seed(0))
    assert crops.shape == (32, 3, 48, 48) and classes.shape == (32, 48, 48)
    assert crops.min() >= 0 and crops.max() < 1 + 1e-5
    assert set(classes.unique().tolist()) == {0, 1, UNKNOWN}
    face_there = classes[:, 18:30, 18:30]  # the middle of the crop is the face's
    assert (face_there == 1).float().mean() > 0.99
    middle = crops[:, 0, 18:30, 18:30]
    assert middle.mean() > 0.8
    again = maker.draw(32, torch.Generator().manual_seed(0))
    assert torch.equal(crops, again[0]) and torch.equal(classes, again[1])


def test_the_loss_vanishes_for_the_truth_and_leaves_the_unknown_out():
    classes = torch.randint(CLASSES, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    perfect = 30.0 * nn.functional.one_hot(classes, CLASSES).permute(0, 3, 1, 2)
    assert parsing_loss(perfect, classes)[0] < 1e-3
    assert parsing_loss(-perfect, classes)[0] > 1
    unknown = classes.clone()
    unknown[:, :4] = UNKNOWN
    wrong_there = perfect.clone()
    wrong_there[:, :, :4] = perfect[:, :, :4].flip(1)
    assert parsing_loss(wrong_there, unknown)[0] < 1e-3 < parsing_loss(wrong_there, classes)[0]


def test_class_iou():
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    found = np.array([[0, 1, 1, 1]], np.uint8)
    np.testing.assert_allclose(class_iou(found, truth)[:3], [1 / 2, 2 / 3, 1])


def test_the_stage_trains_measures_and_leaves_its_component(tmp_path, monkeypatch):
    from feedface.synthetic.train.__main__ import read_config

    monkeypatch.setattr(stage, "CHECKED_PX", (32, 48))
    changes = [
        "identities=4",
        "per_identity=2",
        "image_px=48",
        "crop_px=32",
        "width=4",
        "steps=2",
        "batch_size=8",
        "small.crop_px=16",
    ]
    overrides = [f"--config.parser.{change}" for change in (*changes, "device=cpu")]
    config = read_config("cpu", [*overrides, "--config.world.held_out.identities=3"])
    stage.run(config, tmp_path)
    record = read_metrics(tmp_path / "parser")
    assert record["training"]["steps"] == 4  # two on small crops
    assert set(record["metrics"]) == {"miou_32px", "miou_48px", *CLASS_NAMES}
    image = make_portraits([7], [0]).images[0]
    (mask,) = make_parser("mini", tmp_path / "bundle").parse(image, [face(20, 20, 45, 50)])
    assert mask.shape == image.shape[:2]


# ----------------------------------------------------------------------------------------------------- the committed


@pytest.fixture(scope="module")
def mini():
    return make_parser("auto", MINI), make_detector("mini", MINI / "faces")


@pytest.mark.parametrize(("size", "least"), [(96, 0.74), (128, 0.78)])
def test_the_committed_parser_labels_people_it_has_never_seen(mini, size, least):
    parser, detector = mini
    portraits = make_portraits(np.arange(31_000, 31_024), [0, 1] * 12, size=size)
    pictures = [(image, detector.detect(image)[:1]) for image in portraits.images]
    assert parser.name == "mini" and all(faces for _, faces in pictures)
    masks = np.stack([found[0] for found in parser.parse_many(pictures)])
    iou = class_iou(masks, portraits.masks)
    assert iou.mean() > least and iou[[0, 1, 10]].min() > 0.85, dict(zip(CLASS_NAMES, iou.round(3), strict=True))


def test_each_of_two_faces_gets_its_own_mask(mini):
    """Two portraits side by side in a larger picture: no pixel of the neighbour."""
    parser, detector = mini
    portraits = make_portraits([31_001, 31_002], [0, 1], size=96)
    canvas = np.full((130, 240, 3), 90, np.uint8)
    truth = np.zeros((2, 130, 240), np.uint8)
    for row, left in enumerate((12, 130)):
        canvas[20:116, left : left + 96] = portraits.images[row]
        truth[row, 20:116, left : left + 96] = portraits.masks[row]
    faces = sorted(detector.detect(canvas), key=lambda found: found.box[0])
    assert len(faces) == 2
    for mask, true in zip(parser.parse(canvas, faces), truth, strict=True):
        overlap = ((mask > 0) & (true > 0)).sum() / ((mask > 0) | (true > 0)).sum()
        assert overlap > 0.85


# -------------------------------------------------------------------------------------------------- what is missing


def test_a_missing_mini_parser_is_named(tmp_path):
    with pytest.raises(UserError, match=r"parser: no face parser there; it comes with models/mini"):
        make_parser("mini", tmp_path)
    with pytest.raises(UserError, match="name its folder"):
        make_parser("mini")
    with pytest.raises(UserError, match="'other': not the name of a face parser"):
        make_parser("other")
    (tmp_path / "parser").mkdir()
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        make_parser("auto", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("facer") is not None, reason="pyfacer is installed")
def test_missing_facer_says_what_to_install(tmp_path):
    for arguments in ({"name": "facer"}, {"name": "auto"}, {"model_root": tmp_path}, {"weights": tmp_path / "a.pt"}):
        with pytest.raises(UserError, match=r"needs the package pyfacer==0\.0\.5") as caught:
            make_parser(**arguments)
        assert "\n" not in str(caught.value)

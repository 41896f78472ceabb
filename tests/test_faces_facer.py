"""pyfacer's own code under `FacerParser`: the real detector and the real warps, around weights that are made up here.

torchvision has no build for the CPU torch of the tests, so these run in an environment of their own, and are skipped
elsewhere. Its operators are not needed, only that it can be imported, see `facer`. To make one beside .venv:

    .venv/bin/python -m venv /tmp/facer-venv
    .venv/bin/python -c "import site; print(site.getsitepackages()[0])" > \
        "$(/tmp/facer-venv/bin/python -c 'import site; print(site.getsitepackages()[0])')/main.pth"
    /tmp/facer-venv/bin/pip install --no-deps \
        pyfacer==0.0.5 torchvision==0.28.0 timm==1.0.31 validators==0.36.0 requests ipywidgets==8.1.9
    /tmp/facer-venv/bin/python -m pytest tests/test_faces_facer.py
"""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from feedface.common.errors import UserError
from feedface.faces.detect import Face
from feedface.faces.farl import DETECTOR_URL, PARSER_URL, FacerParser
from feedface.faces.parse import make_parser

if importlib.util.find_spec("facer") is None:
    pytest.skip("pyfacer is not installed", allow_module_level=True)

# Facer's standard face (points of the aligned 448 px crop), to know where each point of a picture lands in it.
STANDARD = np.array([[196, 226], [316, 226], [256, 286], [220, 360.4], [292, 360.4]], np.float32) / 512
FACE_PX = 120
PARSER_FILE, DETECTOR_FILE = (url.rsplit("/", 1)[1] for url in (PARSER_URL, DETECTOR_URL))


class Bands(nn.Module):
    """In the format of farl/lapa/448: (logits [n, 11, 448, 448], features). A pixel's class is its red, in tenths."""

    def forward(self, images: torch.Tensor):
        wanted = torch.arange(11, device=images.device)[None, :, None, None]
        return -(images[:, :1] * 10 - wanted).abs() * 50, images


@pytest.fixture(scope="module", autouse=True)
def facer():
    """torchvision refuses to be imported unless the schemas of its compiled operators are there."""
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    yield pytest.importorskip("facer")
    library._destroy()


@pytest.fixture(scope="module")
def weights(facer, tmp_path_factory):
    """A torch.hub folder with weights of the right form: TorchScript for the parser, random ones for the detector."""
    from facer.face_detection.retinaface import RetinaFace, cfg_mnet

    hub = tmp_path_factory.mktemp("hub")
    (hub / "checkpoints").mkdir()
    torch.jit.script(Bands()).save(hub / "checkpoints" / PARSER_FILE)
    torch.manual_seed(0)
    # The real file was saved from several GPUs.
    state = {f"module.{key}": value for key, value in RetinaFace(cfg_mnet).state_dict().items()}
    torch.save(state, hub / "checkpoints" / DETECTOR_FILE)
    return hub


@pytest.fixture
def hub(weights, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(weights))
    return weights


def picture(height=300, width=400):
    """Red steps from left to right, classes 0...10, and the true class of every pixel."""
    classes = np.broadcast_to(np.arange(width) * 11 // width, (height, width)).astype(np.uint8)
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.round(classes * 25.5)
    return image, classes


def face(left, top, landmarks=True):
    box = np.array([left, top, left + FACE_PX, top + FACE_PX], np.float32)
    points = (STANDARD * FACE_PX + (left, top)).astype(np.float32) if landmarks else None
    return Face(box=box, score=1.0, landmarks=points)


def test_the_parser_labels_every_face_at_the_pictures_own_pixels(hub):
    image, classes = picture()
    parser = make_parser("facer")
    masks = parser.parse(image, [face(100, 80), face(230, 150)])
    assert len(masks) == 2
    for mask, (left, top) in zip(masks, ((100, 80), (230, 150)), strict=True):
        assert mask.shape == (300, 400) and mask.dtype == np.uint8
        inside = np.s_[top : top + FACE_PX, left : left + FACE_PX]
        assert (mask[inside] == classes[inside]).mean() > 0.97  # all but the pixels beside a step
    assert parser.name == "facer" and parser.parse(image, []) == []


def test_an_all_black_picture_is_no_error(hub):
    (mask,) = FacerParser().parse(np.zeros((200, 200, 3), np.uint8), [face(40, 40)])
    assert not mask.any()


def test_pictures_of_several_sizes(hub):
    first, second = picture(), picture(200, 500)
    parser = FacerParser()
    found = parser.parse_many([(first[0], [face(100, 80)]), (second[0], []), (second[0], [face(200, 40)])])
    assert [len(masks) for masks in found] == [1, 0, 1]
    np.testing.assert_array_equal(found[2][0], parser.parse(second[0], [face(200, 40)])[0])


def test_a_large_picture_is_parsed_smaller_and_answered_at_its_size(hub, monkeypatch):
    image, classes = picture()
    monkeypatch.setattr("feedface.faces.farl.LONGEST_PX", 200)
    (mask,) = FacerParser().parse(image, [face(100, 80)])
    inside = np.s_[80:200, 100:220]
    assert mask.shape == (300, 400) and (mask[inside] == classes[inside]).mean() > 0.9


def test_faces_without_landmarks_go_through_facers_detector(hub, facer, monkeypatch):
    """Random weights find nothing or anything: its answer is checked for form, then replaced by a known one."""
    image, classes = picture()
    parser = FacerParser()
    masks = parser.parse(image, [face(100, 80, landmarks=False)])
    assert masks[0].shape == (300, 400)

    detector = parser._load_detector()
    detector.threshold = 0.0
    with torch.no_grad():
        found = detector(torch.zeros(1, 3, 64, 64))
    assert found["rects"].shape[1:] == (4,) and found["points"].shape[1:] == (5, 2) and len(found["rects"])

    known = face(104, 82)
    answer = {"rects": torch.tensor(known.box)[None], "points": torch.tensor(known.landmarks)[None]}
    monkeypatch.setattr(parser, "_detector", lambda pixels: answer)
    near, far = parser.parse(image, [face(100, 80, landmarks=False), face(270, 170, landmarks=False)])
    inside = np.s_[80:200, 100:220]
    assert (near[inside] == classes[inside]).mean() > 0.97
    assert not far.any()
    monkeypatch.setattr(parser, "_detector", lambda pixels: {"rects": torch.zeros(0), "points": torch.zeros(0)})
    assert not parser.parse(image, [face(100, 80, landmarks=False)])[0].any()


def test_missing_and_broken_weights_are_named(hub, tmp_path, monkeypatch):
    broken = tmp_path / "broken.pt"
    broken.write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"broken\.pt: not a TorchScript file"):
        FacerParser(broken)
    with pytest.raises(UserError, match=r"other\.pt: no such file"):
        FacerParser(tmp_path / "other.pt")
    parser = FacerParser(detector_path=broken)
    with pytest.raises(UserError, match=r"broken\.pt: cannot be loaded as facer's face detector"):
        parser.parse(picture()[0], [face(100, 80, landmarks=False)])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(UserError, match="download https://github") as caught:
        FacerParser()
    assert str(tmp_path / "checkpoints" / PARSER_FILE) in str(caught.value) and "\n" not in str(caught.value)
    parser = FacerParser(hub / "checkpoints" / PARSER_FILE)
    with pytest.raises(UserError, match=r"five landmarks.*mobilenet0\.25_Final\.pth"):
        parser.parse(picture()[0], [face(100, 80, landmarks=False)])

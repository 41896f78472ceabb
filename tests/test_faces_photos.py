"""Photos: YuNet and recognisers beside it, where their weights come from, turned heads, HEIC.

Checks on real weights and photos need `../shared` and are skipped without it.
"""

import hashlib
import os
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.common.places import CHECKOUT
from feedface.faces import recogniser, weights
from feedface.faces.candidates import find_turned
from feedface.faces.crop import crop_upright
from feedface.faces.detect import check_detector, detector_files, make_detector, resolve_detector
from feedface.faces.references import find_faces
from feedface.faces.types import Face
from feedface.preparation.scan import scan

SHARED = Path(os.environ.get("FEEDFACE_SHARED", CHECKOUT.parent / "shared"))
YUNET = SHARED / "weights/yunet/face_detection_yunet_2023mar.onnx"
EDGEFACE = SHARED / "weights/edgeface/edgeface_xs.onnx"
POINTS = np.float32([[85, 90], [115, 90], [100, 100], [90, 120], [110, 120]])
real = pytest.mark.skipif(not YUNET.is_file(), reason="real weights are not here")


@pytest.fixture(autouse=True)
def faces(tmp_path, monkeypatch):
    """An empty `models/faces/`, and nothing in the hub's cache."""
    folder = tmp_path / "models/faces"
    folder.mkdir(parents=True)
    for module in (weights, recogniser):
        monkeypatch.setattr(module, "faces_folder", lambda: folder)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: None)
    return folder


def test_auto_is_yunet_where_it_is_and_takes_the_recogniser_beside_it(faces):
    assert resolve_detector("auto")[0] == "opencv"
    (faces / weights.YUNET.file).touch()
    assert resolve_detector("auto")[0] == resolve_detector("yunet")[0] == "yunet"
    (faces / weights.SFACE.file).touch()
    assert resolve_detector("auto")[0] == "yunet+sface"
    (faces / "another.onnx").touch()
    name, root = resolve_detector("yunet")
    assert name == "yunet+another"
    assert [file.name for file in detector_files(name, root)] == [weights.YUNET.file, "another.onnx"]
    assert resolve_detector("opencv")[0] == "opencv" and detector_files("opencv", root) == []


def test_weights_are_fetched_when_asked_for_and_checked(faces, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be downloaded.*https://huggingface.co/opencv/face_detection_yunet"):
        make_detector("yunet")  # offline
    asked = []

    def download(repo, file):
        asked.append((repo, file))
        (tmp_path / file).write_bytes(b"another file")
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(UserError, match=r"not the file it should be \(SHA-256 "):
        make_detector("yunet")
    assert asked == [("opencv/face_detection_yunet", weights.YUNET.file)]
    mine = weights.Weights("mine.onnx", "a/b", hashlib.sha256(b"another file").hexdigest())
    assert weights.fetch_weights(mine).read_bytes() == b"another file"


def arcface(path, scales_itself=False, outputs=1):
    """A recogniser whose embedding is the crop's mean colour."""
    nodes, last = [], "input"
    if scales_itself:
        for name, kind, value in (("_minusscalar0", "Sub", 127.5), ("_mulscalar0", "Mul", 1 / 127.5)):
            constant = helper.make_tensor("value", TensorProto.FLOAT, [], [value])
            nodes.append(helper.make_node("Constant", [], [f"c{name}"], value=constant))
            nodes.append(helper.make_node(kind, [last, f"c{name}"], [name], name=name))
            last = name
    nodes.append(helper.make_node("ReduceMean", [last], ["out"], axes=[2, 3], keepdims=0))
    nodes += [helper.make_node("Identity", ["out"], [f"out{i}"]) for i in range(1, outputs)]
    names = ["out", *(f"out{i}" for i in range(1, outputs))]
    graph = helper.make_graph(
        nodes,
        "recogniser",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 112, 112])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in names],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9), path)


def test_any_arcface_like_network_is_fed_rgb_in_the_scale_it_was_trained_in(faces):
    points = np.float32([[30, 40], [80, 40], [55, 65], [35, 90], [75, 90]])
    bgr = np.full((128, 112, 3), (10, 127, 250), np.uint8)
    found = []
    for own in (False, True):
        arcface(faces / "one.onnx", scales_itself=own)
        made = recogniser.make_recogniser("one")
        found.append(made.embed(bgr, points))
        assert made.name == "one"
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)
    assert found[0][0] > found[0][1] + 0.2 > found[0][2] + 0.4  # red first
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-6)


def test_what_is_no_recogniser_is_refused(faces):
    (faces / "text.onnx").write_text("not a network")
    arcface(faces / "two.onnx", outputs=2)
    for name in ("text", "two", str(faces / "two.onnx")):
        with pytest.raises(UserError, match="not a face recogniser in ONNX"):
            recogniser.make_recogniser(name)
    with pytest.raises(UserError, match=r"no face recogniser 'none': use sface, the path"):
        recogniser.make_recogniser("none")


def test_a_face_of_a_turned_picture_is_reported_where_it_is():
    picture = np.zeros((80, 120, 3), np.uint8)
    picture[20:24, 90:110] = 255  # lies on its side: 20 wide, 4 high

    def find(image):
        rows, columns = np.nonzero(image[..., 0] > 128)
        box = np.float32([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        upright = box[3] - box[1] > box[2] - box[0]
        points = np.float32([[x, y] for x, y in zip(columns[:5], rows[:5], strict=True)])
        return [Face(box, 0.9, points)] if upright else []

    for turn in (90, 270):
        [face] = find_turned(find, picture, (180, turn))
        middle = (face.box[:2] + face.box[2:]) / 2
        np.testing.assert_allclose(middle, (100, 22), atol=1)
        np.testing.assert_allclose(face.box[2:] - face.box[:2], (4, 20), atol=1)  # as it is upright
        assert (picture[tuple(face.landmarks.round().astype(int).T[::-1])] == 255).all()


@pytest.mark.parametrize("tilt", [-90, 45, 170])
def test_a_tilted_head_is_cropped_upright_and_one_that_is_not_as_ever(tilt):
    picture = np.zeros((200, 200, 3), np.uint8)
    cv2.rectangle(picture, (80, 60), (120, 80), (255, 255, 255), -1)  # a forehead
    matrix = cv2.getRotationMatrix2D((100, 100), -tilt, 1)
    upright = crop_upright(picture, (60, 60, 140, 140), POINTS)
    points = POINTS @ matrix[:, :2].T + matrix[:, 2]
    tilted = crop_upright(cv2.warpAffine(picture, matrix, (200, 200)), (60, 60, 140, 140), points)
    assert tilted.shape == upright.shape
    assert np.abs(tilted.astype(int) - upright).mean() < 4


def test_heic_is_read(tmp_path):
    pytest.importorskip("pillow_heif").register_heif_opener()
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "photo.heic")
    found = read_image(tmp_path / "photo.heic")
    assert found.shape == (48, 64, 3)
    assert np.abs(found.mean((0, 1)) - (200, 30, 30)).max() < 6


def test_heic_without_its_package_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    monkeypatch.setattr("feedface.common.images._all_plugins", Image.init)
    monkeypatch.setattr(Image, "OPEN", {name: value for name, value in Image.OPEN.items() if name != "HEIF"})
    with pytest.raises(UserError, match="a HEIC picture; to read it: pip install pillow-heif"):
        read_image(tmp_path / "photo.heic")


def test_what_file_managers_leave_is_left_out(tmp_path):
    for name in ("a.jpg", "b/photo.HEIC", "b/@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "__MACOSX/a.jpg", "#recycle/old.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = scan(tmp_path / "photos", tmp_path / "out")
    assert found.pictures == ["a.jpg", "b/photo.HEIC"]
    assert found.left_out["of other programs"] == 3


# ------------------------------------------------------------------------------------------- real weights, real photos


@pytest.fixture(scope="module")
def photos():
    return {name: read_image(SHARED / f"photos/{name}.jpg") for name in ("1433_0", "1433_3", "1540_2")}


@real
def test_yunet_finds_one_face_however_it_is_turned(faces, photos):
    (faces / YUNET.name).symlink_to(YUNET)
    detector = make_detector("yunet")
    assert detector.name == "yunet" and not detector.has_recogniser
    photo = photos["1433_0"]
    [face] = detector.detect(photo)
    assert 0.85 < face.score <= 1 and face.landmarks[0, 0] < face.landmarks[1, 0]
    [turned] = detector.detect(np.ascontiguousarray(np.rot90(photo)))  # what was at x is now at height x from below
    middle, there = (face.box[:2] + face.box[2:]) / 2, (turned.box[:2] + turned.box[2:]) / 2
    assert np.abs(there - (middle[1], photo.shape[1] - middle[0])).max() < 10
    [reference], notices = find_faces([np.ascontiguousarray(np.rot90(photo))], detector)
    [straight], _ = find_faces([photo], detector)
    side = min(reference.crop.shape[0], straight.crop.shape[0])
    crops = [np.asarray(Image.fromarray(one.crop).resize((side, side)), float) for one in (reference, straight)]
    assert np.abs(crops[0] - crops[1]).mean() < 25 and not notices
    x0, y0, x1, y1 = face.box.astype(int)
    assert len(detector.detect(photo[y0:y1, x0:x1])) == 1  # fills the picture
    assert detector.detect(np.full((300, 200, 3), 90, np.uint8)) == []


@real
def test_a_recogniser_beside_yunet_tells_people_apart(faces, photos):
    (faces / YUNET.name).symlink_to(YUNET)
    (faces / EDGEFACE.name).symlink_to(EDGEFACE)
    detector = make_detector("auto")
    assert detector.name == "yunet+edgeface_xs" and detector.has_recogniser
    anna, again, other = (detector.detect(photo)[0].embedding for photo in photos.values())
    assert anna @ again > 0.4 > 0.3 > anna @ other
    check_detector("yunet+edgeface_xs", faces)
    both = np.concatenate([photo[:684, :684] for photo in (photos["1540_2"], photos["1433_3"])], axis=1)
    [_, reference], _ = find_faces([photos["1433_0"], both], detector)  # the one who is in both
    assert reference.box[0] > 684 and reference.faces_found == 2

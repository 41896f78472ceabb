"""Detectors behind one interface: coordinates, order, colours, missing and broken packs, devices.

The insightface packs here are ONNX files with made-up networks: they answer what a test tells them to.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from feedface.common.errors import UserError
from feedface.faces import detect
from feedface.faces.detect import Face, InsightFaceDetector, make_detector
from feedface.faces.identity import PackRecogniser, cosine_similarity
from feedface.faces.opencv import OpenCVDetector
from feedface.synthetic.train.detector import STRIDES, DetectorFile, anchors
from feedface.synthetic.train.export import export_onnx

INPUT_PX = 64
SMALL, LARGE = (8.0, 8.0, 24.0, 28.0), (20.0, 16.0, 60.0, 56.0)  # boxes in the detector's 64 x 64 input


class TwoFaces(nn.Module):
    """Answers with the boxes SMALL and LARGE; `score(image [1, 3, 64, 64]) -> scalar` decides how surely."""

    def __init__(self, score):
        super().__init__()
        self.score = score
        places, _, strides = anchors(INPUT_PX)
        self.register_buffer("certain", torch.zeros(len(places), 1))
        distances, points = torch.zeros(len(places), 4), torch.zeros(len(places), 5, 2)
        for anchor, box in ((3, SMALL), (20, LARGE)):
            box = torch.tensor(box)
            self.certain[anchor] = 1
            distances[anchor] = torch.cat([places[anchor] - box[:2], box[2:] - places[anchor]]) / strides[anchor]
            wanted = box[:2] + (box[2:] - box[:2]) * torch.linspace(0.3, 0.7, 5)[:, None]
            points[anchor] = (wanted - places[anchor]) / strides[anchor]
        self.register_buffer("distances", distances)
        self.register_buffer("points", points.flatten(1))

    def forward(self, image):
        counts = [2 * (INPUT_PX // stride) ** 2 for stride in STRIDES]
        answers = (self.certain * self.score(image), self.distances, self.points)
        return tuple(part for answer in answers for part in answer.split(counts))


class Means(nn.Module):
    """A recogniser whose embedding is the crop's mean colour."""

    def forward(self, crop):
        return crop.mean((2, 3)) + 2


def write_pack(root, name, score, recogniser=True):
    folder = root / "models" / name
    export_onnx(TwoFaces(score), torch.zeros(1, 3, INPUT_PX, INPUT_PX), folder / "det.onnx", list(DetectorFile.OUTPUTS))
    if recogniser:
        export_onnx(Means(), torch.zeros(1, 3, 112, 112), folder / "rec.onnx", ["embedding"])


def redness(image):
    return image[:, 0].amax() - image[:, 2].amax()


def grey_corner(image):
    return 0.9 - 20 * image[:, :, 0, 0].abs().mean()


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    root = tmp_path_factory.mktemp("packs")
    write_pack(root, "red", redness)
    write_pack(root, "framed", grey_corner, recogniser=False)
    return root


def picture(height, width, colour):
    return np.full((height, width, 3), colour, np.uint8)


class Flat(nn.Module):
    """As many numbers as asked for, whatever the picture shows."""

    def __init__(self, numbers):
        super().__init__()
        self.numbers = numbers

    def forward(self, image):
        return image.mean((1, 2, 3))[:, None].expand(1, self.numbers) + 0


def test_the_five_files_of_buffalo_l_are_told_apart_by_the_library(tmp_path):
    """Its names, input sizes and numbers of outputs: only detector and recogniser stay in memory."""
    folder = tmp_path / "models/buffalo_l"
    export_onnx(
        TwoFaces(redness), torch.zeros(1, 3, INPUT_PX, INPUT_PX), folder / "det_10g.onnx", list(DetectorFile.OUTPUTS)
    )
    export_onnx(Means(), torch.zeros(1, 3, 112, 112), folder / "w600k_r50.onnx", ["embedding"])
    for name, side, numbers in (("2d106det", 192, 212), ("1k3d68", 192, 3309), ("genderage", 96, 3)):
        export_onnx(Flat(numbers), torch.zeros(1, 3, side, side), folder / f"{name}.onnx", ["fc1"])
    detector = InsightFaceDetector("buffalo_l", tmp_path)
    assert set(detector._analysis.models) == {"detection", "recognition"}
    faces = detector.detect(picture(INPUT_PX, INPUT_PX, (255, 0, 0)))
    assert len(faces) == 2 and faces[0].landmarks.shape == (5, 2)
    assert np.linalg.norm(faces[0].embedding) == pytest.approx(1, abs=1e-5)
    assert detector.detect(picture(INPUT_PX, INPUT_PX, (0, 0, 255))) == []


def test_faces_are_in_picture_pixels_and_the_largest_comes_first(packs):
    faces = InsightFaceDetector("red", packs).detect(picture(64, 128, (255, 0, 0)))  # fitted in at half its size
    assert len(faces) == 2
    np.testing.assert_allclose(faces[0].box, np.array(LARGE) * 2, atol=1e-3)
    np.testing.assert_allclose(faces[1].box, np.array(SMALL) * 2, atol=1e-3)
    np.testing.assert_allclose(faces[0].landmarks[[0, 4]], [[64, 56], [96, 88]], atol=1e-3)
    assert faces[0].embedding.dtype == np.float32
    assert np.linalg.norm(faces[0].embedding) == pytest.approx(1, abs=1e-5)


def test_pictures_are_rgb(packs):
    detector = InsightFaceDetector("red", packs)
    assert len(detector.detect(picture(64, 64, (255, 0, 0)))) == 2
    assert detector.detect(picture(64, 64, (0, 0, 255))) == []
    red, orange = (detector.detect(picture(64, 64, colour))[0].embedding for colour in ((255, 0, 0), (255, 127, 0)))
    assert red[0] > red[1] == pytest.approx(red[2])
    assert orange[1] > orange[2]


def test_a_second_look_at_half_the_size_reports_boxes_in_the_original_picture(packs):
    faces = InsightFaceDetector("framed", packs).detect(picture(64, 64, (255, 0, 0)))
    assert len(faces) == 2
    # The frame is as wide as half the picture: detector pixels count double, from -32 on.
    np.testing.assert_allclose(faces[0].box, np.array(LARGE) * 2 - 32, atol=1e-3)
    np.testing.assert_allclose(faces[0].landmarks[0], [32, 24], atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1), (2, 3)])
@pytest.mark.parametrize("name", ["red", "opencv"])
def test_pictures_too_thin_for_a_face_have_none(packs, name, shape):
    assert make_detector(name, packs).detect(picture(*shape, (0, 0, 255))) == []


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), "u1")]
)
def test_anything_but_a_colour_picture_is_refused(packs, image):
    for detector in (InsightFaceDetector("red", packs), OpenCVDetector()):
        with pytest.raises(ValueError, match="uint8"):
            detector.detect(image)


def test_loading_and_detecting_print_nothing(packs, capfd):
    InsightFaceDetector("red", packs).detect(picture(64, 64, (255, 0, 0)))
    assert capfd.readouterr() == ("", "")


def test_a_folder_of_the_packs_name_in_the_working_directory_does_not_win(packs, tmp_path, monkeypatch):
    (tmp_path / "red").mkdir()
    monkeypatch.chdir(tmp_path)
    assert InsightFaceDetector("red", packs).detect(picture(64, 64, (255, 0, 0)))


def test_auto_takes_the_models_pack_then_buffalo_then_opencv(tmp_path, monkeypatch):
    home, bundle = tmp_path / "home", tmp_path / "faces"
    monkeypatch.setattr(detect, "INSIGHTFACE_ROOT", home)
    monkeypatch.setattr(detect, "find_weights", lambda weights: None)  # YuNet's: test_faces_photos.py
    assert make_detector("auto", bundle).name == "opencv"
    write_pack(home, "buffalo_l", redness)
    assert make_detector("auto", bundle).name == "buffalo_l"
    write_pack(bundle, "mini", redness)
    assert make_detector("auto", bundle).name == "mini"
    assert make_detector("auto").name == "buffalo_l"
    assert make_detector("opencv", bundle).name == "opencv"
    assert make_detector("buffalo_l", bundle).name == "buffalo_l"


def test_a_missing_pack_is_named_with_its_place_source_and_licence(tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "INSIGHTFACE_ROOT", tmp_path / "home")
    (tmp_path / "home/models/buffalo_l").mkdir(parents=True)  # empty: as good as missing
    with pytest.raises(UserError) as error:
        make_detector("buffalo_l")
    for part in (str(tmp_path / "home/models/buffalo_l"), "buffalo_l.zip", "github.com", "non-commercial", "opencv"):
        assert part in str(error.value)
    with pytest.raises(UserError, match="models/mini"):
        make_detector("mini", tmp_path)


@pytest.mark.parametrize("name", ["../../etc", "a/b", ""])
def test_a_pack_name_is_a_plain_name(tmp_path, name):
    with pytest.raises(UserError, match="not the name of a"):
        make_detector(name, tmp_path)


def test_a_broken_pack_is_a_user_error(packs, tmp_path):
    broken = tmp_path / "models/broken/det.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"not an onnx file")
    with pytest.raises(UserError, match="broken"):
        make_detector("broken", tmp_path)
    headless = tmp_path / "models/headless"
    headless.mkdir()
    (headless / "rec.onnx").write_bytes((packs / "models/red/rec.onnx").read_bytes())
    with pytest.raises(UserError, match="is a face detector"):
        make_detector("headless", tmp_path)


def test_a_pack_one_folder_too_deep_is_found(packs, tmp_path):
    """As antelopev2's zip file unpacks."""
    shutil.copytree(packs / "models/red", tmp_path / "models/deep/deep")
    assert make_detector("deep", tmp_path).detect(picture(64, 64, (255, 0, 0)))
    assert detect.find_pack("deep", tmp_path) == tmp_path / "models/deep/deep"


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 6e4])
@pytest.mark.parametrize("part", ["distances", "points"])
def test_boxes_and_landmarks_that_are_no_numbers(tmp_path, part, number):
    class Broken(TwoFaces):
        def __init__(self, score):
            super().__init__(score)
            getattr(self, part)[20] = number  # the large face's

    folder = tmp_path / "models/broken"
    image = torch.zeros(1, 3, INPUT_PX, INPUT_PX)
    export_onnx(Broken(redness), image, folder / "det.onnx", list(DetectorFile.OUTPUTS))
    export_onnx(Means(), torch.zeros(1, 3, 112, 112), folder / "rec.onnx", ["embedding"])
    faces = InsightFaceDetector("broken", tmp_path).detect(picture(64, 64, (255, 0, 0)))
    small = faces[-1]
    np.testing.assert_allclose(small.box, SMALL, atol=1e-3)
    assert small.embedding is not None
    if part == "distances":
        assert len(faces) == 1
    else:
        assert len(faces) == 2
        assert faces[0].landmarks is None or np.isfinite(faces[0].landmarks).all()


def test_usable_faces():
    image = picture(40, 60, 0)
    boxes = {
        "large": (-10, -5, 50, 45),
        "small": (5, 5, 15, 15),
        "nan": (5, 5, np.nan, 15),
        "empty": (5, 5, 5, 15),
        "inside out": (15, 5, 5, 15),
        "beside": (61, 5, 71, 15),
        "huge": (-1000, -1000, 1000, 1000),
    }
    faces = {name: Face(np.array(box, np.float32), 0.9) for name, box in boxes.items()}
    kept = detect.usable(list(faces.values())[::-1], image)
    assert kept == [faces["large"], faces["small"]]


@pytest.mark.parametrize("name", ["opencv", "red"])
def test_an_opencv_that_needs_a_window_is_one_line(packs, tmp_path, name):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    code = (
        "from feedface.common.errors import run_cli\nfrom feedface.faces.detect import make_detector\n"
        f"run_cli(lambda: make_detector({name!r}, {str(packs)!r}) and 0)"
    )
    path = os.pathsep.join([str(tmp_path), "libs"])
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "libGL.so.1" in line and "opencv-python-headless" in line


def test_insightface_that_is_missing_is_one_line(packs, monkeypatch):
    monkeypatch.setitem(sys.modules, "insightface.app", None)
    with pytest.raises(UserError, match=r"pip install --no-deps -r requirements-insightface\.txt"):
        InsightFaceDetector("red", packs)


def test_a_gpu_that_onnxruntime_does_not_have_is_an_error(packs, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(UserError, match="onnxruntime-gpu"):
        InsightFaceDetector("red", packs, device="cuda")


def test_a_gpu_that_is_asked_for_and_not_used_is_an_error(packs, monkeypatch):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a GPU")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(UserError, match="runs it with CPUExecutionProvider"):
        InsightFaceDetector("red", packs, device="cuda:0")


@pytest.mark.parametrize("name", ["Tom_Hanks_54745", "t1"])
def test_opencv_finds_faces_in_real_pictures(name):
    from insightface.data import get_image

    image = np.ascontiguousarray(get_image(name)[..., ::-1])
    faces = OpenCVDetector().detect(image)
    assert faces
    assert [face.area for face in faces] == sorted((face.area for face in faces), reverse=True)
    if name == "Tom_Hanks_54745":  # an aligned crop of 112 x 112: the face lies in its middle
        assert len(faces) == 1
        np.testing.assert_allclose((faces[0].box[:2] + faces[0].box[2:]) / 2, 56, atol=10)
        assert 80 < faces[0].box[2] - faces[0].box[0] < 112


def test_opencv_looks_again_at_a_face_that_fills_the_picture():
    from insightface.data import get_image

    image = np.ascontiguousarray(get_image("t1")[..., ::-1])
    whole = OpenCVDetector().detect(image)[0]
    x0, y0, x1, y1 = 447, 285, 579, 416  # inside the box
    [face] = OpenCVDetector().detect(np.ascontiguousarray(image[y0:y1, x0:x1]))
    np.testing.assert_allclose(face.moved(x0, y0).box, whole.box, atol=12)


def test_opencv_finds_nothing_where_nothing_is():
    noise = np.random.default_rng(0).integers(0, 255, (300, 200, 3), dtype=np.uint8)
    assert OpenCVDetector().detect(noise) == []


def test_recogniser_embeds_the_largest_face(packs):
    recogniser = PackRecogniser(InsightFaceDetector("red", packs))
    embedding = recogniser.embed(picture(64, 64, (255, 0, 0)))
    assert cosine_similarity(embedding, embedding) == pytest.approx(1)
    assert recogniser.embed(picture(64, 64, (0, 0, 255))) is None
    with pytest.raises(UserError, match="has no face recogniser"):
        PackRecogniser(InsightFaceDetector("framed", packs))
    with pytest.raises(UserError, match="has no face recogniser"):
        PackRecogniser(OpenCVDetector())


def test_cosine_similarity():
    a, b = np.array([[1.0, 0], [0, 2], [0, 0]]), np.array([3.0, 3])
    np.testing.assert_allclose(cosine_similarity(a, b), [0.5**0.5, 0.5**0.5, 0])


def test_face_area():
    assert Face(np.array([1, 2, 4, 8], np.float32), 1.0).area == 18


def test_importing_the_interface_loads_no_heavy_library():
    code = (
        "import sys, feedface.faces.detect, feedface.faces.identity\n"
        "assert not {'cv2', 'insightface', 'onnxruntime', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": "libs"})

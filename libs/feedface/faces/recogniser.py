"""Recognisers beside a detector that has none: any network that was trained as ArcFace's, on faces aligned by five
points.

Both classes here offer `name` and `embed(bgr, landmarks)`: a picture uint8 [H, W, 3] BGR and [5, 2] points in
insightface's order -> who it is, float32 [D] of unit length; None where the network gives no numbers.
"""

import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from feedface.common.errors import UserError
from feedface.common.opencv import import_cv2
from feedface.faces.weights import SFACE, YUNET, checked_weights, faces_folder, fetch_weights, find_weights


class SFaceRecogniser:
    """OpenCV's own recogniser (Zhong et al. 2021), 128 numbers."""

    name = "sface"

    def __init__(self, file: Path):
        checked_weights(file, SFACE)
        self._network = import_cv2().FaceRecognizerSF.create(str(file), "")

    def embed(self, bgr: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        row = np.concatenate([np.zeros(4), landmarks.ravel(), [1]]).astype(np.float32)  # as FaceDetectorYN has it
        return unit(self._network.feature(self._network.alignCrop(bgr, row)).ravel())


class ArcFaceRecogniser:
    """An ONNX file with one input [N, 3, S, S], RGB, and one output [N, D]: EdgeFace, insightface's w600k and others.

    Values go in as x / 127.5 - 1, or as they are where the network scales them itself. `UserError` for other files.
    """

    def __init__(self, file: Path, threads: int | None = None):
        import onnxruntime

        import_insightface()
        from insightface.model_zoo.arcface_onnx import ArcFaceONNX

        self.name = file.stem
        try:
            session = onnxruntime.InferenceSession(
                str(file), session_options(threads), providers=["CPUExecutionProvider"]
            )
            self._network = ArcFaceONNX(str(file), session)
            side = self._network.input_size[0]
            self.embed(np.zeros((side, side, 3), np.uint8), np.float32([[0, 0], [1, 0], [0.5, 0.5], [0, 1], [1, 1]]))
        except Exception as error:  # onnxruntime raises a class of its own for every kind of broken file
            raise UserError(f"{file}: not a face recogniser in ONNX, as ArcFace's are ({error})") from None

    def embed(self, bgr: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
        return insight_embedding(self._network, bgr, landmarks)


def insight_embedding(network, bgr: np.ndarray, landmarks: np.ndarray) -> np.ndarray | None:
    """What a recogniser of insightface's says, of unit length; None for no numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # insightface calls functions that scikit-image has deprecated
        return unit(network.get(bgr, SimpleNamespace(kps=landmarks)))


def unit(embedding: np.ndarray) -> np.ndarray | None:
    """The same, of length one; None for zeros, NaN and infinity."""
    length = np.linalg.norm(embedding)
    return (embedding / length).astype(np.float32) if np.isfinite(length) and length else None


def recogniser_beside() -> str:
    """The name of the recogniser that a user has put beside YuNet, or has in the cache; empty if there is none."""
    files = sorted(path for path in faces_folder().glob("*.onnx") if path.name != YUNET.file)
    if files:
        return SFaceRecogniser.name if files[0].name == SFACE.file else files[0].stem
    return SFaceRecogniser.name if find_weights(SFACE) else ""


def find_recogniser(name: str) -> Path | None:
    """The file that a name stands for: "sface", that of a file in `models/faces/`, or a path. Nothing is fetched."""
    if name == SFaceRecogniser.name:
        return find_weights(SFACE)
    return next((path for path in (Path(name), faces_folder() / f"{name}.onnx") if path.is_file()), None)


def make_recogniser(name: str, threads: int | None = None) -> SFaceRecogniser | ArcFaceRecogniser:
    """The recogniser of that name, see `find_recogniser`; SFace is downloaded where it is not there. `UserError`."""
    if name == SFaceRecogniser.name:
        return SFaceRecogniser(fetch_weights(SFACE))
    file = find_recogniser(name)
    if file is None:
        raise UserError(
            f"no face recogniser {name!r}: use sface, the path of an ONNX file, or the name of one in {faces_folder()}"
        )
    return ArcFaceRecogniser(file, threads)


def import_insightface() -> type:
    """Its `FaceAnalysis`. Importing it costs a second, and not every detector needs it."""
    import_cv2()
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise UserError(
            f"insightface cannot be loaded ({error}): pip install --no-deps -r requirements-insightface.txt, or use "
            "--detector opencv"
        ) from None
    return FaceAnalysis


def session_options(threads: int | None):
    """onnxruntime's, for so many threads; None: as many as there are cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return options

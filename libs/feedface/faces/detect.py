"""Face detection behind one small interface: insightface's model packs (real or mini), or OpenCV (`opencv.py`).

detector = make_detector("auto", faces_root="models/mini/faces")
faces = detector.detect(image)      # uint8 [H, W, 3] RGB -> list[Face], the largest first
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import numpy as np

from feedface.common.errors import UserError

INSIGHTFACE_ROOT = Path("~/.insightface")
PACK_URL = "https://github.com/deepinsight/insightface/releases/tag/model-zoo"
PHOTO_PACK = "buffalo_l"
BUNDLE_PACK = "mini"


@dataclass(frozen=True)
class Face:
    """One face of a picture.

    Attributes:
        box: float32 [4], x0, y0, x1, y1 in pixels: forehead to chin, before any expansion.
        score: confidence in [0, 1]; OpenCV's cascade has none and says 1.
        landmarks: float32 [5, 2], x and y in pixels of the eye on the viewer's left, the eye on the right, the nose
            tip, the left and the right mouth corner (insightface's order); None if the detector finds none.
        embedding: float32 [D] of unit length, who it is; None without a recogniser.
    """

    box: np.ndarray
    score: float
    landmarks: np.ndarray | None = None
    embedding: np.ndarray | None = None

    @property
    def area(self) -> float:
        return float((self.box[2] - self.box[0]) * (self.box[3] - self.box[1]))

    def moved(self, right: float, down: float) -> "Face":
        """The same face so many pixels further right and down."""
        by = np.array([right, down], np.float32)
        landmarks = None if self.landmarks is None else self.landmarks + by
        return replace(self, box=self.box + np.tile(by, 2), landmarks=landmarks)


class FaceDetector(Protocol):
    name: str

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a uint8 [H, W, 3] RGB picture, the largest first; an empty list if there are none."""
        ...


class InsightFaceDetector:
    """`insightface.app.FaceAnalysis` on the pack `{root}/models/{pack}`: boxes, five landmarks and embeddings.

    Insightface's own packs (`buffalo_l`, ...) are for non-commercial research only.

    Args:
        pack: name of the model pack, a folder of ONNX files.
        root: the folder that holds `models/`.
        device: "cpu", or "cuda" / "cuda:N", which needs onnxruntime-gpu.
        det_size_px: width and height the picture is fitted into; a pack with a fixed size (mini) keeps its own.
        threshold: faces with a lower score are not reported.
        threads: that onnxruntime may use on a CPU; None: as many as there are cores.

    Raises:
        UserError: the pack is missing, unreadable or without a detector, or the device asked for is not used.
    """

    def __init__(
        self,
        pack: str,
        root: str | Path = INSIGHTFACE_ROOT,
        device: str = "cpu",
        det_size_px: tuple[int, int] = (640, 640),
        threshold: float = 0.5,
        threads: int | None = None,
    ):
        folder = find_pack(pack, root)
        if folder is None:
            raise UserError(missing_pack_message(pack, root))
        providers = _onnx_providers(device)
        self.name, self._folder = pack, folder
        FaceAnalysis = _import_insightface()
        try:
            # The folder itself instead of its name: a folder of that name in the working directory would win.
            self._analysis = FaceAnalysis(
                str(folder),
                allowed_modules=["detection", "recognition"],
                providers=providers,
                sess_options=_session_options(threads),
            )
        except AssertionError:
            raise UserError(f"{folder}: none of its .onnx files is a face detector; fetch the pack anew") from None
        except Exception as error:  # onnxruntime raises a class of its own for every kind of broken file
            raise UserError(f"{folder}: cannot be loaded as a face model pack ({error}); fetch it anew") from error
        self._check_providers(providers, device)
        self._analysis.prepare(ctx_id=0, det_thresh=threshold, det_size=det_size_px)
        self._long_side_px = max(self._analysis.det_model.input_size)

    @property
    def has_recogniser(self) -> bool:
        return "recognition" in self._analysis.models

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a uint8 [H, W, 3] RGB picture, the largest first.

        If there are none it looks again at half the size: faces that fill the picture are too large for a detector.
        `UserError` where the pack's networks fail on a picture.
        """
        bgr = np.ascontiguousarray(checked_image(image)[..., ::-1])
        height, width = bgr.shape[:2]
        if min(height, width) * self._long_side_px < max(height, width):
            return []  # fitted into the detector's input this strip is less than a pixel thin
        try:
            return self._find(bgr) or find_in_frame(self._find, bgr, part=1 / 2)
        except Exception as error:  # foreign networks, and what insightface makes of their answers
            raise UserError(f"{self._folder}: fails on a picture ({error}); fetch the pack anew") from error

    def _find(self, bgr: np.ndarray) -> list[Face]:
        recogniser = self._analysis.models.get("recognition")
        boxes, points = self._analysis.det_model.detect(bgr)  # [n, 5] with scores, [n, 5, 2] or None
        faces = [
            Face(box[:4].astype(np.float32), float(box[4]), None if points is None else points[i].astype(np.float32))
            for i, box in enumerate(boxes)
        ]
        faces = usable(faces, bgr)
        if recogniser is None:
            return faces
        return [replace(face, embedding=_embed(recogniser, bgr, face)) for face in faces]

    def _check_providers(self, providers: list, device: str) -> None:
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        for model in self._analysis.models.values():
            used = model.session.get_providers()
            if used[0] != wanted:  # onnxruntime falls back to the CPU in silence
                raise UserError(
                    f"face detection was asked to run on {device}, but onnxruntime runs it with {used[0]}: check the "
                    "CUDA and cuDNN that onnxruntime-gpu needs, or detect faces on the CPU"
                )


def checked_image(image: np.ndarray) -> np.ndarray:
    """The same, or `ValueError` for what is no picture."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture is uint8 [H, W, 3] RGB, not {image.dtype} {list(image.shape)}")
    return image


def find_in_frame(find: Callable[[np.ndarray], list[Face]], image: np.ndarray, part: float) -> list[Face]:
    """What `find` sees of a uint8 [H, W] or [H, W, 3] picture in a grey frame, `part` of its sides wide.

    Detectors fit every picture into their input: a frame alone makes a face that fills the picture smaller there.
    """
    height, width = image.shape[:2]
    top, left = round(height * part), round(width * part)
    framed = np.full((height + 2 * top, width + 2 * left, *image.shape[2:]), 127, np.uint8)
    framed[top : top + height, left : left + width] = image
    return usable([face.moved(-left, -top) for face in find(framed)], image)


def usable(faces: Sequence[Face], image: np.ndarray) -> list[Face]:
    """Those with a box in the picture that can be cropped, the largest first.

    Networks also answer with NaN, boxes without an area, far off or of any size. Landmarks that are no numbers go.
    """
    height, width = image.shape[:2]
    good = []
    for face in faces:
        x0, y0, x1, y1 = map(float, face.box)  # NaN fails every comparison
        inside = x0 < min(x1, width) and y0 < min(y1, height) and x1 > 0 and y1 > 0
        # Its crop is a square, which must fit into memory also where the picture is a long strip.
        if inside and max(x1 - x0, y1 - y0) <= min(2 * max(width, height), 4 * min(width, height)):
            finite = face.landmarks is None or np.isfinite(face.landmarks).all()
            good.append(face if finite else replace(face, landmarks=None))
    return sorted(good, key=lambda face: face.area, reverse=True)


def _embed(recogniser, bgr: np.ndarray, face: Face) -> np.ndarray | None:
    """Unit vector [D] by an insightface recogniser; None without landmarks to align the face by."""
    if face.landmarks is None:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # insightface calls functions that scikit-image has deprecated
        embedding = recogniser.get(bgr, SimpleNamespace(kps=face.landmarks))
    length = np.linalg.norm(embedding)
    return (embedding / length).astype(np.float32) if np.isfinite(length) and length else None


def make_detector(name: str = "auto", faces_root: str | Path | None = None, device: str = "cpu") -> FaceDetector:
    """Build a detector by name.

    Args:
        name: "auto", "opencv", "mini", "buffalo_l" or the name of any other insightface pack. "auto" takes the pack
            that comes with the model; else buffalo_l where it is installed; else OpenCV.
        faces_root: the model's own insightface root, `<model>/faces`; packs are looked for here first, then under
            ~/.insightface.
        device: see `InsightFaceDetector`.

    Raises:
        UserError: the pack is missing, unreadable or cannot run on that device.
    """
    from feedface.faces.opencv import OpenCVDetector  # which is made of these

    roots = [Path(faces_root)] if faces_root is not None else []
    roots.append(INSIGHTFACE_ROOT)
    if name == "opencv":
        return OpenCVDetector()
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--detector {name!r}: not the name of a detector; use auto, opencv, mini or buffalo_l")
    if name == "auto":
        for pack in (BUNDLE_PACK, PHOTO_PACK):
            for root in roots:
                if find_pack(pack, root) is not None:
                    return InsightFaceDetector(pack, root, device)
        return OpenCVDetector()
    root = next((root for root in roots if find_pack(name, root) is not None), roots[0])
    return InsightFaceDetector(name, root, device)


def find_pack(pack: str, root: str | Path) -> Path | None:
    """The absolute folder of an insightface pack, or None if it is not there or holds no ONNX file.

    antelopev2's zip file holds a folder of that name: unzipped in the pack's folder, the files are one further down.
    """
    folder = (Path(root).expanduser() / "models" / pack).resolve()
    return next((place for place in (folder, folder / pack) if any(place.glob("*.onnx"))), None)


def missing_pack_message(pack: str, root: str | Path) -> str:
    folder = Path(root).expanduser() / "models" / pack
    if pack == BUNDLE_PACK:
        source = "they come with the model models/mini, or from `make mini`"
    else:
        source = (
            f"unzip {pack}.zip from {PACK_URL} there (insightface's packs are for non-commercial research only), "
            "or use --detector opencv, which needs no download"
        )
    return f"no face model pack {pack!r}: there are no .onnx files in {folder}; {source}"


def _import_insightface() -> type:
    """`FaceAnalysis`. Importing it costs a second, and only one detector needs it."""
    from feedface.faces.opencv import import_cv2

    import_cv2()
    try:
        from insightface.app import FaceAnalysis
    except ImportError as error:
        raise UserError(
            f"insightface cannot be loaded ({error}): pip install --no-deps -r requirements-insightface.txt, or use "
            "--detector opencv"
        ) from None
    return FaceAnalysis


def _onnx_providers(device: str) -> list:
    kind, _, index = str(device).partition(":")
    if kind != "cuda":
        return ["CPUExecutionProvider"]
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        raise UserError(
            f"face detection on {device} needs onnxruntime-gpu (pip uninstall onnxruntime, then pip install "
            f"onnxruntime-gpu=={onnxruntime.__version__}), or detect faces on the CPU"
        )
    return [("CUDAExecutionProvider", {"device_id": int(index or 0)}), "CPUExecutionProvider"]


def _session_options(threads: int | None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    return options

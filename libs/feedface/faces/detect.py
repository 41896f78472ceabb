"""Face detection behind one small interface: insightface's model packs (real or mini), or OpenCV's own cascade.

detector = make_detector("auto", faces_root="models/mini/faces")
faces = detector.detect(image)      # uint8 [H, W, 3] RGB -> list[Face], the largest first
"""

import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from feedface.errors import UserError

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
        self.name = pack
        # Importing costs a second, and only this class needs it.
        from insightface.app import FaceAnalysis

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
        """
        bgr = np.ascontiguousarray(_checked_image(image)[..., ::-1])
        height, width = bgr.shape[:2]
        if min(height, width) * self._long_side_px < max(height, width):
            return []  # fitted into the detector's input this strip is less than a pixel thin
        found = self._find(bgr)
        if not found:
            # The detector fits every picture into its input: only a wider frame makes the faces in it smaller.
            top, left = height // 2, width // 2
            framed = np.full((2 * height, 2 * width, 3), 127, np.uint8)
            framed[top : top + height, left : left + width] = bgr
            found = self._find(framed, offset=(left, top))
        return sorted(found, key=lambda face: face.area, reverse=True)

    def _find(self, bgr: np.ndarray, offset: tuple[int, int] = (0, 0)) -> list[Face]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # insightface calls functions that scikit-image has deprecated
            found = self._analysis.get(bgr)
        shift = np.asarray(offset, np.float32)
        return [
            Face(
                box=face.bbox.astype(np.float32) - np.tile(shift, 2),
                score=float(face.det_score),
                landmarks=None if face.kps is None else face.kps.astype(np.float32) - shift,
                embedding=None if face.embedding is None else face.normed_embedding.astype(np.float32),
            )
            for face in found
        ]

    def _check_providers(self, providers: list, device: str) -> None:
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        for model in self._analysis.models.values():
            used = model.session.get_providers()
            if used[0] != wanted:  # onnxruntime falls back to the CPU in silence
                raise UserError(
                    f"face detection was asked to run on {device}, but onnxruntime runs it with {used[0]}: check the "
                    "CUDA and cuDNN that onnxruntime-gpu needs, or detect faces on the CPU"
                )


@dataclass(frozen=True)
class _Look:
    """One pass of the cascade over a picture."""

    long_side_px: int  # the picture is resized to this first
    smallest: float  # face, as a part of the longer side
    scale_step: float
    neighbours: int  # how many overlapping hits make a face
    even_light: bool


class OpenCVDetector:
    """The frontal-face cascade that comes inside OpenCV: no download, boxes only, frontal faces only.

    A first look is set for portraits: on 31 of them it found the most faces without a false one. Only if it finds
    none, a second look goes for small and dark faces. Its threshold was set on 21 whole-body photos, where it raises
    7 found faces to 17 without a false one: those have 16 hits and more, false ones up to 13, one missed face 8.
    """

    name = "opencv"
    LOOKS = (
        _Look(long_side_px=512, smallest=0.1, scale_step=1.1, neighbours=5, even_light=False),
        _Look(long_side_px=768, smallest=0.06, scale_step=1.05, neighbours=15, even_light=True),
    )
    # The cascade's square ends at the brows and the lower lip: this much larger and lower it holds forehead and chin.
    ENLARGE = 1.1
    LOWER = 0.05

    def __init__(self):
        import cv2

        path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
        self._cascade = cv2.CascadeClassifier(str(path))
        if self._cascade.empty():
            raise UserError(f"{path}: missing or broken; reinstall opencv-python-headless 4 (5 has no cascades)")

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the frontal faces in a uint8 [H, W, 3] RGB picture, the largest first; 0.05 to 0.5 s."""
        import cv2

        grey = cv2.cvtColor(_checked_image(image), cv2.COLOR_RGB2GRAY)
        for look in self.LOOKS:
            faces = self._find(grey, look)
            if faces:
                break
        return sorted(faces, key=lambda face: face.area, reverse=True)

    def _find(self, grey: np.ndarray, look: _Look) -> list[Face]:
        import cv2

        scale = look.long_side_px / max(grey.shape)
        size = [max(1, round(side * scale)) for side in reversed(grey.shape)]
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
        if look.even_light:
            grey = cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(grey)
        min_px = round(look.long_side_px * look.smallest)
        found = self._cascade.detectMultiScale(
            grey, scaleFactor=look.scale_step, minNeighbors=look.neighbours, minSize=(min_px, min_px)
        )
        faces = []
        for x, y, side, _ in found:
            center_x, center_y, half = x + side / 2, y + side * (0.5 + self.LOWER), side * self.ENLARGE / 2
            box = np.array([center_x - half, center_y - half, center_x + half, center_y + half], np.float32)
            faces.append(Face(box=box / scale, score=1.0))
        return faces


def make_detector(
    name: str = "auto", faces_root: str | Path | None = None, device: str = "cpu"
) -> InsightFaceDetector | OpenCVDetector:
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
    """The absolute folder of an insightface pack, or None if it is not there or holds no ONNX file."""
    folder = (Path(root).expanduser() / "models" / pack).resolve()
    return folder if any(folder.glob("*.onnx")) else None


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


def _checked_image(image: np.ndarray) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"a picture is uint8 [H, W, 3] RGB, not {image.dtype} {list(image.shape)}")
    return image

"""Face detection behind one small interface: insightface's model packs (real or mini), YuNet (`yunet.py`) or OpenCV's
cascade (`opencv.py`).

detector = make_detector("auto", faces_root="models/mini/faces")
faces = detector.detect(image)      # uint8 [H, W, 3] RGB -> list[Face], the largest first
"""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.faces.candidates import checked_image, find_in_frame, usable
from feedface.faces.recogniser import (
    find_recogniser,
    import_insightface,
    insight_embedding,
    make_recogniser,
    recogniser_beside,
    session_options,
)
from feedface.faces.types import Face, FaceDetector
from feedface.faces.weights import YUNET as YUNET_WEIGHTS
from feedface.faces.weights import fetch_weights, find_weights

INSIGHTFACE_ROOT = Path("~/.insightface")
PACK_URL = "https://github.com/deepinsight/insightface/releases/tag/model-zoo"
PHOTO_PACK = "buffalo_l"
BUNDLE_PACK = "mini"
OPENCV, YUNET = "opencv", "yunet"  # any other name is that of an insightface pack
WITHOUT_RECOGNISER = (OPENCV, YUNET)  # as `resolve_detector` names them


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
        FaceAnalysis = import_insightface()
        try:
            # The folder itself instead of its name: a folder of that name in the working directory would win.
            self._analysis = FaceAnalysis(
                str(folder),
                allowed_modules=["detection", "recognition"],
                providers=providers,
                sess_options=session_options(threads),
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
        return [replace(face, embedding=_embedding(recogniser, bgr, face)) for face in faces]

    def embed(self, image: np.ndarray, face: Face) -> np.ndarray | None:
        """Who a face with landmarks in a uint8 [H, W, 3] RGB picture is: float32 [D] of unit length."""
        return _embedding(self._analysis.models["recognition"], np.ascontiguousarray(image[..., ::-1]), face)

    def _check_providers(self, providers: list, device: str) -> None:
        wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
        for model in self._analysis.models.values():
            used = model.session.get_providers()
            if used[0] != wanted:  # onnxruntime falls back to the CPU in silence
                raise UserError(
                    f"face detection was asked to run on {device}, but onnxruntime runs it with {used[0]}: check the "
                    "CUDA and cuDNN that onnxruntime-gpu needs, or detect faces on the CPU"
                )


def _embedding(recogniser, bgr: np.ndarray, face: Face) -> np.ndarray | None:
    """None without landmarks to align the face by."""
    return None if face.landmarks is None else insight_embedding(recogniser, bgr, face.landmarks)


def make_detector(
    name: str = "auto",
    faces_root: str | Path | None = None,
    device: str = "cpu",
    threshold: float = 0.5,
    threads: int | None = None,
) -> FaceDetector:
    """Build a detector by name.

    Args:
        name: "auto", "opencv", "yunet", "mini", "buffalo_l" or the name of any other insightface pack; "yunet+NAME"
            is YuNet with a recogniser, see `recogniser.find_recogniser`. "auto" takes the pack that comes with the
            model; else buffalo_l, else YuNet, where they are on this machine; else OpenCV.
        faces_root: the model's own insightface root, `<model>/faces`; packs are looked for here first, then under
            ~/.insightface.
        device, threshold, threads: see `InsightFaceDetector`; OpenCV has none of them, YuNet no device.

    Raises:
        UserError: the weights are missing, unreadable or cannot run on that device.
    """
    name, root = resolve_detector(name, faces_root)
    if name == OPENCV:
        from feedface.faces.opencv import OpenCVDetector

        return OpenCVDetector()
    if not is_pack(name):
        from feedface.faces.yunet import YuNetDetector

        recogniser = name.partition("+")[2]
        return YuNetDetector(
            fetch_weights(YUNET_WEIGHTS), threshold, make_recogniser(recogniser, threads) if recogniser else None
        )
    return InsightFaceDetector(name, root, device, threshold=threshold, threads=threads)


def resolve_detector(name: str, faces_root: str | Path | None = None) -> tuple[str, Path]:
    """What a name means here, and the insightface root that the pack is in, or would be looked for in first.

    "auto" becomes the detector's name; "yunet" gets the name of the recogniser that is there: "yunet+sface".
    `UserError` for what cannot be a name; whether the pack is there is not looked at.
    """
    roots = [Path(root) for root in (faces_root, INSIGHTFACE_ROOT) if root is not None]
    if not re.fullmatch(r"\w[\w.-]*|yunet\+.+", name):
        raise UserError(f"--detector {name!r}: not the name of a detector; use auto, yunet, opencv, mini or buffalo_l")
    for pack in (BUNDLE_PACK, PHOTO_PACK) if name == "auto" else (name,):
        for root in roots:
            if find_pack(pack, root) is not None:
                return pack, root
    if name == "auto":
        name = YUNET if find_weights(YUNET_WEIGHTS) else OPENCV
    if name == YUNET and (recogniser := recogniser_beside()):
        name = f"{YUNET}+{recogniser}"
    return name, roots[0]


def is_pack(name: str) -> bool:
    """Whether a detector's name is that of an insightface pack."""
    return name != OPENCV and name.partition("+")[0] != YUNET


def check_detector(name: str, root: Path) -> None:
    """`UserError` unless the weights of a resolved detector are there; YuNet's and SFace's are fetched."""
    if is_pack(name):
        if find_pack(name, root) is None:
            raise UserError(missing_pack_message(name, root))
    elif name != OPENCV:
        make_detector(name)


def detector_files(name: str, root: Path) -> list[Path]:
    """The files that a resolved detector is read from, as far as they are there."""
    if is_pack(name):
        pack = find_pack(name, root)
        return sorted(pack.glob("*.onnx")) if pack else []
    if name == OPENCV:
        return []
    recogniser = name.partition("+")[2]
    files = (find_weights(YUNET_WEIGHTS), find_recogniser(recogniser) if recogniser else None)
    return [file for file in files if file is not None]


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
            "or use --detector yunet, which is fetched by itself, or opencv, which needs no download"
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

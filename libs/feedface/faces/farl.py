"""The face parser of FeedFace's authors: FaRL (Zheng et al. 2022) trained on LaPa, as the package pyfacer runs it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.common.device import pick_device
from feedface.common.errors import UserError
from feedface.faces.types import Face, Picture

PACKAGE = "pyfacer==0.0.5"
PARSER_URL = (
    "https://github.com/FacePerceiver/facer/releases/download/models-v1/"
    "face_parsing.farl.lapa.main_ema_136500_jit191.pt"
)
DETECTOR_URL = "https://github.com/elliottzheng/face-detection/releases/download/0.0.1/mobilenet0.25_Final.pth"
LONGEST_PX = 2048  # larger pictures are parsed at this size: the network sees every face at 448 px anyway
FACES_AT_ONCE = 4  # each takes 11 maps of the whole picture in single precision
SAME_FACE = 0.3  # IoU of a box of ours and one of facer's


class FacerParser:
    """pyfacer's `farl/lapa/448`, on faces with five landmarks.

    Faces without landmarks (OpenCV's) get those of the box of facer's own detector, `retinaface/mobilenet`, that
    overlaps them most; its weights are needed only then. A face that it does not find is returned as all background.

    Nothing is downloaded here. Both weights files are looked for under torch.hub's folder
    (`~/.cache/torch/hub/checkpoints`, or `$TORCH_HOME/hub/checkpoints`) unless their paths are given.

    Args:
        model_path: the parser's TorchScript file.
        device: as PyTorch names it.
        detector_path: the weights of `retinaface/mobilenet`.

    Raises:
        UserError: the package or the parser's weights are missing or cannot be loaded.
    """

    name = "facer"

    def __init__(
        self,
        model_path: str | Path | None = None,
        device: str | torch.device = "cpu",
        detector_path: str | Path | None = None,
    ):
        self.device = pick_device(str(device))
        self._facer = _import_facer()
        path = _weights(model_path, PARSER_URL, "the face parser 'facer'")
        try:
            self._network = self._facer.face_parser("farl/lapa/448", device=self.device, model_path=str(path))
        except (RuntimeError, ValueError, OSError) as error:
            raise UserError(
                f"{path}: not a TorchScript file that PyTorch can read ({_first_line(error)}); "
                f"fetch it anew from {PARSER_URL}"
            ) from error
        self._detector, self._detector_path = None, detector_path

    def parse(self, image: np.ndarray, faces: Sequence[Face]) -> list[np.ndarray]:
        """See `FaceParser`."""
        height, width = image.shape[:2]
        maps = [np.zeros((height, width), np.uint8) for _ in faces]
        points = self._landmarks(image, faces)
        rows = [row for row, landmarks in enumerate(points) if landmarks is not None]
        shrink = min(1.0, LONGEST_PX / max(height, width))
        pixels = self._pixels(_resized(image, shrink))
        for start in range(0, len(rows), FACES_AT_ONCE):
            part = rows[start : start + FACES_AT_ONCE]
            for row, classes in zip(part, self._classes(pixels, [points[row] * shrink for row in part]), strict=True):
                maps[row] = np.asarray(Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST))
        return maps

    def parse_many(self, pictures: Sequence[Picture]) -> list[list[np.ndarray]]:
        """See `FaceParser`; one picture after the other, since facer takes pictures of one size only."""
        return [self.parse(image, faces) for image, faces in pictures]

    def _classes(self, pixels: torch.Tensor, points: list[np.ndarray]) -> np.ndarray:
        """[1, 3, H, W] and landmarks [5, 2] of n faces in its pixels -> uint8 [n, H, W]."""
        data = {
            "points": torch.from_numpy(np.stack(points)).to(self.device, torch.float32),
            "image_ids": torch.zeros(len(points), dtype=torch.long, device=self.device),
        }
        logits = self._network(pixels, data)["seg"]["logits"]  # [n, 11, H, W]
        return logits.argmax(1).to("cpu", torch.uint8).numpy()

    def _landmarks(self, image: np.ndarray, faces: Sequence[Face]) -> list[np.ndarray | None]:
        """Five points [5, 2] of every face: its own, else those that facer's detector finds there."""
        if all(face.landmarks is not None for face in faces):
            return [face.landmarks for face in faces]
        shrink = min(1.0, LONGEST_PX / max(image.shape))
        detector = self._load_detector()
        with torch.inference_mode():
            # It counts in 0...255 and subtracts the means itself.
            found = detector(self._pixels(_resized(image, shrink)) * 255)
        boxes = found["rects"].reshape(-1, 4).cpu().numpy() / shrink
        points = found["points"].reshape(-1, 5, 2).cpu().numpy() / shrink
        landmarks = []
        for face in faces:
            overlaps = [_iou(face.box, box) for box in boxes]
            best = int(np.argmax(overlaps)) if overlaps else -1
            own = points[best] if overlaps and overlaps[best] >= SAME_FACE else None
            landmarks.append(own if face.landmarks is None else face.landmarks)
        return landmarks

    def _load_detector(self) -> torch.nn.Module:
        if self._detector is None:
            what = "the face parser 'facer' needs five landmarks of every face; without a detector that gives them"
            path = _weights(self._detector_path, DETECTOR_URL, f"{what} (mini, buffalo_l) it")
            try:
                self._detector = self._facer.face_detector(
                    "retinaface/mobilenet", device=self.device, model_path=str(path)
                )
            except Exception as error:  # facer asserts, PyTorch has several kinds for broken files
                raise UserError(
                    f"{path}: cannot be loaded as facer's face detector ({_first_line(error)}); "
                    f"fetch it anew from {DETECTOR_URL}"
                ) from error
        return self._detector

    def _pixels(self, image: np.ndarray) -> torch.Tensor:
        """uint8 [H, W, 3] -> float [1, 3, H, W] in 0...1: facer refuses whole numbers for an all-black picture."""
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        return pixels.to(self.device, torch.float32) / 255


def _import_facer():
    try:
        import facer
    except ModuleNotFoundError as error:
        raise UserError(
            f"the face parser 'facer' needs the package {PACKAGE} (pip install {PACKAGE}); it brings torchvision, "
            f"which must be the build for this PyTorch, {torch.__version__} ({error})"
        ) from None
    except Exception as error:  # torchvision's own check fails with RuntimeError beside another build of PyTorch
        raise UserError(
            f"the face parser 'facer' is installed but cannot be imported ({_first_line(error)}); "
            f"torchvision must be the build for this PyTorch, {torch.__version__}"
        ) from error
    return facer


def _weights(given: str | Path | None, url: str, needed_by: str) -> Path:
    """The file at `given`, else under torch.hub's folder; `UserError` where there is none."""
    place = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    path = place if given is None else Path(given)
    if not path.is_file():
        raise UserError(f"{path}: no such file; {needed_by} needs it, download {url} to {place}")
    return path


def _resized(image: np.ndarray, scale: float) -> np.ndarray:
    if scale == 1:
        return image
    height, width = image.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    """Boxes x0, y0, x1, y1."""
    overlap = np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    return float(overlap / max(np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap, 1e-6))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]

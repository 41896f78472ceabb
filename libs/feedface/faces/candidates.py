"""What all detectors do with a picture and with what they find in it."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from feedface.faces.types import Face


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


def find_turned(find: Callable[[np.ndarray], list[Face]], image: np.ndarray, turns: Sequence[float]) -> list[Face]:
    """What `find` sees of a uint8 [H, W, 3] picture turned by one of `turns`, degrees clockwise: the surest answer.

    Boxes keep the size that they have where the face is upright.
    """
    import cv2

    best: list[Face] = []
    height, width = image.shape[:2]
    for turn in turns:
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -turn, 1)
        size = np.ceil(np.abs(matrix[:, :2]) @ (width, height)).astype(int)
        matrix[:, 2] += size / 2 - (width / 2, height / 2)
        found = find(cv2.warpAffine(image, matrix, size.tolist(), borderValue=(127, 127, 127)))
        if found and (not best or max(face.score for face in found) > max(face.score for face in best)):
            back = cv2.invertAffineTransform(matrix)
            best = [_moved_back(face, back) for face in found]
    return usable(best, image)


def _moved_back(face: Face, matrix: np.ndarray) -> Face:
    """A face of a turned picture where it is in the picture; `matrix` [2, 3] leads there."""
    x0, y0, x1, y1 = face.box
    middle = matrix @ ((x0 + x1) / 2, (y0 + y1) / 2, 1)
    half = np.array([x1 - x0, y1 - y0]) / 2
    landmarks = None if face.landmarks is None else (face.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    return replace(face, box=np.concatenate([middle - half, middle + half]).astype(np.float32), landmarks=landmarks)


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

"""The face detector that comes inside OpenCV: its frontal-face cascade."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.common.opencv import import_cv2
from feedface.faces.candidates import checked_image, find_in_frame, usable
from feedface.faces.types import Face


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
    A last look, the first one in a grey frame, goes for a face that fills the picture: of 51 photos cut to the face's
    box it raises 25 found to 44, each box right; in 80 parts of photos without a face it finds none.
    """

    name, has_recogniser = "opencv", False
    LOOKS = (
        _Look(long_side_px=512, smallest=0.1, scale_step=1.1, neighbours=5, even_light=False),
        _Look(long_side_px=768, smallest=0.06, scale_step=1.05, neighbours=15, even_light=True),
    )
    # The cascade's square ends at the brows and the lower lip: this much larger and lower it holds forehead and chin.
    ENLARGE = 1.1
    LOWER = 0.05

    def __init__(self):
        cv2 = import_cv2()
        path = Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt2.xml"
        self._cascade = cv2.CascadeClassifier(str(path))
        if self._cascade.empty():
            raise UserError(f"{path}: missing or broken; reinstall opencv-python-headless 4 (5 has no cascades)")

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the frontal faces in a uint8 [H, W, 3] RGB picture, the largest first; 0.05 to 0.5 s."""
        import cv2

        grey = cv2.cvtColor(checked_image(image), cv2.COLOR_RGB2GRAY)
        for look in self.LOOKS:
            if faces := self._find(grey, look):
                return faces
        return find_in_frame(lambda framed: self._find(framed, self.LOOKS[0]), grey, part=1 / 4)

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
        return usable(faces, grey)

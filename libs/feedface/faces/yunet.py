"""YuNet, OpenCV's small face detector for photos (Wu et al. 2023): boxes, scores and five landmarks."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from feedface.common.errors import UserError
from feedface.common.opencv import import_cv2
from feedface.faces.candidates import checked_image, find_in_frame, find_turned, usable
from feedface.faces.types import Face

if TYPE_CHECKING:
    from feedface.faces.recogniser import ArcFaceRecogniser, SFaceRecogniser

LONG_SIDE_PX = 640  # pictures are resized to it: faces from 10 px on are found
TURNS = (90, 270, 180, 45, 315, 135, 225)
# Least scores. On 21 photos faces have 0.83 and more; with the head blurred away, 0.58 is seen at most, turned 0.70.
SURE, SURE_TURNED = 0.6, 0.75
OVERLAP = 0.3  # of boxes, from which two are one face


class YuNetDetector:
    """YuNet from an ONNX file, and perhaps a recogniser beside it.

    A second look in a grey frame goes for a face that fills the picture, a third one at turned pictures for a head
    that lies on its side. The figures are in docs/faces.md.

    Args:
        threshold: faces with a lower score are not reported; below `SURE` it has no effect.

    Raises:
        UserError: the file is no such network.
    """

    def __init__(
        self,
        file: str | Path,
        threshold: float = SURE,
        recogniser: SFaceRecogniser | ArcFaceRecogniser | None = None,
    ):
        cv2 = import_cv2()
        self._recogniser, self._lock = recogniser, threading.Lock()
        self.name = "yunet" if recogniser is None else f"yunet+{recogniser.name}"
        try:
            self._network = cv2.FaceDetectorYN.create(str(file), "", (320, 320), max(threshold, SURE), OVERLAP, 5000)
        except cv2.error as error:
            raise UserError(f"{file}: cannot be loaded as YuNet ({error.err}); fetch it anew") from None

    @property
    def has_recogniser(self) -> bool:
        return self._recogniser is not None

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a uint8 [H, W, 3] RGB picture, the largest first."""
        bgr = np.ascontiguousarray(checked_image(image)[..., ::-1])
        faces = self._find(bgr) or find_in_frame(self._find, bgr, part=1 / 2) or find_turned(self._surely, bgr, TURNS)
        if self._recogniser is None:
            return faces
        with self._lock:
            return [replace(face, embedding=self._recogniser.embed(bgr, face.landmarks)) for face in faces]

    def _surely(self, bgr: np.ndarray) -> list[Face]:
        return [face for face in self._find(bgr) if face.score >= SURE_TURNED]

    def _find(self, bgr: np.ndarray) -> list[Face]:
        import cv2

        scale = LONG_SIDE_PX / max(bgr.shape)
        size = [max(1, round(side * scale)) for side in reversed(bgr.shape[:2])]
        small = cv2.resize(bgr, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        with self._lock:  # the network keeps the size that was set last
            self._network.setInputSize(size)
            found = self._network.detect(small)[1]
        if found is None:
            return []
        # Rows of x, y, width, height, the points x, y from the eye on the viewer's left on, and the score.
        boxes, points = np.split(found[:, :14] / np.float32(scale), [4], axis=1)
        return usable(
            [
                Face(np.concatenate([box[:2], box[:2] + box[2:]]), float(row[14]), five.reshape(5, 2))
                for box, five, row in zip(boxes, points, found, strict=True)
            ],
            bgr,
        )

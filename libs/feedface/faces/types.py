"""What the parts of this room agree on: a face, and who finds, recognises and parses faces.

Coordinates are pixels of the upright picture, x to the right, y down. Pictures are uint8 [H, W, 3] RGB.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

# Grey value of each LaPa class in a mask file: class * 255 // 11 for background, skin, brows, eyes, nose, lips, hair;
# see `data.masks.read_mask`.
LAPA_VALUES = tuple(c * 255 // 11 for c in range(11))


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
    has_recogniser: bool  # whether faces come with embeddings

    def detect(self, image: np.ndarray) -> list[Face]:
        """Find the faces in a picture, the largest first; an empty list if there are none."""
        ...


class FaceRecogniser(Protocol):
    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """Who the largest face of a picture is: float32 [D] of unit length; None without a face."""
        ...


Picture = tuple[np.ndarray, Sequence[Face]]  # and the faces to parse in it


class FaceParser(Protocol):
    name: str

    def parse(self, image: np.ndarray, faces: Sequence[Face]) -> list[np.ndarray]:
        """For each face of a picture: uint8 [H, W] LaPa classes, 0 wherever it is not."""
        ...

    def parse_many(self, pictures: Sequence[Picture]) -> list[list[np.ndarray]]:
        """The same for several pictures at once, in their order; their sizes may differ."""
        ...

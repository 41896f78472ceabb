"""Who a face is: embeddings of a model pack's recogniser, compared by cosine similarity (FeedFace, appendix C)."""

import numpy as np

from feedface.common.errors import UserError
from feedface.faces.types import Face, FaceDetector

# Mean cosine of a face with the person's other faces, from which it is taken for theirs. mini, on 120 unseen people of
# the portraits with 2 to 5 pictures each: 0.45 finds 93 to 95 % of strangers among them, and calls 1 to 4 % of the
# person's own faces strange. ArcFace embeddings of photos, buffalo_l's: literature, not measured here.
SAME_PERSON = {"mini": 0.45}
SAME_PERSON_PHOTO = 0.3
# Where a face has its five points in a square crop of its box x 1.1, in shares of the side: of frontal faces, roughly.
USUAL_POINTS = np.array([[0.35, 0.41], [0.65, 0.41], [0.5, 0.58], [0.38, 0.75], [0.62, 0.75]], np.float32)


def same_person(pack: str) -> float:
    """The least mean cosine of a face with the other faces of the person it shows, for the recogniser of a pack."""
    return SAME_PERSON.get(pack, SAME_PERSON_PHOTO)


class PackRecogniser:
    """The recogniser of an insightface pack, on faces that the same pack's detector finds and aligns."""

    def __init__(self, detector: FaceDetector):
        if not getattr(detector, "has_recogniser", False):
            raise UserError(f"the detector {detector.name!r} has no face recogniser; use --detector mini or buffalo_l")
        self._detector = detector

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """Embed the largest face of a uint8 [H, W, 3] RGB picture: float32 [D] of unit length; None without a face."""
        faces = self._detector.detect(image)
        return faces[0].embedding if faces else None

    def embed_crop(self, crop: np.ndarray) -> np.ndarray:
        """Embed a square face crop, uint8 [S, S, 3] RGB, which is known to show a face: float32 [D] of unit length.

        Where the detector finds none in it, the face is taken to have its points where most have them.
        """
        found = self.embed(crop)
        if found is None:
            side = crop.shape[0]
            usual = Face(np.array([0, 0, side, side], np.float32), 0.0, side * USUAL_POINTS)
            found = self._detector.embed(crop, usual)
        if found is None:
            raise UserError(f"the recogniser of {self._detector.name!r} gives nothing for a face crop; fetch it anew")
        return found


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle between embeddings [..., D] and [..., D], in [-1, 1]; 0 where one of them is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(norms, 1e-12)

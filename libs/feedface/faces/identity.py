"""Who a face is: embeddings of a model pack's recogniser, compared by cosine similarity (FeedFace, appendix C)."""

import numpy as np

from feedface.errors import UserError
from feedface.faces.detect import InsightFaceDetector, OpenCVDetector


class FaceRecogniser:
    """The recogniser of an insightface pack, on faces that the same pack's detector finds and aligns."""

    def __init__(self, detector: InsightFaceDetector | OpenCVDetector):
        if not getattr(detector, "has_recogniser", False):
            raise UserError(f"the detector {detector.name!r} has no face recogniser; use --detector mini or buffalo_l")
        self._detector = detector

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """Embed the largest face of a uint8 [H, W, 3] RGB picture: float32 [D] of unit length; None without a face."""
        faces = self._detector.detect(image)
        return faces[0].embedding if faces else None


def cosine_similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine of the angle between embeddings [..., D] and [..., D], in [-1, 1]; 0 where one of them is zero."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / np.maximum(norms, 1e-12)

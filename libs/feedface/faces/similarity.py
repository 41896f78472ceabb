"""How alike the drawn faces are to the references: cosine of a recogniser's embeddings (FeedFace, appendix C)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from feedface.faces.identity import PackRecogniser, cosine_similarity

if TYPE_CHECKING:
    from feedface.faces.references import Reference
    from feedface.faces.types import FaceDetector, FaceRecogniser


class FaceSimilarity:
    """Measures pictures against one person's references, or `embeddings` [F, D] of them.

    It says why, where that is not possible.
    """

    def __init__(self, detector: FaceDetector, references: Sequence[Reference], embeddings: np.ndarray | None = None):
        self.name = detector.name
        self.reason: str | None = None
        self._recogniser: FaceRecogniser | None = None
        self._embeddings: list[np.ndarray] = [] if embeddings is None else list(embeddings)
        if not getattr(detector, "has_recogniser", False):
            self.reason = f"the detector {detector.name!r} has no face recogniser"
            return
        self._recogniser = PackRecogniser(detector)
        for reference in references:
            embedding = reference.embedding
            if embedding is None:  # taken as a crop, without detection
                embedding = self._recogniser.embed(reference.crop)
            if embedding is not None:
                self._embeddings.append(embedding)
        if not self._embeddings:
            self.reason = f"the recogniser of {detector.name!r} finds no face in the references"

    def of(self, image: np.ndarray) -> float | None:
        """Mean cosine, -1 to 1, of the largest face in a uint8 RGB [H, W, 3] picture with each reference's.

        None if it cannot be measured: no face found in the picture, or `reason`.
        """
        if self.reason is not None:
            return None
        embedding = self._recogniser.embed(image)
        if embedding is None:
            return None
        return round(float(np.mean([cosine_similarity(embedding, other) for other in self._embeddings])), 4)

    def summary(self, values: Sequence[float | None]) -> dict:
        """For results.json: measured_with, measured (how many pictures), mean, reason (why there is no mean)."""
        measured = [value for value in values if value is not None]
        reason = self.reason or (None if measured else f"{self.name!r} finds no face in the pictures")
        return {
            "measured_with": None if self.reason else self.name,
            "measured": len(measured),
            "mean": round(float(np.mean(measured)), 4) if measured else None,
            "reason": reason,
        }

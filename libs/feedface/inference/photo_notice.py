"""What to say to somebody who shows the miniature a photo: it knows drawn portraits only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from feedface.faces.detect import BUNDLE_PACK, find_pack

if TYPE_CHECKING:
    from feedface.checkpoints.bundle import Bundle
    from feedface.faces.detect import FaceDetector
    from feedface.faces.references import Reference

# On drawn portraits the miniature's detector scores 0.6 and more, on what it takes for a face in photos about 0.5.
UNSURE = 0.58


def photo_notice(bundle: Bundle, detector: FaceDetector | None, references: Sequence[Reference]) -> str | None:
    """One line if the model is the miniature and a reference looks like a photo."""
    if detector is None or bundle.faces_root is None or find_pack(BUNDLE_PACK, bundle.faces_root) is None:
        return None
    if detector.name != BUNDLE_PACK:
        return (
            f"the model {bundle.name!r} knows drawn portraits only: the person of a photo will not be recognised in "
            "its pictures; models/README.md says where the full-size model comes from"
        )
    unsure = [reference for reference in references if (reference.score or 1) < UNSURE]
    if not unsure:
        return None
    return (
        f"{unsure[0].name}: hardly a face (score {unsure[0].score:.2f}); model and detector {BUNDLE_PACK!r} know drawn "
        "portraits only: for photos use --detector opencv or yunet, and the full-size model (models/README.md)"
    )

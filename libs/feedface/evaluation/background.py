"""What a face changes in the rest of a picture: two pictures of one seed and prompt, drawn with and without the face.

masks_with = face_masks(drawn_with, detector, parser)          # parse a base picture once, however often it serves
masks_without = face_masks(drawn_without, detector, parser)
changes = background_changes(drawn_with, drawn_without, masks_with, masks_without, clip)

The face and hair of both pictures are left out of the comparison: there the two should differ. Letters: N pictures,
H, W their sides, D width of a CLIP embedding.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from feedface.faces.detect import Face, FaceDetector
from feedface.faces.opencv import import_cv2
from feedface.faces.parse import FaceParser

MARGIN_PX = 1  # a parser is a pixel off along its edges, and there a changed face would count as background
GREY = 128


class ImageEmbedder(Protocol):
    def images(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Embed N pictures, uint8 RGB [H, W, 3] each: [N, D], length 1 (`judges.ClipJudge`)."""
        ...


def face_masks(pictures: Sequence[np.ndarray], detector: FaceDetector, parser: FaceParser) -> list[np.ndarray | None]:
    """Where the largest face of each picture and its hair are.

    Args:
        pictures: uint8 RGB [H, W, 3] each; sizes may differ.
        detector, parser: finds the face (one picture at a time), names its pixels (all faces together, where it can).

    Returns:
        For each picture bool [H, W], or None where the detector or the parser sees no face.
    """
    return masks_of_faces(pictures, [next(iter(detector.detect(picture)), None) for picture in pictures], parser)


def masks_of_faces(
    pictures: Sequence[np.ndarray], faces: Sequence[Face | None], parser: FaceParser
) -> list[np.ndarray | None]:
    """The same for faces found already, one a picture (`judges.FaceJudge.faces`); None: no face there."""
    maps = parser.parse_many(
        [(picture, [] if face is None else [face]) for picture, face in zip(pictures, faces, strict=True)]
    )
    # Classes 1 to 10 are skin, brows, eyes, nose, mouth and hair.
    masks = [found[0] > 0 if found else None for found in maps]
    return [mask if mask is not None and mask.any() else None for mask in masks]


def background_changes(
    with_face: Sequence[np.ndarray],
    without_face: Sequence[np.ndarray],
    masks_a: Sequence[np.ndarray | None],
    masks_b: Sequence[np.ndarray | None],
    clip: ImageEmbedder | None = None,
) -> list[dict[str, float] | None]:
    """How much each pair differs outside its faces.

    Args:
        with_face, without_face: N pictures each, uint8 RGB [H, W, 3]; the two of a pair have one size.
        masks_a, masks_b: the face and hair in them, bool [H, W], or None; both are widened by `MARGIN_PX`.
        clip: embeds pictures; None leaves that figure out.

    Returns:
        For each pair None where either picture has no mask (a face that was not found would count as background) or
        the two leave nothing; else "background_pixels", the mean absolute difference outside both masks, in 0..1, and,
        with `clip`, "background_clip", 1 - cosine of the two pictures with both masks painted grey, in 0..2.
    """
    pairs = zip(with_face, without_face, masks_a, masks_b, strict=True)
    outsides = [_outside(*pair) for pair in pairs]
    measured = [row for row, outside in enumerate(outsides) if outside is not None]
    changes: list[dict[str, float] | None] = [None] * len(outsides)
    for row in measured:
        # As bytes, by OpenCV: no sign is lost and nothing is copied to a wider type.
        difference = import_cv2().absdiff(with_face[row], without_face[row])[outsides[row]]
        changes[row] = {"background_pixels": float(difference.mean() / 255)}
    if clip is not None and measured:
        pictures = [_painted(side[row], outsides[row]) for side in (with_face, without_face) for row in measured]
        a, b = np.split(np.asarray(clip.images(pictures), np.float64), 2)
        # For length 1 this is 1 - cosine, but without the rounding error of 1 minus nearly 1.
        for row, value in zip(measured, np.square(a - b).sum(1) / 2, strict=True):
            changes[row]["background_clip"] = float(value)
    return changes


def _outside(
    picture: np.ndarray, other: np.ndarray, mask_a: np.ndarray | None, mask_b: np.ndarray | None
) -> np.ndarray | None:
    """Bool [H, W] of the pixels to compare, or None if there are none or the faces are unknown."""
    if picture.shape != other.shape:
        raise ValueError(f"pictures of {picture.shape} and {other.shape} cannot be compared")
    if mask_a is None or mask_b is None:
        return None
    for mask in (mask_a, mask_b):
        if mask.shape != picture.shape[:2]:
            raise ValueError(f"a mask of {mask.shape} does not belong to a picture of {picture.shape}")
    union = (mask_a | mask_b).astype(np.uint8)
    outside = import_cv2().dilate(union, np.ones((2 * MARGIN_PX + 1,) * 2, np.uint8)) == 0
    return outside if outside.any() else None


def _painted(picture: np.ndarray, outside: np.ndarray) -> np.ndarray:
    return np.where(outside[..., None], picture, np.uint8(GREY))

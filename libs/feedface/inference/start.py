"""Pictures that drawing begins with: image-to-image, in-painting, and the face of a base picture drawn anew."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from feedface.common.errors import UserError
from feedface.faces.crop import square_box
from feedface.faces.face_region import check_mask, composited, region_of, resized
from feedface.faces.types import Face, FaceDetector, FaceParser

FRAME = 1.8  # side of the square that is drawn anew, as a multiple of the face's longer side


@dataclass(frozen=True)
class Start:
    """A picture to begin with, at the size that is drawn.

    Attributes:
        picture: uint8 RGB [H,W,3].
        mask: grey uint8 [H,W], white where the picture is kept; None: nowhere.
        strength: how far towards noise drawing begins, above 0 to 1.
        whole: where `picture` is a square cut out of it, the picture, its mask, and the square x0, y0, x1, y1 in it.
    """

    picture: np.ndarray
    mask: np.ndarray | None = None
    strength: float = 1.0
    whole: tuple[np.ndarray, np.ndarray, tuple[int, int, int, int]] | None = None

    def __post_init__(self):
        if not 0 < self.strength <= 1:
            raise UserError(f"--strength {self.strength}: use a number above 0, and at most 1")

    @property
    def settings(self) -> dict[str, object]:
        """What changes the picture that is drawn, for its fingerprint."""
        pixels = (self.picture, self.mask, None if self.whole is None else self.whole[0])
        digest = hashlib.sha256()
        for part in pixels:
            digest.update(b"" if part is None else str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        return {"start": digest.hexdigest()[:16], "strength": self.strength}

    def finished(self, drawn: np.ndarray) -> np.ndarray:
        """What was drawn, uint8 [H,W,3], put into the picture: the same outside the mask, exactly."""
        if self.mask is None:
            return drawn
        if self.whole is None:
            return composited(drawn, self.picture, self.mask)
        picture, mask, (x0, y0, x1, y1) = self.whole
        square = picture.copy()
        square[y0:y1, x0:x1] = resized(drawn, (x1 - x0, y1 - y0))
        return composited(square, picture, mask)


def start_with(
    picture: np.ndarray,
    size: tuple[int, int],
    strength: float,
    mask: np.ndarray | None = None,
    source: object = "--mask",
) -> Start:
    """A whole picture, brought to (width, height) of what is drawn; the mask must have the picture's own size."""
    if mask is not None:
        check_mask(mask, source, picture.shape[1::-1])
        mask = resized(mask, size)
    return Start(resized(picture, size), mask, strength)


def start_with_face(
    picture: np.ndarray,
    face: Face,
    size: tuple[int, int],
    parser: FaceParser | None = None,
    mask: np.ndarray | None = None,
    strength: float = 1.0,
    hair: bool = False,
    source: object = "--mask",
) -> Start:
    """The region of a face in a picture of any size, which is drawn anew in a square around it.

    The region is black in the mask, or what the parser takes for the face. A picture of the size that is drawn is taken
    as it is.
    """
    if mask is None:
        mask = region_of(parser.parse(picture, [face])[0], hair)
    check_mask(mask, source, picture.shape[1::-1])
    if picture.shape[1::-1] == size:
        return Start(picture, mask, strength)
    if size[0] != size[1]:
        raise UserError(f"--size {size[0]}x{size[1]}: the face of a base picture is drawn in a square; give one number")
    square = inner_square(face.box, picture.shape[1::-1])
    x0, y0, x1, y1 = square
    cut, cut_mask = picture[y0:y1, x0:x1], mask[y0:y1, x0:x1]
    whole_mask = np.full_like(mask, 255)
    whole_mask[y0:y1, x0:x1] = cut_mask
    check_mask(cut_mask, f"{source}, near the face", cut.shape[1::-1])
    return Start(resized(cut, size), resized(cut_mask, size), strength, (picture, whole_mask, square))


def inner_square(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A square around a face's box that lies inside a picture of (width, height)."""
    x0, y0, x1, y1 = square_box(box, FRAME)
    side = min(round(x1 - x0), *size)
    left = min(max(round((x0 + x1 - side) / 2), 0), size[0] - side)
    top = min(max(round((y0 + y1 - side) / 2), 0), size[1] - side)
    return left, top, left + side, top + side


def base_face(
    picture: np.ndarray, detector: FaceDetector, name: object, which: str | int | None
) -> tuple[Face, str | None]:
    """The face of a base picture, and what to tell the user of others in it. `UserError` without one."""
    from feedface.faces.choose import choose

    faces = detector.detect(picture)
    if not faces:
        raise UserError(
            f"{name}: no face found in the base picture by {detector.name!r}; another --detector may, or --mask"
        )
    choice = "largest" if which in (None, "most-like") else which
    [number] = choose([str(name)], [faces], choice, 0.0)
    if len(faces) == 1 or which is not None:
        return faces[number], None
    return faces[number], f"{name}: {len(faces)} faces; the largest is drawn anew (--face left, right or N chooses)"

"""From a picture somebody hands over to the square face crop the model looks at."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feedface.common.errors import UserError
from feedface.common.images import check_size, read_image, to_rgb
from feedface.faces.choose import check_choice, choose, unlike
from feedface.faces.crop import crop_upright
from feedface.faces.detect import BUNDLE_PACK
from feedface.faces.identity import same_person

if TYPE_CHECKING:
    from feedface.faces.types import FaceDetector

# Nine times the side that the face encoder sees: more only costs time and memory.
MAX_CROP_PX = 2048
Picture = str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class Reference:
    """One face the model is shown.

    Attributes:
        name: the file it came from, or "picture 1", … for pictures in memory.
        crop: uint8 RGB [S, S, 3]: the face box x 1.1, squared on its longer side, padded at borders; without detection
            the whole picture [H, W, 3]. Larger ones than `MAX_CROP_PX` squared are made smaller.
        faces_found: how many faces the picture shows; None without detection.
        box: x0, y0, x1, y1 in pixels of the picture, as detected; None without detection.
        score: the detector's confidence, 0 to 1; None without detection.
        embedding: unit vector [E] of who it is; None without a recogniser.
    """

    name: str
    crop: np.ndarray
    faces_found: int | None = None
    box: tuple[float, ...] | None = None
    score: float | None = None
    embedding: np.ndarray | None = None

    @property
    def digest(self) -> str:
        """Changes with the crop's pixels and with nothing else."""
        return hashlib.sha256(str(self.crop.shape).encode() + np.ascontiguousarray(self.crop).tobytes()).hexdigest()[
            :16
        ]


class NoFaceError(UserError):
    """No face was found in a picture."""


def as_rgb(picture: Picture, name: str = "picture") -> np.ndarray:
    """A path, Pillow image or uint8 RGB array [H, W, 3] as uint8 RGB [H, W, 3]."""
    if isinstance(picture, str | os.PathLike):
        return read_image(picture)
    if isinstance(picture, Image.Image):
        check_size(picture.width, picture.height, name)
        return to_rgb(picture)
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UserError(f"{name}: an array must be uint8 RGB [H, W, 3], not {array.dtype} {list(array.shape)}")
    check_size(array.shape[1], array.shape[0], name)
    return array


def as_pictures(pictures: Picture | Iterable[Picture]) -> list[Picture]:
    """One picture or several, as a list; `UserError` for what is neither."""
    if isinstance(pictures, str | os.PathLike | Image.Image) or getattr(pictures, "ndim", 4) < 4:
        return [pictures]
    try:
        return list(pictures)
    except TypeError:
        raise UserError(
            f"not a picture: {type(pictures).__name__}; give a path, a PIL image or a uint8 RGB array [H, W, 3], or a "
            "list of them"
        ) from None


def find_faces(
    pictures: Picture | Iterable[Picture], detector: FaceDetector | None, face: str | int | None = None
) -> tuple[list[Reference], list[str]]:
    """The face of one person in each of their pictures, at least one.

    Args:
        pictures: one or several.
        detector: finds the faces; None: the pictures are face crops.
        face: which one of several faces in a picture, see `faces.choose.check_choice`; None: "most-like" where the
            detector has a recogniser, else "largest".

    Returns:
        (references, notices): the faces, and one line for the user for each picture that was left out since no face was
        found in it, that shows several faces, or whose face is unlike the others'.

    Raises:
        UserError: no face in any of them (`NoFaceError`), a picture that cannot be read, or `face` is not to be had.
    """
    face = face if face is None else check_choice(face)
    pictures = as_pictures(pictures)
    names = [
        str(picture) if isinstance(picture, str | os.PathLike) else f"picture {index}"
        for index, picture in enumerate(pictures, 1)
    ]
    named = list(zip(names, pictures, strict=True))
    if detector is None:
        if face is not None:
            raise UserError(f"--face {face}: which of the faces found; it does not go with --no_detect")
        return [Reference(name, _limited(as_rgb(picture, name))) for name, picture in named], []
    recognises = getattr(detector, "has_recogniser", False)
    if face == "most-like" and not recognises:
        raise UserError(f"--face most-like: the detector {detector.name!r} has no face recogniser")

    found, notices = [], []
    for name, picture in named:
        try:
            found.append(all_faces(picture, detector, name))
        except NoFaceError as error:
            if len(named) == 1:
                raise
            notices.append(f"left out: {error}")
    if not found:
        raise NoFaceError(f"no face found in any of the {len(names)} pictures {', '.join(names)}; {_advice(detector)}")
    face = face or ("most-like" if recognises and len(found) > 1 else "largest")
    threshold = same_person(detector.name)
    chosen = choose([faces[0].name for faces in found], found, face, threshold)
    references = [faces[i] for faces, i in zip(found, chosen, strict=True)]
    for reference in references:
        if reference.faces_found > 1:
            notices.append(f"{reference.name}: {reference.faces_found} faces found, {_taken(face)} is taken")
    return references, notices + _strangers(references, threshold)


def all_faces(picture: Picture, detector: FaceDetector, name: str) -> list[Reference]:
    """Each face of a picture, the largest first; `NoFaceError` if there is none."""
    image = as_rgb(picture, name)
    faces = detector.detect(image)
    if not faces:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise NoFaceError(f"{name}: no face found (detector {detector.name!r}, picture {size}); {_advice(detector)}")
    return [
        Reference(
            name,
            _limited(crop_upright(image, face.box, face.landmarks)),
            faces_found=len(faces),
            box=tuple(round(float(side), 1) for side in face.box),
            score=round(float(face.score), 4),
            embedding=face.embedding,
        )
        for face in faces
    ]


def _advice(detector: FaceDetector) -> str:
    other = "try another --detector"
    if detector.name == BUNDLE_PACK:
        other = f"the detector {BUNDLE_PACK!r} knows drawn portraits only: for photos use --detector opencv or yunet"
    return f"{other}, or --no_detect if the picture already is a face crop"


def _taken(face: str | int) -> str:
    if isinstance(face, int):
        return f"number {face} from the left"
    if face == "most-like":
        return "the one most like the other pictures'"
    return {"left": "the leftmost", "right": "the rightmost"}.get(face, "the largest")


def _strangers(references: Sequence[Reference], threshold: float) -> list[str]:
    """A notice for each reference that is unlike the others."""
    alien = unlike([reference.embedding for reference in references], threshold)
    return [
        f"{references[i].name}: its face is unlike those of the other pictures (similarity {likeness:.2f}, of the same "
        f"person mostly {threshold} or more); it is used all the same: leave it out if this is somebody else"
        for i, likeness in alien.items()
    ]


def _limited(crop: np.ndarray) -> np.ndarray:
    """The same, or of more than `MAX_CROP_PX` squared pixels the centred square that the encoder sees, made smaller."""
    if crop.shape[0] * crop.shape[1] <= MAX_CROP_PX**2:
        return crop
    side = min(crop.shape[:2])
    top, left = (crop.shape[0] - side) // 2, (crop.shape[1] - side) // 2
    square = Image.fromarray(crop[top : top + side, left : left + side])
    size = min(side, MAX_CROP_PX)
    return np.array(square.resize((size, size), Image.Resampling.BICUBIC))

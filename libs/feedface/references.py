"""From a picture somebody hands over to the square face crop the model looks at."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feedface.errors import UserError
from feedface.faces.crop import crop_square, square_box
from feedface.images import check_size, read_image, to_rgb

if TYPE_CHECKING:
    from feedface.faces.detect import FaceDetector

Picture = str | os.PathLike | Image.Image | np.ndarray


@dataclass(frozen=True)
class Reference:
    """One face the model is shown.

    Attributes:
        name: the file it came from, or "picture 1", … for pictures in memory.
        crop: uint8 RGB [S, S, 3]: the face box x 1.1, squared on its longer side, padded at borders; without detection
            the whole picture [H, W, 3].
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


def find_face(picture: Picture, detector: FaceDetector | None, name: str | None = None) -> Reference:
    """Find the largest face of a picture and crop it; `detector=None` takes the whole picture as the crop.

    Raises `NoFaceError` if the detector finds none, `UserError` if the picture cannot be read.
    """
    name = name or (str(picture) if isinstance(picture, str | os.PathLike) else "picture")
    image = as_rgb(picture, name)
    if detector is None:
        return Reference(name, image)
    faces = detector.detect(image)
    if not faces:
        raise NoFaceError(
            f"{name}: no face found (detector {detector.name!r}, picture {image.shape[1]} x {image.shape[0]}); "
            "try another --detector, or --no_detect if the picture already is a face crop"
        )
    face = faces[0]
    return Reference(
        name,
        crop_square(image, square_box(face.box)),
        faces_found=len(faces),
        box=tuple(round(float(side), 1) for side in face.box),
        score=round(float(face.score), 4),
        embedding=face.embedding,
    )


def find_faces(pictures: Sequence[Picture], detector: FaceDetector | None) -> tuple[list[Reference], list[str]]:
    """`find_face` for several pictures of one person.

    Returns the faces and notices for the user: pictures left out because no face was found in them, and pictures with
    several faces. `UserError` if no face was found in any of them, or a picture cannot be read.
    """
    references: list[Reference] = []
    notices: list[str] = []
    names = [
        str(picture) if isinstance(picture, str | os.PathLike) else f"picture {index}"
        for index, picture in enumerate(pictures, 1)
    ]
    for name, picture in zip(names, pictures, strict=True):
        try:
            reference = find_face(picture, detector, name)
        except NoFaceError as error:
            if len(pictures) == 1:
                raise
            notices.append(f"left out: {error}")
            continue
        if (reference.faces_found or 0) > 1:
            notices.append(f"{name}: {reference.faces_found} faces found, the largest is taken")
        references.append(reference)
    if not references:
        raise NoFaceError(
            f"no face found in any of the {len(names)} pictures {', '.join(names)} (detector "
            f"{detector.name!r}); try another --detector, or --no_detect if they already are face crops"
        )
    return references, notices

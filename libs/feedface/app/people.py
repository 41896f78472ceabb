"""One person of a visitor's: photos with the faces that were found in them, or a person's file."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from feedface.common.contact_sheet import sheet_font
from feedface.common.errors import UserError
from feedface.faces.choose import choose
from feedface.faces.identity import same_person
from feedface.faces.references import NoFaceError, all_faces, as_rgb
from feedface.inference.person import load_person, save_person
from feedface.inference.somebody import SUFFIX

if TYPE_CHECKING:
    from feedface.faces.references import Reference
    from feedface.faces.types import FaceDetector
    from feedface.pipeline import FeedFacePipeline

SHOWN_PX = 640  # longer side of a photo as it is shown again
USED, LEFT = (22, 120, 70), (110, 110, 110)


@dataclass
class Photo:
    """A photo with the faces that were found in it, from the left, and the photo small, to be shown."""

    name: str
    small: Image.Image
    scale: float
    faces: list[Reference]


@dataclass
class Someone:
    """A person, and whose files lie in `folder`."""

    folder: Path
    photos: list[Photo] = field(default_factory=list)
    chosen: set[int] = field(default_factory=set)  # of `faces`
    file: Path | None = None  # instead of photos
    count: int = 0

    @property
    def faces(self) -> list[Reference]:
        return [face for photo in self.photos for face in photo.faces]

    @property
    def references(self) -> list[Reference]:
        """The faces that are used."""
        return [face for number, face in enumerate(self.faces) if number in self.chosen]

    @property
    def there(self) -> bool:
        """Whether there is anybody to show."""
        return self.file is not None or bool(self.references)

    def shown(self) -> list[str]:
        """The photos with a numbered box around each face, as files, in the place of earlier ones."""
        self._forget_shown()
        first, files = 1, []
        for photo in self.photos:
            image, draw_at = photo.small.copy(), photo.scale
            draw = ImageDraw.Draw(image)
            for number, face in enumerate(photo.faces, first):
                used = number - 1 in self.chosen
                box = [side * draw_at for side in face.box]
                draw.rectangle(box, outline=USED if used else LEFT, width=4)
                label = f" {number} "
                left, top, right, bottom = draw.textbbox(box[:2], label, sheet_font())
                draw.rectangle((left, top - 2, right, bottom + 3), fill=USED if used else LEFT)
                draw.text(box[:2], label, (255, 255, 255), sheet_font())
            first += len(photo.faces)
            self.count += 1  # a new name: browsers keep what they have seen
            path = self.folder / f"{self.count:03d}_photo.jpg"
            image.save(path, quality=88)
            files.append(str(path))
        return files

    def choices(self) -> list[tuple[str, int]]:
        """A label and a number for each face."""
        labels = []
        for photo in self.photos:
            for place, _ in enumerate(photo.faces, 1):
                where = f", {place} of {len(photo.faces)} from the left" if len(photo.faces) > 1 else ""
                labels.append((f"{len(labels) + 1}: {photo.name}{where}", len(labels)))
        return labels

    def clear(self) -> None:
        """Forget the photos, or the file."""
        if self.file is not None:
            self.file.unlink(missing_ok=True)
        self.photos, self.chosen, self.file = [], set(), None
        self._forget_shown()

    def _forget_shown(self) -> None:
        for path in self.folder.glob("*_photo.jpg"):
            path.unlink(missing_ok=True)


def add_photos(someone: Someone, files: Sequence[str | Path], detector: FaceDetector) -> list[str]:
    """Find the faces of photos, delete their files, and choose the person's anew; one line for each without a face."""
    notices = []
    for file in map(Path, files):
        try:
            image = as_rgb(file)
            found = sorted(all_faces(image, detector, file.name), key=lambda face: face.box[0] + face.box[2])
            someone.photos.append(Photo(file.name, *small(image), found))
        except NoFaceError:
            notices.append(f"{file.name}: no face was found in this picture; it is left out.")
        except UserError as error:
            notices.append(str(error).replace(str(file), file.name))
        finally:
            file.unlink(missing_ok=True)
    someone.chosen = _person(someone.photos, detector)
    if someone.photos and someone.file is not None:
        someone.file.unlink(missing_ok=True)
        someone.file = None
    return notices


def add_file(someone: Someone, file: Path, pipe: FeedFacePipeline) -> int:
    """Take a person's file over, in the place of photos; how many faces it was made of. `UserError` for another."""
    try:
        if file.suffix != SUFFIX:
            raise UserError(f"{file.name}: a person's file ends in {SUFFIX}")
        person = load_person(file, pipe)
        someone.clear()
        someone.file = Path(shutil.move(file, someone.folder / file.name))
        return len(person.faces)
    except UserError as error:
        raise UserError(str(error).replace(str(file), file.name)) from None
    finally:
        file.unlink(missing_ok=True)


def keep_file(someone: Someone, name: str, pipe: FeedFacePipeline, detector: FaceDetector) -> Path:
    """Write somebody's photos as a person's file. `UserError` where there is no face."""
    if not someone.references:
        raise UserError("There are no faces to save; add photos first.")
    path = someone.folder / f"{name}{SUFFIX}"
    save_person(path, pipe, someone.references, detector.name)
    return path


def small(image: np.ndarray) -> tuple[Image.Image, float]:
    """A picture uint8 [H, W, 3] as it is shown again, and how much smaller it is."""
    scale = min(1.0, SHOWN_PX / max(image.shape))
    size = [max(1, round(side * scale)) for side in reversed(image.shape[:2])]
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), scale


def _person(photos: Sequence[Photo], detector: FaceDetector) -> set[int]:
    """The numbers of one person's faces, one in each photo: who is in most of them, else the largest face."""
    if not photos:
        return set()
    largest_first = [sorted(photo.faces, key=_area, reverse=True) for photo in photos]
    how = "most-like" if getattr(detector, "has_recogniser", False) and len(photos) > 1 else "largest"
    names = [photo.name for photo in photos]
    chosen = [
        faces[number]
        for faces, number in zip(
            largest_first, choose(names, largest_first, how, same_person(detector.name)), strict=True
        )
    ]
    everybody = [face for photo in photos for face in photo.faces]
    return {number for number, face in enumerate(everybody) if any(face is one for one in chosen)}


def _area(face: Reference) -> float:
    x0, y0, x1, y1 = face.box
    return (x1 - x0) * (y1 - y0)

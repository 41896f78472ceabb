"""What the page keeps of each visitor: their photos, their pictures, whether they said stop. It goes when they do."""

import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from feedface.common.contact_sheet import sheet_font
from feedface.faces.references import Reference

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
class Drawn:
    """A picture that was drawn: its file, what stands under it, and the job that makes it again."""

    file: Path
    caption: str
    job: dict
    references: list[Reference]
    model: Path
    seed: int


@dataclass
class Session:
    """One visitor."""

    folder: Path
    photos: list[Photo] = field(default_factory=list)
    chosen: set[int] = field(default_factory=set)  # of `faces`
    history: list[Drawn] = field(default_factory=list)  # the newest first
    selected: Drawn | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    count: int = 0

    @property
    def faces(self) -> list[Reference]:
        return [face for photo in self.photos for face in photo.faces]

    @property
    def references(self) -> list[Reference]:
        """The faces that are used."""
        return [face for number, face in enumerate(self.faces) if number in self.chosen]

    def file(self, name: str) -> Path:
        """A new file of this visitor's: `name` after a number that no other has."""
        self.count += 1
        return self.folder / f"{self.count:03d}_{name}"

    def shown(self) -> list[str]:
        """The photos with a numbered box around each face, as files."""
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
            path = self.file("photo.jpg")
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
        """Forget the photos."""
        self.photos, self.chosen = [], set()
        for path in self.folder.glob("*_photo.jpg"):
            path.unlink(missing_ok=True)


def small(image: np.ndarray) -> tuple[Image.Image, float]:
    """A picture uint8 [H, W, 3] as it is shown again, and how much smaller it is."""
    scale = min(1.0, SHOWN_PX / max(image.shape))
    size = [max(1, round(side * scale)) for side in reversed(image.shape[:2])]
    return Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), scale


class Sessions:
    """All visitors, by the key of their open page."""

    def __init__(self, root: Path):
        self._root, self._known, self._lock = root, {}, threading.Lock()

    def of(self, key: str) -> Session:
        """The visitor with that key, new if there is none."""
        with self._lock:
            if key not in self._known:
                self._known[key] = Session(Path(tempfile.mkdtemp(prefix="visitor-", dir=self._root)))
            return self._known[key]

    def forget(self, key: str) -> None:
        """Stop what a visitor who has left is waiting for, and delete all that is theirs."""
        with self._lock:
            session = self._known.pop(key, None)
        if session is not None:
            session.stop.set()
            shutil.rmtree(session.folder, ignore_errors=True)

"""What a run leaves behind: numbered PNGs that say how they were made, and its results. Nothing is overwritten.

A picture is known by its fingerprint: prompt, seed, settings, model and faces. A run that finds a whole picture with
the fingerprint it is about to make takes that one; other pictures stay where they are and the numbers go on. Runs may
share a folder, also at the same time: each name is claimed by one of them.

    0000.png, 0001.png, …                   pictures
    reference_DIGEST.png                    face crops, by their content: a picture's metadata names its crops' digests
    results_0000.json, sheet_0000.png, …    of each run that made pictures
    results.json, sheet.png                 of the last run
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, PngImagePlugin

from feedface import __version__
from feedface.common.errors import UserError
from feedface.common.files import NameTaken, make_folder
from feedface.common.images import open_image
from feedface.common.saving import naming, save_json, save_png

T = TypeVar("T")
RESULTS, SHEET = "results", "sheet"
_OF_A_RUN = re.compile(rf"(?:{RESULTS}|{SHEET})_(\d{{4,}})\.(?:json|png)")


@dataclass(frozen=True)
class PictureInfo:
    """How one picture is made: all that changes it.

    Attributes:
        settings: steps, guidance, face_scale, size, uncond, dtype.
        references: digest of each face crop.
    """

    prompt: str
    seed: int
    model: str
    model_digest: str
    settings: dict
    references: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def metadata(self) -> PngImagePlugin.PngInfo:
        """The same as PNG text: prompt, seed, model, settings (JSON), fingerprint, Software."""
        png = PngImagePlugin.PngInfo()
        settings = self.settings | {"model_digest": self.model_digest, "references": self.references}
        png.add_itxt("prompt", self.prompt)
        png.add_itxt("seed", str(self.seed))
        png.add_itxt("model", self.model)
        png.add_itxt("settings", json.dumps(settings))
        png.add_itxt("fingerprint", self.fingerprint)
        png.add_itxt("Software", f"FeedFace {__version__}")
        return png


class PictureFolder:
    """One folder of pictures, as above."""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        with naming(self.folder):
            make_folder(self.folder)
        self._finished: dict[str, Path] = {}
        self._next = 0
        for path in sorted(self.folder.glob("*.png")):
            if re.fullmatch(r"\d{4,}", path.stem):
                self._next = max(self._next, int(path.stem) + 1)
                fingerprint = read_fingerprint(path)
                if fingerprint:
                    self._finished.setdefault(fingerprint, path)

    def find(self, info: PictureInfo) -> Path | None:
        """The finished picture made in exactly this way, if there is one."""
        return self._finished.get(info.fingerprint)

    def save(self, image: Image.Image, info: PictureInfo) -> Path:
        """Write the picture under the next free number. `OutputError` if it cannot be written."""

        def write(number: int) -> Path:
            path = self.folder / f"{number:04d}.png"
            save_png(image, path, info.metadata(), new=True)
            return path

        self._next, path = _claim(self._next, write)
        self._finished[info.fingerprint] = path
        return path

    def save_reference(self, crop: Image.Image, digest: str) -> Path:
        """Write a face crop under its digest."""
        path = self.folder / f"reference_{digest}.png"
        save_png(crop, path)
        return path

    def save_run(self, results: dict, sheet: Image.Image, keep: bool) -> tuple[Path, Path]:
        """Write the last run's results and contact sheet, and with `keep` once more under the run's own number.

        Returns the paths of both, numbered where they are kept.
        """
        paths = self.folder / f"{RESULTS}.json", self.folder / f"{SHEET}.png"
        if keep:

            def write(number: int) -> tuple[Path, Path]:
                paths = self.folder / f"{RESULTS}_{number:04d}.json", self.folder / f"{SHEET}_{number:04d}.png"
                save_json(results, paths[0], new=True)
                save_png(sheet, paths[1])  # the number is this run's
                return paths

            numbers = [int(match[1]) for path in self.folder.iterdir() if (match := _OF_A_RUN.fullmatch(path.name))]
            _, kept = _claim(max(numbers, default=-1) + 1, write)
        save_png(sheet, paths[1])
        save_json(results, paths[0])
        return kept if keep else paths


def _claim(number: int, write: Callable[[int], T]) -> tuple[int, T]:
    """Write something new under the first number from `number` on that nobody has; returns the next one, and it."""
    while True:
        try:
            return number + 1, write(number)
        except NameTaken:  # by a run that writes here at the same time
            number += 1


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a whole picture of ours, else None."""
    try:
        with open_image(path, ("PNG",)) as image:
            image.load()
            return image.text.get("fingerprint")
    except UserError:  # Whatever is wrong with the file: it is not a finished picture.
        return None

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
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, PngImagePlugin

from feedface import __version__
from feedface.common.errors import UserError
from feedface.common.files import NameTaken, atomic_file, check_depth, make_folder
from feedface.common.images import open_image

T = TypeVar("T")
RESULTS, SHEET = "results", "sheet"
_OF_A_RUN = re.compile(rf"(?:{RESULTS}|{SHEET})_(\d{{4,}})\.(?:json|png)")
MAX_NAME_BYTES = 80
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}


class OutputError(UserError):
    """The place to write to cannot be used (full, read-only, not a folder): going on is of no use."""


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
        with _naming(self.folder):
            make_folder(self.folder)
        self._finished: dict[str, Path] = {}
        self._next = 0
        for path in sorted(self.folder.glob("*.png")):
            if re.fullmatch(r"\d{4,}", path.stem):
                self._next = max(self._next, int(path.stem) + 1)
                fingerprint = _read_fingerprint(path)
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


def check_writable(folder: Path) -> None:
    """Check that `folder` can be written to, or made, before any work is done; makes nothing. `OutputError` if not."""
    existing = folder.absolute()
    check_depth(folder)
    while not os.path.lexists(existing):
        existing = existing.parent
    with _naming(folder), tempfile.TemporaryFile(dir=existing) as probe:
        probe.write(bytes(4096))


def save_png(image: Image.Image, path: Path, metadata: PngImagePlugin.PngInfo | None = None, new: bool = False) -> None:
    """Write a PNG, whole or not at all. `OutputError` names the file; `new`: see `atomic_file`."""
    with _naming(path), atomic_file(path, new) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def save_json(data: object, path: Path, new: bool = False) -> None:
    """Write JSON, whole or not at all. `OutputError` names the file; `new`: see `atomic_file`."""
    save_ascii(json.dumps(data, indent=2) + "\n", path, new)


def save_ascii(text: str, path: Path, new: bool = False) -> None:
    """Write text such as `json.dumps` makes it, whole or not at all. `OutputError` names the file."""
    # ASCII only: a job's id may hold characters that UTF-8 cannot (lone surrogates).
    with _naming(path), atomic_file(path, new) as temporary:
        temporary.write_text(text, encoding="ascii")


def safe_name(text: str) -> str:
    """A folder name for any text, the same each time: letters, digits, "-" and "_", at most 80 bytes.

    Text that has to be changed for that gets a hash of the original, so that two texts never share a name.
    """
    kept = "".join(char if char.isalnum() or char in "-_" else "_" for char in unicodedata.normalize("NFC", text))
    kept = kept.encode("utf-8", "ignore")[:MAX_NAME_BYTES].decode("utf-8", "ignore")
    if kept == text and kept and kept.casefold() not in WINDOWS_DEVICES:
        return kept
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    stem = kept.encode()[: MAX_NAME_BYTES - 9].decode("utf-8", "ignore").strip("_")
    return f"{stem}-{digest}" if stem else digest


def _claim(number: int, write: Callable[[int], T]) -> tuple[int, T]:
    """Write something new under the first number from `number` on that nobody has; returns the next one, and it."""
    while True:
        try:
            return number + 1, write(number)
        except NameTaken:  # by a run that writes here at the same time
            number += 1


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the system's error into one that names the file or folder the user knows, not a temporary one."""
    try:
        yield
    except NameTaken:
        raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a whole picture of ours, else None."""
    try:
        with open_image(path, ("PNG",)) as image:
            image.load()
            return image.text.get("fingerprint")
    except UserError:  # Whatever is wrong with the file: it is not a finished picture.
        return None

"""What a run leaves behind: numbered PNGs that say how they were made, and results.json. Nothing is overwritten.

A picture is known by its fingerprint: prompt, seed, settings, model and faces. A run that finds a whole picture with
the fingerprint it is about to make takes that one; other pictures stay where they are and the numbers go on.
"""

import hashlib
import json
import os
import re
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

from feedface import __version__
from feedface.errors import UserError
from feedface.files import atomic_file

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
    """The numbered PNGs of one folder: 0000.png, 0001.png, …"""

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)
        with _naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
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
        path = self.folder / f"{self._next:04d}.png"
        save_png(image, path, info.metadata())
        self._next += 1
        self._finished[info.fingerprint] = path
        return path


def check_writable(folder: Path) -> None:
    """Check that `folder` can be written to, or made, before any work is done; makes nothing. `OutputError` if not."""
    existing = folder.absolute()
    while not os.path.lexists(existing):
        existing = existing.parent
    with _naming(folder), tempfile.TemporaryFile(dir=existing) as probe:
        probe.write(bytes(4096))


def save_png(image: Image.Image, path: Path, metadata: PngImagePlugin.PngInfo | None = None) -> None:
    """Write a PNG, whole or not at all. `OutputError` names the file."""
    with _naming(path), atomic_file(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def save_json(data: object, path: Path) -> None:
    """Write JSON, whole or not at all. `OutputError` names the file."""
    save_ascii(json.dumps(data, indent=2) + "\n", path)


def save_ascii(text: str, path: Path) -> None:
    """Write text such as `json.dumps` makes it, whole or not at all. `OutputError` names the file."""
    # ASCII only: a job's id may hold characters that UTF-8 cannot (lone surrogates).
    with _naming(path), atomic_file(path) as temporary:
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


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn the system's error into one that names the file or folder the user knows, not a temporary one."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def _read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a whole picture of ours, else None."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.load()
            return image.text.get("fingerprint")
    except Exception:  # Whatever is wrong with the file: it is not a finished picture.
        return None

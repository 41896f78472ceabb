"""Pictures and JSON that a run leaves: written whole or not at all, and an error names the file that the user knows."""

import hashlib
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, PngImagePlugin

from feedface.common.errors import UserError
from feedface.common.files import NameTaken, atomic_file, check_depth

MAX_NAME_BYTES = 80
WINDOWS_DEVICES = {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(10)}


class OutputError(UserError):
    """The place to write to cannot be used (full, read-only, not a folder): going on is of no use."""


def check_writable(folder: Path) -> None:
    """Check that `folder` can be written to, or made, before any work is done; makes nothing. `OutputError` if not."""
    existing = folder.absolute()
    check_depth(folder)
    while not os.path.lexists(existing):
        existing = existing.parent
    with naming(folder), tempfile.TemporaryFile(dir=existing) as probe:
        probe.write(bytes(4096))


def save_png(image: Image.Image, path: Path, metadata: PngImagePlugin.PngInfo | None = None, new: bool = False) -> None:
    """Write a PNG, whole or not at all. `OutputError` names the file; `new`: see `atomic_file`."""
    with naming(path), atomic_file(path, new) as temporary:
        image.save(temporary, format="PNG", pnginfo=metadata)


def save_json(data: object, path: Path, new: bool = False) -> None:
    """Write JSON, whole or not at all. `OutputError` names the file; `new`: see `atomic_file`."""
    save_ascii(json.dumps(data, indent=2) + "\n", path, new)


def save_ascii(text: str, path: Path, new: bool = False) -> None:
    """Write text such as `json.dumps` makes it, whole or not at all. `OutputError` names the file."""
    # ASCII only: a job's id may hold characters that UTF-8 cannot (lone surrogates).
    with naming(path), atomic_file(path, new) as temporary:
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
def naming(path: Path) -> Iterator[None]:
    """Turn the system's error into one that names the file or folder the user knows, not a temporary one."""
    try:
        yield
    except NameTaken:
        raise
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None

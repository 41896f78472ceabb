"""Which pictures a folder holds: sub-folders and links included, in an order that never changes."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from feedface.common.errors import UserError
from feedface.common.images import SUFFIXES
from feedface.preparation.result import KINDS, Stamp

# What file managers, photo stations and bins leave beside photos: thumbnails and copies of them.
JUNK = frozenset(
    (
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "$recycle.bin",
        "__macosx",
        "lost+found",
        "system volume information",
    )
)
MAX_NAME_BYTES = 255  # of a file name, on all usual file systems
OWN_BYTES = len(".tmp-01234567-") + len("_0000.json")  # what a run adds to a picture's name


@dataclass
class Scan:
    """What is in the data folder.

    Attributes:
        pictures: paths below the folder, "/" between their parts, sorted.
        left_out: how many other files there are, by suffix or reason.
        notes: lines for the user about what was left out although it may be a picture.
    """

    pictures: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


def check_folders(data: Path, out: Path) -> None:
    """`UserError` where one folder would be read as the other, or there is nothing to read."""
    if not data.is_dir():
        problem = "not a folder" if data.exists() else "no such folder"
        raise UserError(f"--data_folder {data}: {problem}; name the folder that holds the photos")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out_folder {out}: a file, not a folder; name a folder that is new or made by make_data.py")
    inner, outer = out.resolve(), data.resolve()
    if inner == outer or outer in inner.parents:
        raise UserError(
            f"--out_folder {out}: lies inside --data_folder {data}, where its masks would be taken for photos; "
            "name a folder beside it"
        )
    for name in (*KINDS, "crops", "adaface"):
        if inner / name in (outer, *outer.parents):
            raise UserError(f"--data_folder {data}: lies inside {out / name}, which a run writes to; move the photos")


def scan(data: Path, out: Path) -> Scan:
    """Find the pictures below `data`; hidden files and folders and those with other suffixes are counted, not read.

    Links to files are followed, links to folders too unless these lie in `data` anyway or in `out`. `UserError`: a
    folder that cannot be listed (its pictures would count as deleted), no picture at all, a folder named like a file
    that a picture gets.
    """
    found, seen = Scan(), {data.resolve(), out.resolve()}
    waiting = [("", data)]
    while waiting:
        prefix, folder = waiting.pop()
        for entry in _listed(folder):
            if reason := _left_out(entry, found.notes):
                found.left_out[reason] += 1
            elif not _is_folder(entry):
                found.pictures.append(prefix + entry.name)
            elif _is_new(entry, seen):
                waiting.append((f"{prefix}{entry.name}/", Path(entry.path)))
    found.pictures.sort()
    found.notes.sort()
    if not found.pictures:
        others = f" ({_counts(found.left_out)})" if found.left_out else ""
        raise UserError(f"--data_folder {data}: holds no pictures{others}; they need a suffix such as .jpg or .png")
    _check_names(found.pictures)
    return found


def stamp_of(path: Path) -> Stamp | None:
    """Changes when the file does; None where it is missing or may not be read."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns] if os.access(path, os.R_OK) else None


def summary(found: Scan) -> str:
    """One line: how many pictures, and what else there is."""
    others = f"; left out: {_counts(found.left_out)}" if found.left_out else ""
    return f"{len(found.pictures)} picture(s){others}"


def _counts(counter: Counter) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counter.items(), key=lambda item: (-item[1], item[0])))


def _listed(folder: Path) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be listed ({error.strerror}); make it readable, or move it out of --data_folder"
        ) from None


def _left_out(entry: os.DirEntry, notes: list[str]) -> str:
    """Why a file or folder is not looked at, empty if it is; what may be a picture is noted."""
    suffix, most = Path(entry.name).suffix.lower(), MAX_NAME_BYTES - OWN_BYTES
    if entry.name.startswith("."):
        return "hidden"
    if re.search("[\ud800-\udfff]", entry.name):  # bytes that Python could not decode
        notes.append(f"{os.fsencode(entry.path)!r}: the name is not UTF-8; rename it")
        return "name not UTF-8"
    if _is_folder(entry):
        return "of other programs" if entry.name.lower() in JUNK else ""
    if suffix not in SUFFIXES:
        return suffix or "no suffix"
    if len(os.fsencode(entry.name)) > most:
        notes.append(f"{entry.path}: the name is too long; {most} bytes are room")
        return "name too long"
    return ""


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_new(entry: os.DirEntry, seen: set[Path]) -> bool:
    """Whether a folder is one to look into: no link to what has been, or will be, looked into."""
    if not entry.is_symlink():
        return True
    target = Path(entry.path).resolve()
    if any(target == other or other in target.parents or target in other.parents for other in seen):
        return False
    seen.add(target)
    return True


def _check_names(pictures: list[str]) -> None:
    """A folder must not have the name of an output file: `b.jpg.json/c.jpg` beside `b.jpg`."""
    names = set(pictures)
    parents = {parent.as_posix() for rel in pictures for parent in PurePosixPath(rel).parents}
    for folder in sorted(parent for parent in parents if parent.endswith((".json", ".png"))):
        stem = folder.rpartition(".")[0]
        for rel in (stem, re.sub(r"_\d+$", "", stem)):
            if rel in names:
                raise UserError(f"{folder}: a folder with the name of a file that {rel} gets; rename the folder")

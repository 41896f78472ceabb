"""Files and folders that are either whole or not there: written under a temporary name, synced, then renamed."""

import errno
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feedface.common.errors import UserError

NEARLY_FULL = 1 << 16  # bytes left
MAX_DEPTH = 200  # folders in each other: Python's own functions fail at some hundreds
LAST = "last"  # what leads to the newest of several folders
LONGEST_NAME = 255  # bytes
# Beginnings of names, before a random tag: of what is not whole yet, and of a whole folder that makes way.
_TEMPORARY, _ASIDE, _TAG = ".tmp-", ".old-", 8

# Read once: asking means setting it for a moment, for all threads.
_UMASK = os.umask(0)
os.umask(_UMASK)


def _finish(file: Path) -> None:
    """Onto the disk, and readable as files usually are: safetensors writes for the owner alone."""
    file.chmod(0o666 & ~_UMASK)
    with open(file, "rb") as handle:
        os.fsync(handle.fileno())


def _check_full(error: Exception, path: Path) -> None:
    """`OSError` ENOSPC when `error`, raised while `path` was written, comes of a full disk, however it is put."""
    seen: BaseException | None = error
    while seen is not None:  # torch raises another error while it tidies up
        if isinstance(seen, OSError) and seen.errno == errno.ENOSPC and (seen is not error or seen.filename is None):
            raise OSError(errno.ENOSPC, seen.strerror, str(path)) from None
        seen = seen.__context__
    # safetensors has words of its own for it; what was written in vain is still there.
    if not isinstance(error, OSError | UserError) and shutil.disk_usage(path.parent).free < NEARLY_FULL:
        raise OSError(errno.ENOSPC, "the disk is full, make room and run the same command again", str(path))


def _name_beside(path: Path, prefix: str = _TEMPORARY) -> Path:
    # Same folder, so that the rename never crosses a file system; the suffix stays, since libraries go by it.
    return path.with_name(f"{prefix}{uuid.uuid4().hex[:_TAG]}-{path.name}")


def _sync_folder(folder: Path) -> None:
    """Make renames in `folder` outlive a power cut; Windows cannot open folders, and does without."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: Path) -> None:
    """Delete temporary files and folders of a process that was killed. Only where no other process writes.

    A folder that was moved aside for a new one which then never came is put back.
    """
    for path in folder.glob(f"{_ASIDE}*"):
        _settle(path)
    for path in folder.glob(f"{_TEMPORARY}*"):
        _remove(path)


def remove_folder(folder: Path) -> None:
    """Delete a folder; killed meanwhile, nothing half deleted is left under its name."""
    temporary = _name_beside(folder)
    os.replace(folder, temporary)
    _remove(temporary)


def _settle(aside: Path) -> None:
    """What was moved `aside` goes back where its place is empty, since then it is the only copy; else it goes."""
    place = aside.with_name(aside.name[len(_ASIDE) + _TAG + 1 :])
    if place.exists():
        _remove(aside)
    else:
        os.replace(aside, place)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def point(link: Path, target: str) -> None:
    """Make `link` lead to its neighbour, the folder `target`, in one step.

    A symbolic link; on a disk without such (FAT, some network shares, Windows) a text file with the name in it, which
    `follow` follows.
    """
    temporary = _name_beside(link)
    try:
        try:
            temporary.symlink_to(target, target_is_directory=True)
        except (OSError, NotImplementedError):
            temporary.write_text(target + "\n")
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)


def pointed(link: Path) -> Path | None:
    """The neighbour that `link` leads to, there or not; None where `point` has not made it."""
    if link.is_symlink():
        name = os.readlink(link)
    elif link.is_file() and link.stat().st_size <= LONGEST_NAME:
        name = link.read_text(errors="replace").strip()
    else:
        return None
    return link.parent / name if Path(name).name == name not in ("", "..") else None


def follow(path: str | os.PathLike) -> Path:
    """`path`, but where a text file called `last` (see `point`) stands in it for a folder, by way of that folder."""
    path = Path(path)
    for link in (path, *path.parents):
        if link.name == LAST and link.is_file():
            target = pointed(link)
            return target / path.relative_to(link) if target and target.is_dir() else path
    return path


@contextmanager
def folder_lock(folder: Path, busy: str) -> Iterator[None]:
    """Hold `folder`, made if needed, for this process; `UserError` with the text `busy` when another one holds it.

    Freed however the process ends. Without effect on Windows.
    """
    make_folder(folder)
    with open(folder / ".lock", "w") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows
            pass
        except BlockingIOError:
            raise UserError(busy) from None
        yield


def check_depth(folder: Path) -> None:
    """`UserError` for a folder in too many others."""
    depth = len(folder.absolute().parts)
    if depth > MAX_DEPTH:
        raise UserError(f"{str(folder)[:60]}…: {depth} folders in each other; {MAX_DEPTH} are the limit")


def make_folder(folder: Path) -> None:
    """Make a folder, and those it is in, where they are not there. `UserError` if these are too many."""
    check_depth(folder)
    folder.mkdir(parents=True, exist_ok=True)


class NameTaken(FileExistsError):
    """A file that was not to be overwritten has come into being meanwhile."""


def _place_new(temporary: Path, path: Path) -> None:
    """Give a finished file its name, or raise `NameTaken`: of several processes one gets the name."""
    try:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a disk without hard links (FAT, some network shares): the name is claimed by an empty file
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            os.replace(temporary, path)
    except FileExistsError as error:
        raise NameTaken(error.errno, error.strerror, str(path)) from None


@contextmanager
def atomic_file(path: str | os.PathLike, new: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; on success it becomes `path`, on any error it is removed.

    new: nothing is overwritten, also by processes that write at the same time; `NameTaken` if `path` is there.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = _name_beside(path)
    try:
        yield temporary
        _finish(temporary)
        (_place_new if new else os.replace)(temporary, path)
        _sync_folder(path.parent)
    except Exception as error:
        _check_full(error, path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty temporary folder to fill; on success it replaces `path`, on any error it is removed."""
    path = Path(path)
    make_folder(path.parent)
    temporary = _name_beside(path)
    temporary.mkdir()
    try:
        for aside in path.parent.glob(f"{_ASIDE}{'?' * _TAG}-{glob.escape(path.name)}"):
            _settle(aside)  # left by a process that was killed
        yield temporary
        for inner in temporary.rglob("*"):
            if inner.is_file():
                _finish(inner)
            elif inner.is_dir():
                _sync_folder(inner)
        _sync_folder(temporary)
        _replace_folder(temporary, path)
    except Exception as error:
        _check_full(error, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace_folder(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`. Killed in between, it leaves the old one where `_settle` finds it."""
    # A non-empty folder cannot be replaced in one step: the old one is moved aside first and removed last.
    old = _name_beside(path, _ASIDE) if path.exists() else None
    if old is not None:
        os.replace(path, old)
    try:
        os.replace(new, path)
        _sync_folder(path.parent)
    finally:
        if old is not None:
            _settle(old)

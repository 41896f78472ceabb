"""Files and folders that are either whole or not there: written under a temporary name, synced, then renamed."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feedface.errors import UserError

NEARLY_FULL = 1 << 16  # bytes left
MAX_DEPTH = 200  # folders in each other: Python's own functions fail at some hundreds

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
    # torch and safetensors have words of their own for it; what they wrote in vain is still there.
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        raise OSError(errno.ENOSPC, error.strerror, str(path))
    if not isinstance(error, OSError | UserError) and shutil.disk_usage(path.parent).free < NEARLY_FULL:
        raise OSError(errno.ENOSPC, "the disk is full, make room and run the same command again", str(path))


def _temporary_name(path: Path) -> Path:
    # Same folder, so that the rename never crosses a file system; the suffix stays, since libraries go by it.
    return path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")


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
    """Delete temporary files and folders of a process that was killed. Only where no other process writes."""
    for path in folder.glob(".tmp-*"):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


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
    temporary = _temporary_name(path)
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
    temporary = _temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                _finish(file)
        # A non-empty folder cannot be replaced in one step: the old one is moved aside first and removed last.
        old = _temporary_name(path) if path.exists() else None
        if old is not None:
            os.replace(path, old)
        os.replace(temporary, path)
        _sync_folder(path.parent)
        if old is not None:
            shutil.rmtree(old)
    except Exception as error:
        _check_full(error, path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)

"""Files that somebody else made, looked at before they are opened: a pipe may never begin, a device never end.

And the one place where a library's reader may fail in ways of its own (`foreign`).
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from feedface.common.errors import UserError

MOST_BYTES = 1 << 30  # of a text


def check_file(path: str | os.PathLike, what: str = "file") -> os.stat_result:
    """What the system knows about a regular file, links followed.

    `UserError`: missing, a folder, a pipe, socket or device, unreadable. `what` is what it should be, for the message.
    """
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: a directory, not a {what}")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a regular file (a pipe, socket or device)")
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise UserError(f"{path}: no such {what}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    return status


def check_folder(folder: str | os.PathLike) -> None:
    """`UserError` unless it is a folder, and all that lies directly in it are files and folders.

    For libraries, which open by themselves whatever has the right name.
    """
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder")
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from None
    for path in (os.path.join(folder, name) for name in names):
        if not os.path.isdir(path):
            check_file(path)


def read_text(path: str | os.PathLike, what: str = "file", most_bytes: int = MOST_BYTES) -> str:
    """UTF-8 text, with or without a byte order mark, its lines as they end. `UserError`, with the line if not UTF-8.

    Raises `UserError` as `check_file`, and for a file of more than `most_bytes`.
    """
    size = check_file(path, what).st_size
    if size > most_bytes:
        raise UserError(f"{path}: {size >> 20} MiB; {most_bytes >> 20} MiB are the limit here")
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


@contextmanager
def foreign(problem: str) -> Iterator[None]:
    """Around a library's reader of files: whatever it raises becomes a `UserError` that begins with `problem`.

    For what is broken libraries raise errors of nearly every kind, some written in Rust not even an `Exception`.
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise UserError(f"{problem}: {str(error) or type(error).__name__}") from error

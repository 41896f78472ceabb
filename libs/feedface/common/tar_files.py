"""Files inside of tar files, as if those were folders: `shards/0001.tar/000012.jpg`. Nothing is unpacked.

Where each member lies is found once and left beside the tar (`kept_arrays`), so that any of them is read by its place:
one file with thousands of pictures in it is what object stores and network disks like.
"""

import os
import tarfile
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.reading import check_file

SUFFIX = ".tar"
OPEN_TARS = 1024  # of which the table of members stays at hand; tables are mapped, not read


def kept_arrays(
    path: Path, index: Path, said: str, make: Callable[[], Mapping[str, np.ndarray]]
) -> Mapping[str, np.ndarray]:
    """What `make` makes of the file `path`, as it was left in `index` beside it, or made and left there now.

    Made anew when `path` has changed, or `said`, which is what else it depends on. Mapped, not read.
    """
    stat = os.stat(path)
    of = {"of": f"{said} {stat.st_size} {stat.st_mtime_ns}"}
    try:
        with safe_open(index, framework="pt") as file:
            if file.metadata() == of:
                return {name: file.get_tensor(name).numpy() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        pass  # there is none, or not a whole one
    made = make()
    try:
        with atomic_file(index) as temporary:
            save_file(dict(made), temporary, metadata=of)
    except (OSError, UserError):
        pass  # a folder that cannot be written to: made anew each time
    return made


class TarMembers:
    """The regular files in a tar, by name. `UserError` for what is no whole, plain tar."""

    def __init__(self, tar: Path):
        self.tar = tar
        found = kept_arrays(tar, tar.with_name(f".{tar.name}.members"), "1", lambda: _members(tar))
        self._names = found["names"].view(f"S{found['names'].shape[1]}")[:, 0] if len(found["names"]) else []
        self._begins, self._sizes = found["begins"], found["sizes"]

    def __len__(self) -> int:
        return len(self._names)

    def name(self, number: int) -> str:
        """Of the member `number`, in the order of their names' bytes."""
        return self._names[number].decode()

    def find(self, name: str) -> int | None:
        """The number of that member."""
        wanted = name.encode()
        number = bisect_left(self._names, wanted)
        return number if number < len(self) and self._names[number] == wanted else None

    def size(self, number: int) -> int:
        return int(self._sizes[number])

    def read(self, number: int) -> bytes:
        with open(self.tar, "rb") as file:  # each time: workers share nothing that has a position
            file.seek(int(self._begins[number]))
            return file.read(int(self._sizes[number]))


def tar_members(tar: str | os.PathLike) -> TarMembers:
    """Of a tar that is there; `UserError` for what is none."""
    status = check_file(tar, "tar")
    return _opened(os.fspath(tar), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=OPEN_TARS)
def _opened(tar: str, size: int, mtime_ns: int) -> TarMembers:
    return TarMembers(Path(tar))


def _members(tar: Path) -> dict[str, np.ndarray]:
    found: dict[bytes, tuple[int, int]] = {}
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                if member.isreg() and not member.issparse():
                    name = os.path.normpath(member.name).encode()
                    if name in found:
                        raise UserError(f"{tar}: holds two files {member.name!r}")
                    found[name] = member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"{tar}: not a plain tar that can be read ({error}); shards are not compressed") from None
    ends = [begin + size for begin, size in found.values()]
    if max(ends, default=0) > os.stat(tar).st_size:
        raise UserError(f"{tar}: is not whole: its last file is cut off")
    names = sorted(found)
    width = max(map(len, names), default=1)
    padded = np.frombuffer(b"".join(name.ljust(width, b"\0") for name in names), np.uint8)
    begins, sizes = (np.array([found[name][column] for name in names], np.int64) for column in (0, 1))
    return {"names": padded.reshape(len(names), width), "begins": begins, "sizes": sizes}


def split_tar(path: str | os.PathLike) -> tuple[str, str] | None:
    """(tar, name in it) of a path that leads into a tar; None for other paths."""
    text = os.fspath(path)
    end = text.find(SUFFIX + os.sep)
    if end < 0:
        return None
    tar, name = text[: end + len(SUFFIX)], text[end + len(SUFFIX) + 1 :]
    return None if os.path.isdir(tar) else (tar, os.path.normpath(name))


def read_member(path: str | os.PathLike, what: str = "file") -> bytes | None:
    """What is in a file inside of a tar; None for a path that leads into none. `UserError` where it is not there."""
    parts = split_tar(path)
    if parts is None:
        return None
    members = tar_members(parts[0])
    number = members.find(parts[1])
    if number is None:
        raise UserError(f"{path}: no such {what} in the tar")
    return members.read(number)


def file_stamp(path: str | os.PathLike) -> list[int]:
    """Changes when the file does: its size and time, of one in a tar the tar's; empty where there is none."""
    parts = split_tar(path)
    try:
        status = os.stat(path if parts is None else parts[0])
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]

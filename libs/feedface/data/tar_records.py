"""Records in shards: tar files with, for each sample, its files side by side, as the library webdataset has them.

    shard-00000.tar:  000000.json  000000.jpg  000000.mask.png  000001.json  000001.jpg  000001.mask.png  …

A sample is what has the same name up to the first dot. Its .json is a record as in a line of JSONL, see `records`, with
paths relative to the tar ("000001.jpg", or "../shard-00001.tar/000700.jpg"). "path", "mask_path" and "caption" may be
left out: then they are the sample's picture, its .mask.png and its .txt.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath

from feedface.common.tar_files import SUFFIX, TarMembers, tar_members

PICTURES = ("jpg", "jpeg", "png", "webp")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expand_ranges(paths: Iterable[str | os.PathLike]) -> list[Path]:
    """Paths, each with a range of numbers in it standing for many: "shard-{00000..00099}.tar"."""
    found = []
    for path in map(os.fspath, paths):
        match = _RANGE.search(path)
        if match is None:
            found.append(Path(path))
            continue
        first, last = match.groups()
        numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
        found += expand_ranges(path[: match.start()] + number + path[match.end() :] for number in numbers)
    return found


def is_tar(path: Path) -> bool:
    return path.suffix == SUFFIX


def sample_lines(tar: Path) -> Iterator[tuple[int, bytes]]:
    """The record of each sample, by name: the number of its .json among the tar's members, and itself."""
    members = tar_members(tar)
    for number in range(len(members)):
        if members.name(number).endswith(".json"):
            yield number, _line(members, number)


def sample_line(tar: Path, number: int) -> bytes:
    """One of them."""
    return _line(tar_members(tar), number)


def sample_name(tar: Path, number: int) -> str:
    """Its file, for messages."""
    return f"{tar}/{tar_members(tar).name(number)}"


def _line(members: TarMembers, number: int) -> bytes:
    """A .json member, with what may be left out in it put in; what is no JSON as it is, for its reader to say so."""
    line = members.read(number)
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict):
        return line
    name = PurePosixPath(members.name(number))
    key = str(name.with_name(name.name.partition(".")[0]))

    def put(field: str, names: Sequence[str], value: Callable[[str], str]) -> None:
        there = next((one for one in names if members.find(one) is not None), None)
        if field not in row and there is not None:
            row[field] = value(there)

    put("path", [f"{key}.{suffix}" for suffix in PICTURES], str)
    put("caption", [f"{key}.txt"], lambda name: members.read(members.find(name)).decode(errors="replace").strip())
    if "size" not in row:  # of open FlashFace's rows, which have none
        put("mask_path", [f"{key}.mask.png"], str)
    return json.dumps(row).encode()

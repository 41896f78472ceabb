"""Write records and their files into shards, as `tar_records` reads them."""

import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from pathlib import Path

from feedface.common.errors import UserError
from feedface.common.files import atomic_file, make_folder
from feedface.common.progress import progress
from feedface.common.reading import check_file
from feedface.data.records import Record, row_of

SHARD_BYTES = 1 << 30


@dataclass(frozen=True)
class _Sample:
    """A record, the shard it goes to, and the files that it brings there: (name, path)."""

    name: str
    record: Record
    shard: int
    files: list[tuple[str, Path]]


def write_shards(records: Sequence[Record], folder: Path, shard_bytes: int = SHARD_BYTES) -> list[Path]:
    """Write `shard-00000.tar`, … of about `shard_bytes` each into `folder`; each is whole or not there.

    A file that several records name is kept once. `UserError` for a folder with shards, a missing file, and records of
    open FlashFace, which have no masks.
    """
    make_folder(folder)
    if any(folder.glob("shard-*.tar")):
        raise UserError(f"{folder}: has shards already; name a new folder")
    samples = _samples(records, shard_bytes)
    places = {path: (sample.shard, name) for sample in samples for name, path in sample.files}
    written = []
    with progress(total=len(samples), desc="writing shards", unit="record") as bar:
        for shard, group in groupby(samples, key=lambda sample: sample.shard):
            written.append(folder / _file_name(shard))
            with atomic_file(written[-1]) as temporary, tarfile.open(temporary, "w") as tar:
                for sample in group:
                    _write(tar, sample, places)
                    bar.update()
    return written


def _file_name(shard: int) -> str:
    return f"shard-{shard:05d}.tar"


def _samples(records: Sequence[Record], shard_bytes: int) -> list[_Sample]:
    """Which file goes where. A record's own files stay with it, other pictures with the first that refers to them."""
    own, known = {record.path for record in records}, set()
    samples, shard, size = [], 0, 0
    for row, record in enumerate(records):
        if record.mask_path is None:
            raise UserError(f"{record.origin}: a row of open FlashFace, without a mask; shards hold faces with masks")
        name = f"{row:08d}"
        wanted = {"": record.path, ".mask": record.mask_path, ".depth": record.depth_path}
        wanted |= {f".ref{i}": ref.path for i, ref in enumerate(record.ref) if ref.path not in own}
        files = []
        for kind, path in wanted.items():
            if path is not None and path not in known:
                known.add(path)
                size += check_file(path).st_size
                files.append((f"{name}{kind}{path.suffix.lower()}", path))
        samples.append(_Sample(name, record, shard, files))
        if size >= shard_bytes:
            shard, size = shard + 1, 0
    return samples


def _write(tar: tarfile.TarFile, sample: _Sample, places: dict[Path, tuple[int, str]]) -> None:
    def named(path: Path) -> str:
        shard, name = places[path]
        return name if shard == sample.shard else f"../{_file_name(shard)}/{name}"

    row = json.dumps(row_of(sample.record, named), ensure_ascii=False).encode()
    _add(tar, f"{sample.name}.json", row)
    for name, path in sample.files:
        _add(tar, name, path.read_bytes())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # nobody's, of no time: the same records make the same bytes
    member.size = len(content)
    tar.addfile(member, BytesIO(content))

"""Records of files of any length: JSONL, or tar.

Small files are read whole. Of large ones, where each line begins is kept in memory, and a line is read when it is asked
for. The first time, every line is checked; where they begin and what is needed of all at once is left in a file beside
the records, for the next start, and made anew when these change.
"""

import os
from array import array
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from feedface.common.progress import progress
from feedface.common.reading import check_file
from feedface.common.tar_files import kept_arrays
from feedface.data.records import (
    FacelessRow,
    Record,
    folder_of,
    lines_of,
    make_record,
    no_records,
    origin_of,
    parse_row,
    read_line,
    read_records,
)
from feedface.data.tar_records import expand_ranges, is_tar

SMALL_BYTES = 64 << 20  # some 100 000 records, which take four times as much in memory
VERSION = "1"
BAR_EVERY = 10_000  # lines
# Columns of an index and the codes of their numbers: where a line begins, its number, how many other pictures of the
# person it lists, the picture's size, whether it is a row of open FlashFace.
COLUMNS = {"begin": "q", "line": "q", "refs": "H", "width": "i", "height": "i", "faceless": "b"}


class Records(Sequence[Record]):
    """N records, and what is needed of all at once.

    Attributes: `refs` int [N], how many other pictures of the person each lists; `sizes` int [N,2], width and height in
    pixels; `faceless` bool [N], rows of open FlashFace.
    """

    def __init__(self, refs: Sequence[int], widths: Sequence[int], heights: Sequence[int], faceless: Sequence[bool]):
        self.refs, self.faceless = np.asarray(refs, np.uint16), np.asarray(faceless, bool)
        self.sizes = np.stack([np.asarray(widths, np.int32), np.asarray(heights, np.int32)], axis=1)

    def __len__(self) -> int:
        return len(self.refs)


class RecordList(Records):
    """Records in memory."""

    def __init__(self, records: Sequence[Record]):
        self._records = records
        columns = zip(*((len(r.ref), r.width, r.height, r.mask_path is None) for r in records), strict=True)
        super().__init__(*columns)

    def __getitem__(self, row):
        return self._records[row]


class RecordTable(Records):
    """Records in files, each read when it is asked for."""

    def __init__(self, paths: Sequence[Path], faceless: bool):
        self._paths, self._takes_faceless = paths, faceless
        indexes = [_index(path, faceless) for path in paths]
        self._ends = list(accumulate(len(index["begin"]) for index in indexes))
        columns = {name: np.concatenate([index[name] for index in indexes]) for name in COLUMNS}
        self._begin, self._line = columns["begin"], columns["line"]
        super().__init__(*(columns[name] for name in ("refs", "width", "height", "faceless")))

    def __getitem__(self, row):
        if isinstance(row, slice):
            return [self[one] for one in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(f"record {row} of {len(self)}")
        row %= len(self)
        path = self._paths[bisect_right(self._ends, row)]
        begin = int(self._begin[row])
        origin = origin_of(path, begin, self._line[row])
        return make_record(parse_row(read_line(path, begin), self._takes_faceless, origin), folder_of(path), origin)


def open_records(paths: Sequence[str | os.PathLike], faceless: bool = False, small: int = SMALL_BYTES) -> Records:
    """The records of one or more files, held in memory up to `small` bytes of files, else read when asked for.

    JSONL or tar, as `read_records` takes them.

    Raises `UserError` as `read_records` does, before any record is given.
    """
    paths = expand_ranges(paths)
    for path in paths:
        check_file(path)
    if sum(path.stat().st_size for path in paths) <= small:
        return RecordList(read_records(paths, faceless))
    return RecordTable(paths, faceless)


def index_file(path: Path) -> Path:
    """Where the index of a file of records is left."""
    return path.with_name(f".{path.name}.index")


def _index(path: Path, faceless: bool) -> Mapping[str, np.ndarray]:
    """The columns of a file, as they were left beside it or made now."""
    return kept_arrays(path, index_file(path), f"{VERSION} {faceless}", lambda: _made(path, faceless))


def _made(path: Path, faceless: bool) -> dict[str, np.ndarray]:
    columns = {name: array(code) for name, code in COLUMNS.items()}
    add = [column.append for column in columns.values()]
    with progress(total=os.stat(path).st_size >> 20, desc=f"checking {path}", unit="MiB") as bar:
        for begin, number, line in lines_of(path):
            row = parse_row(line, faceless, origin_of(path, begin, number))
            without = isinstance(row, FacelessRow)
            width, height = row.size if without else (row.width, row.height)
            for put, value in zip(add, (begin, number, len(row.ref or ()), width, height, without), strict=True):
                put(value)
            if number % BAR_EVERY == 0 and not is_tar(path):
                bar.update((begin >> 20) - bar.n)
    if not columns["begin"]:
        raise no_records(path)
    return {name: np.frombuffer(column, column.typecode) for name, column in columns.items()}

"""Files that say something about pictures by their names: captions, or who is shown. JSON, JSON lines, CSV or TSV.

    .json          {"anna/1.jpg": "a woman …", …}, or a list of objects as in a line of JSON lines
    .jsonl         {"path": "anna/1.jpg", "caption": "a woman …"} on each line; other keys are ignored
    .csv, .tsv     a header line that names the columns, such as path,caption

A picture is named by its path below the data folder, "/" between folders, or by as much of the path's end as no other
picture has (its file name, mostly), or by a longer path that ends in it.
"""

import csv
import io
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from feedface.common.errors import UserError
from feedface.common.json_files import JsonFile, parse_json
from feedface.common.reading import MOST_BYTES, read_text

NAME_KEYS = ("path", "file_name", "name", "file")
SHOWN = 3
_SURROGATE = re.compile("[\ud800-\udfff]")  # half a character, which no file can hold


@dataclass(frozen=True)
class Kind:
    """What a file tells about pictures: `name` for messages, `keys` it stands under."""

    name: str
    keys: tuple[str, ...]
    numbers: bool = False  # are taken as text, too

    @property
    def wanted(self) -> str:
        return f'each picture needs a "{NAME_KEYS[0]}" and a "{self.keys[0]}"'


CAPTIONS = Kind("caption", ("caption", "text"))
PEOPLE = Kind("identity", ("identity", "person", "label", "id"), numbers=True)


@dataclass(frozen=True)
class Entry:
    """One value of a file. `origin`: file name, and line where the format has lines."""

    name: str
    value: str
    origin: str


class Table:
    """The values of a file, by picture.

    Args:
        path: the file.
        kind: what it tells.
        pictures: paths of all pictures below the data folder, "/" between folders.

    Attributes:
        unused: names in the file that no picture has.

    Raises:
        UserError: the file cannot be read, or breaks its format, or says two things about a picture; names the line.
    """

    def __init__(self, path: Path, kind: Kind, pictures: Sequence[str]):
        self.path, self.kind = Path(path), kind
        self.unused: list[str] = []
        self._found: dict[str, Entry] = {}
        self._unclear: dict[str, str] = {}
        self._assign(read_entries(self.path, kind), {_plain(rel): rel for rel in pictures})

    def get(self, rel: str) -> str:
        """The value of a picture; `UserError` without line break says why there is none."""
        if rel in self._found:
            return self._found[rel].value
        raise UserError(self._unclear.get(rel, f"{self.path.name} has no {self.kind.name} for it"))

    def find(self, rel: str) -> str | None:
        """The value of a picture, or None."""
        return self._found[rel].value if rel in self._found else None

    def _assign(self, entries: list[Entry], pictures: dict[str, str]) -> None:
        ends = defaultdict(list)
        for plain, rel in pictures.items():
            for end in _ends(plain):
                ends[end].append(rel)
        # Exact names come first: they hold whatever else there is.
        for entry in entries:
            if rel := pictures.get(_plain(entry.name)):
                self._take(rel, entry)
        whole = set(self._found)
        for entry in entries:
            name = _plain(entry.name)
            if name in pictures:
                continue
            longer = next((pictures[end] for end in _ends(name) if end in pictures), None)
            named = [longer] if longer else ends.get(name, [])
            fits = [rel for rel in named if rel not in whole]
            if len(fits) == 1:
                self._take(fits[0], entry)
            for rel in fits if len(fits) > 1 else ():
                some = ", ".join(fits[:SHOWN]) + (", …" if len(fits) > SHOWN else "")
                self._unclear[rel] = (
                    f"{entry.origin}: {entry.name} fits {len(fits)} pictures ({some}); write more of their paths"
                )
            if not named:
                self.unused.append(entry.name)

    def _take(self, rel: str, entry: Entry) -> None:
        other = self._found.setdefault(rel, entry)
        if other.value != entry.value:
            raise UserError(
                f"{self.path}: {rel} has two values of {self.kind.name!r}, as {other.name!r} ({other.origin}) and as "
                f"{entry.name!r} ({entry.origin}); remove one"
            )


def read_entries(path: Path, kind: Kind) -> list[Entry]:
    """All entries of a file in its order; raises `UserError` as `Table` does."""
    readers = {".json": _json, ".jsonl": _lines, ".ndjson": _lines, ".csv": _columns, ".tsv": _columns}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"{path}: not a kind of file known here; use .json, .jsonl, .csv or .tsv")
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: an empty file")
    entries = list(reader(path, text, kind))
    if not entries:
        raise UserError(f"{path}: names no pictures; {kind.wanted}")
    return entries


class _Object(dict):
    """A JSON object that remembers how it is written: keys may come twice."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self.pairs = pairs


def _json(path: Path, text: str, kind: Kind) -> Iterator[Entry]:
    content = parse_json(text, path, pairs=_Object)
    if not isinstance(content, _Object | list):
        raise UserError(f"{path}: neither an object nor a list; {kind.wanted}")
    by_name = isinstance(content, _Object)
    for place, item in enumerate(content.pairs if by_name else content):
        try:
            name, value = item if by_name else _pair(item, kind)
            if by_name:
                _check_value(value, kind, name)
        except UserError as error:
            line = JsonFile(path, MOST_BYTES).line(name if by_name else place)  # read again, only where it is wrong
            raise UserError(f"{path}:{line}: {error}") from None
        yield Entry(name, str(value), path.name)


def _lines(path: Path, text: str, kind: Kind) -> Iterator[Entry]:
    # Split at "\n" only: `splitlines` also breaks at characters that a caption may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _entry(parse_json(line, path, number), path, number, kind)


def _columns(path: Path, text: str, kind: Kind) -> Iterator[Entry]:
    delimiter, what = ("\t", "tabs") if path.suffix.lower() == ".tsv" else (",", "commas")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header, begin = None, 1
    try:
        for cells in reader:
            number, begin = begin, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if not set(header) & set(NAME_KEYS) or not set(header) & set(kind.keys):
                    raise UserError(f"{path}:{number}: not a header; {kind.wanted}")
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}:{number}: {len(cells)} cells under {len(header)} column names; put texts that hold "
                    f"{what} into double quotes"
                )
            yield _entry(dict(zip(header, cells, strict=True)), path, number, kind)
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: not CSV ({error})") from None


def _entry(row: object, path: Path, number: int, kind: Kind) -> Entry:
    try:
        name, value = _pair(row, kind)
    except UserError as error:
        raise UserError(f"{path}:{number}: {error}") from None
    return Entry(name, str(value), f"{path.name}:{number}")


def _pair(row: object, kind: Kind) -> tuple[str, object]:
    """Name and value out of an object; `UserError` says what is wrong, not where."""
    if not isinstance(row, dict):
        raise UserError(f"not an object; {kind.wanted}")
    keys = []
    for known in (NAME_KEYS, kind.keys):
        if not (there := [key for key in known if key in row]):
            raise UserError(f"no {' or '.join(known[:2])}; {kind.wanted}")
        keys.append(there[0])
    name, value = (row[key] for key in keys)
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{keys[0]}: must be the name of a picture, not {name!r:.60}")
    _check_value(value, kind, keys[1])
    return name, value


def _check_value(value: object, kind: Kind, key: str) -> None:
    is_number = kind.numbers and isinstance(value, int) and not isinstance(value, bool)
    if not is_number and not (isinstance(value, str) and value.strip() and not _SURROGATE.search(value)):
        raise UserError(f"{key}: the {kind.name} must be a string with something in it, not {value!r:.60}")


def _plain(name: str) -> str:
    """One spelling for one name: macOS decomposes accents, Windows writes backslashes."""
    name = unicodedata.normalize("NFC", name.strip())
    return name.replace("\\", "/").removeprefix("./")


def _ends(name: str) -> list[str]:
    """What a path ends in, the longest first, without the path itself."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]

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
from collections.abc import Sequence
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
        ends: dict[str, list[str]] = {}
        for plain in pictures:
            for end in _ends(plain):
                ends.setdefault(end, []).append(plain)
        # Exact names come first: they hold whatever else there is.
        exact = [_plain(entry.name) in pictures for entry in entries]
        for entry in (entry for entry, is_exact in zip(entries, exact, strict=True) if is_exact):
            self._take(pictures[_plain(entry.name)], entry)
        whole = set(self._found)
        for entry in (entry for entry, is_exact in zip(entries, exact, strict=True) if not is_exact):
            name = _plain(entry.name)
            longer = next((end for end in _ends(name) if end in pictures), None)
            fits = [longer] if longer is not None else ends.get(name, [])
            fits = [rel for rel in (pictures[plain] for plain in fits) if rel not in whole] if fits else []
            if len(fits) == 1:
                self._take(fits[0], entry)
            elif fits:
                some = ", ".join(fits[:SHOWN]) + (", …" if len(fits) > SHOWN else "")
                for rel in fits:
                    self._unclear[rel] = (
                        f"{entry.origin}: {entry.name} fits {len(fits)} pictures ({some}); write more of their paths"
                    )
            elif longer is None and name not in ends:
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
    entries = reader(path, _text(path), kind)
    if not entries:
        raise UserError(f"{path}: names no pictures; {_wanted(kind)}")
    return entries


def _text(path: Path) -> str:
    text = read_text(path)
    if not text.strip():
        raise UserError(f"{path}: an empty file")
    return text


class _Object(dict):
    """A JSON object that remembers how it is written: keys may come twice."""

    def __init__(self, pairs: list[tuple[str, object]]):
        super().__init__(pairs)
        self.pairs = pairs


def _json(path: Path, text: str, kind: Kind) -> list[Entry]:
    content = parse_json(text, path, pairs=_Object)
    if isinstance(content, _Object):
        pairs = content.pairs
        for key, value in pairs:
            if not _is_value(value, kind):
                raise _wrong(f"{path}:{_line(path, key)}: {key}", value, kind)
    elif isinstance(content, list):
        for number, row in enumerate(content):
            if not isinstance(row, dict):
                raise UserError(f"{path}:{_line(path, number)}: not an object; {_wanted(kind)}")
        pairs = [_pair(row, lambda row=number: f"{path}:{_line(path, row)}", kind)
                 for number, row in enumerate(content)]  # fmt: skip
    else:
        raise UserError(f"{path}: neither an object nor a list; {_wanted(kind)}")
    return [Entry(name, str(value), path.name) for name, value in pairs]


def _lines(path: Path, text: str, kind: Kind) -> list[Entry]:
    entries = []
    # Split at "\n" only: `splitlines` also breaks at characters that a caption may hold, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, path, number)
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: not an object; {_wanted(kind)}")
        name, value = _pair(row, lambda number=number: f"{path}:{number}", kind)
        entries.append(Entry(name, str(value), f"{path.name}:{number}"))
    return entries


def _columns(path: Path, text: str, kind: Kind) -> list[Entry]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    entries, header, begin = [], None, 1
    try:
        for cells in reader:
            number, begin = begin, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip().lower() for cell in cells]
                if not set(header) & set(NAME_KEYS) or not set(header) & set(kind.keys):
                    raise UserError(f"{path}:{number}: not a header; {_wanted(kind)}")
                continue
            if len(cells) != len(header):
                raise UserError(
                    f"{path}:{number}: {len(cells)} cells under {len(header)} column names; put texts that hold "
                    f"{'tabs' if delimiter != ',' else 'commas'} into double quotes"
                )
            row = dict(zip(header, cells, strict=True))
            name, value = _pair(row, lambda number=number: f"{path}:{number}", kind)
            entries.append(Entry(name, value, f"{path.name}:{number}"))
    except csv.Error as error:
        raise UserError(f"{path}:{begin}: not CSV ({error})") from None
    return entries


def _pair(row: dict, origin, kind: Kind) -> tuple[str, str]:
    """Name and value out of an object; `origin` says where it stands (it may take long to find out)."""
    name_key = next((key for key in NAME_KEYS if key in row), None)
    value_key = next((key for key in kind.keys if key in row), None)
    if name_key is None or value_key is None:
        missing = " or ".join(NAME_KEYS[:2] if name_key is None else kind.keys[:2])
        raise UserError(f"{origin()}: no {missing}; {_wanted(kind)}")
    if not isinstance(row[name_key], str) or not row[name_key].strip():
        raise UserError(f"{origin()}: {name_key}: must be the name of a picture, not {row[name_key]!r:.60}")
    if not _is_value(row[value_key], kind):
        raise _wrong(f"{origin()}: {value_key}", row[value_key], kind)
    return row[name_key], row[value_key]


def _is_value(value: object, kind: Kind) -> bool:
    if kind.numbers and isinstance(value, int) and not isinstance(value, bool):
        return True
    return isinstance(value, str) and bool(value.strip()) and not _SURROGATE.search(value)


def _wrong(where: str, value: object, kind: Kind) -> UserError:
    return UserError(f"{where}: the {kind.name} must be a string with something in it, not {value!r:.60}")


def _wanted(kind: Kind) -> str:
    return f'each picture needs a "{NAME_KEYS[0]}" and a "{kind.keys[0]}"'


def _line(path: Path, key: str | int) -> int:
    """Where the value of a JSON object's key, or an item of a list, begins."""
    return JsonFile(path, MOST_BYTES).line(key)


def _plain(name: str) -> str:
    """One spelling for one name: macOS decomposes accents, Windows writes backslashes."""
    name = unicodedata.normalize("NFC", name.strip())
    return name.replace("\\", "/").removeprefix("./")


def _ends(name: str) -> list[str]:
    """What a path ends in, the longest first, without the path itself."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(1, len(parts))]

"""JSON read with the line of every value, so that a message about a wrong value can say where it stands."""

import json
import os
from pathlib import Path

from feedface.errors import UserError


class LocatedDict(dict):
    """A JSON object; `line` is where it begins, `lines[key]` where the value of `key` begins (from 1)."""

    def __init__(self, pairs: list, lines: list[int], line: int):
        super().__init__(pairs)
        self.lines = {key: line for (key, _), line in zip(pairs, lines, strict=True)}
        self.line = line


class LocatedList(list):
    """A JSON list; `lines[i]` is where item i begins (from 1)."""

    def __init__(self, items: list, lines: list[int]):
        super().__init__(items)
        self.lines = lines


class _Decoder(json.JSONDecoder):
    """The standard decoder (its Python half), noting the position of each value as it is scanned."""

    def __init__(self):
        super().__init__()
        self.parse_object = self._object
        self.parse_array = self._array
        self.scan_once = json.scanner.py_make_scanner(self)

    def _object(self, text_and_end, strict, scan_once, object_hook, object_pairs_hook, memo):
        text, begin = text_and_end
        lines: list[int] = []
        scan = _noting(scan_once, lines)
        pairs, end = json.decoder.JSONObject(text_and_end, strict, scan, None, lambda pairs: pairs, memo)
        return LocatedDict(pairs, lines, _line(text, begin)), end

    def _array(self, text_and_end, scan_once):
        lines: list[int] = []
        items, end = json.decoder.JSONArray(text_and_end, _noting(scan_once, lines))
        return LocatedList(items, lines), end


def _noting(scan_once, lines: list[int]):
    def scan(text: str, index: int):
        result = scan_once(text, index)
        lines.append(_line(text, index))
        return result

    return scan


def _line(text: str, index: int) -> int:
    return text.count("\n", 0, index) + 1


def load_json(path: str | os.PathLike) -> object:
    """Read a JSON file (UTF-8); objects come as `LocatedDict`, lists as `LocatedList`.

    `UserError`, with the line: missing, a directory, unreadable, empty, not UTF-8, malformed.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not text.strip():
        raise UserError(f"{path}:1: an empty file, not JSON")
    try:
        return _Decoder().decode(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}, column {error.colno}") from None
    except RecursionError:
        raise UserError(f"{path}: not a job: JSON nested too deeply") from None

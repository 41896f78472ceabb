"""JSON files that somebody hands in: read with `json`, and whatever is wrong with one is a `UserError`."""

import json
import math
import os
import re
import stat
from bisect import bisect_left
from functools import cached_property
from pathlib import Path

from feedface.errors import UserError

# Far more than any file here holds; what is beyond was put here by mistake, or by malice.
MAX_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_DIGITS = 300  # so that every whole number can become a float

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


def load_json(path: str | os.PathLike) -> object:
    """The content of a JSON file (UTF-8, with or without a byte order mark). Every number in it is finite.

    `UserError`, with the line where there is one: missing, not a regular file, unreadable, empty, too large, not UTF-8,
    malformed, nested too deeply, a number too long or too large, NaN or Infinity (which JSON does not have).
    """
    return JsonFile(path).data


class JsonFile:
    """A JSON file that can say where a value stands.

    Attributes:
        path: the file.
        data: its content, see `load_json`.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._text = _read(self.path)
        self.data = parse_json(self._text, self.path)
        self._found: dict[int, dict[str | int, int]] = {}

    def line(self, *keys: str | int) -> int:
        """The line (from 1) where a value begins, by its keys and list indices; of a missing one, where its owner does.

        Any number of calls together take time linear in the file's size.
        """
        at = _skip(self._text, 0)
        for key in keys:
            if at not in self._found:
                self._found[at] = _children(self._text, at)
            if key not in self._found[at]:
                break
            at = self._found[at][key]
        return 1 + bisect_left(self._breaks, at)

    @cached_property
    def _breaks(self) -> list[int]:
        return [match.start() for match in re.finditer("\n", self._text)]


def parse_json(text: str, name: str | os.PathLike, line: int = 1) -> object:
    """The value that a JSON text holds; `UserError` as `load_json`, which names `name` and counts lines from `line`."""

    def where(position: int) -> str:
        return f"{name}:{line + text.count(chr(10), 0, position)}"

    def refuse(token: str, problem: str):
        shown = token if len(token) <= 20 else f"{token[:20]}…"
        # Not a match inside a longer number or name; inside a text it may be: then that line is named.
        match = re.search(rf"(?<![\w.+-]){re.escape(token)}(?![\w.])", text)
        raise UserError(f"{where(match.start() if match else 0)}: {shown}: {problem}")

    def whole(token: str) -> int:
        if len(token) > MAX_DIGITS:
            refuse(token, f"a number of {len(token)} digits; use at most {MAX_DIGITS}")
        return int(token)

    def real(token: str) -> float:
        value = float(token)
        if not math.isfinite(value):
            refuse(token, "larger than numbers can be here")
        return value

    def constant(token: str):
        refuse(token, "not valid JSON; use a number or null")

    if not text.strip():
        raise UserError(f"{name}:{line}: an empty file, not JSON")
    too_deep = UserError(f"{name}: JSON nested too deeply; {MAX_DEPTH} levels are the limit")
    try:
        value = json.loads(text, parse_int=whole, parse_float=real, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{where(error.pos)}: not valid JSON: {error.msg}, column {error.colno}") from None
    except RecursionError:
        raise too_deep from None
    if _depth(value) > MAX_DEPTH:
        raise too_deep
    return value


def _read(path: Path) -> str:
    try:
        # Neither a pipe, which may never end, nor a device.
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise UserError(f"{path}: a directory, not a JSON file")
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path}: not a regular file")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{path}: {status.st_size >> 20} MiB of JSON; {MAX_BYTES >> 20} MiB are the limit")
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def _depth(value: object) -> int:
    """How many lists and objects stand in each other, without recursion; stops counting past the limit."""
    depth, level = 0, [value]
    while depth <= MAX_DEPTH:
        owners = [item for item in level if isinstance(item, dict | list)]
        if not owners:
            break
        depth += 1
        level = [child for owner in owners for child in (owner.values() if isinstance(owner, dict) else owner)]
    return depth


def _skip(text: str, at: int) -> int:
    return _SPACE.match(text, at).end()


def _children(text: str, at: int) -> dict[str | int, int]:
    """Where the values of the object or list at `at` begin, by key or index; nothing for other values."""
    if text[at] not in "{[":
        return {}
    keyed, found = text[at] == "{", {}
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        key = len(found)
        if keyed:
            key, at = _decode(text, at)
            at = _skip(text, _skip(text, at) + 1)  # past the colon
        found[key] = at
        at = _skip(text, _decode(text, at)[1])
        if text[at] == ",":
            at = _skip(text, at + 1)
    return found

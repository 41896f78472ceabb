"""JSON files that somebody hands in: read with `json`, and whatever is wrong with one is a `UserError`."""

import json
import math
import os
import re
from bisect import bisect_left
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from feedface.common.errors import UserError
from feedface.common.reading import read_text

# Far more than any file here holds; what is beyond was put here by mistake, or by malice.
MAX_BYTES = 64 << 20
MAX_DEPTH = 100
MAX_DIGITS = 300  # so that every whole number can become a float

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


def load_json(path: str | os.PathLike, most_bytes: int | None = None) -> object:
    """The content of a JSON file (UTF-8, with or without a byte order mark). Every number in it is finite.

    `UserError`, with the line where there is one: missing, not a regular file, unreadable, empty, too large, not UTF-8,
    malformed, nested too deeply, a number too long or too large, NaN or Infinity (which JSON does not have).
    """
    return JsonFile(path, most_bytes).data


class JsonFile:
    """A JSON file that can say where a value stands.

    Args:
        most_bytes: a larger file is refused (default: `MAX_BYTES`).

    Attributes:
        path: the file.
        data: its content, see `load_json`.
    """

    def __init__(self, path: str | os.PathLike, most_bytes: int | None = None):
        self.path = Path(path)
        self._text = read_text(path, most_bytes=MAX_BYTES if most_bytes is None else most_bytes)
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


def parse_json(
    text: str, name: str | os.PathLike, line: int = 1, pairs: Callable[[list], dict] | None = None
) -> object:
    """The value that a JSON text holds; `UserError` as `load_json`, which names `name` and counts lines from `line`.

    `pairs` makes the objects, out of (key, value) in their order; keys may come twice.
    """

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
    too_deep = UserError(f"{name}:{line}: JSON nested too deeply; {MAX_DEPTH} levels are the limit")
    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_int=whole, parse_float=real, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise UserError(f"{where(error.pos)}: not valid JSON: {error.msg}, column {error.colno}") from None
    except RecursionError:
        raise too_deep from None
    if _depth(value) > MAX_DEPTH:
        raise too_deep
    return value


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

"""How an input goes wrong: damaged bytes, other JSON, files that are no files, pickles that run code.

Everything is drawn from the `random.Random` that is handed in.
"""

import json
import os
import pickle
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

HUGE = 1 << 40  # bytes of a sparse file
MARK = "\ue000{}\ue000"  # stands for raw text in a JSON file that is being made

# As they are written: Python's own writer has no words for some.
ODD_JSON = (
    "null", "true", "false", "0", "1", "-1", "0.5", "1e400", "-1e400", "NaN", "Infinity", "1e-320", "2147483648",
    "1000000000", "9" * 400, "1" + "0" * 5000, "-" + "9" * 5000, "9007199254740993", "1e308",
    '""', '" "', '"a"', '"64"', '"\\ud800"', '"\\u0000"', '"../../etc/passwd"', '"/dev/zero"',
    '"/"', '"."', '"' + "x" * 300 + '"', '"' + "y" * 100_000 + '"',
    "[]", "{}", "[[]]", "[null]", '[""]', '{"": null}', "[1, 2, 3, 4]", "[1e9, 1e9, 1e9, 1e9]", "[" * 50 + "]" * 50,
    "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000,
)  # fmt: skip


def damage(rng: random.Random, data: bytes) -> bytes:
    """A few bits, bytes or stretches of the data are others; or it ends early, or goes on."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        if not content:
            break
        start = rng.randrange(len(content))
        stretch = slice(start, start + rng.choice((1, 2, 4, 16, 100, 1000)))
        length = len(content[stretch])
        kind = rng.randrange(9)
        if kind <= 2:
            content[start] ^= 1 << rng.randrange(8)
        elif kind == 3:
            content[stretch] = rng.randbytes(length)
        elif kind == 4:
            content[stretch] = rng.choice((b"\0", b"\xff", b"\x7f")) * length
        elif kind == 5:
            del content[stretch]
        elif kind == 6:
            content[start:start] = content[stretch]
        elif kind == 7:
            content[start:start] = rng.randbytes(length)
        else:
            del content[start:]
    return bytes(content)


def no_file(rng: random.Random, path: Path) -> str:
    """Put something else in the place of the file; returns its name."""
    path.unlink(missing_ok=True)
    kinds: dict[str, Callable[[], Any]] = {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "/dev/zero": lambda: path.symlink_to("/dev/zero"),
        "/dev/null": lambda: path.symlink_to("/dev/null"),
        "nowhere": lambda: path.symlink_to("nowhere"),
        "itself": lambda: path.symlink_to(path.name),
        "socket": lambda: _socket(path),
        "empty": path.touch,
        "sparse": lambda: (path.touch(), os.truncate(path, HUGE)),
        "missing": lambda: None,
    }
    name = rng.choice(list(kinds))
    kinds[name]()
    return name


def _socket(path: Path) -> None:
    # Names of sockets are short, so that it is made from inside its folder.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name[:100])
    finally:
        os.chdir(here)


def other_json(rng: random.Random, value: Any, times: int = 0) -> str:
    """The value as JSON text, with one to three of what is in it replaced, left out, doubled or renamed."""
    raw: list[str] = []
    value = json.loads(json.dumps(value))
    for _ in range(times or rng.choice((1, 1, 1, 2, 3))):
        owner, key = rng.choice(_places(value) or [(None, None)])
        if owner is None:
            raw.append(rng.choice(ODD_JSON))
            value = MARK.format(len(raw) - 1)
            continue
        kind = rng.randrange(10)
        if kind <= 5:
            raw.append(rng.choice(ODD_JSON))
            owner[key] = MARK.format(len(raw) - 1)
        elif kind == 6:
            del owner[key]
        elif kind == 7 and isinstance(owner, dict):
            owner[rng.choice((f"{key}s", key.upper(), "", "x" * 1000, "__class__"))] = owner.pop(key)
        elif isinstance(owner, list):
            owner[key:key] = [owner[key]] * rng.choice((1, 2, 50))
        else:
            numbers = (int, float)
            owner[key] = -owner[key] if isinstance(owner[key], numbers) else [owner[key]]
    text = json.dumps(value, indent=rng.choice((None, 1)))
    for number, piece in enumerate(raw):
        text = text.replace(json.dumps(MARK.format(number)), piece)
    return text


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every owner and key in it, also deep ones."""
    found, level = [], [value]
    while level:
        owners = [one for one in level if isinstance(one, dict | list)]
        level = []
        for owner in owners:
            keys = list(owner) if isinstance(owner, dict) else range(min(len(owner), 8))
            found += [(owner, key) for key in keys]
            level += [owner[key] for key in keys]
    return found


def bad_json(rng: random.Random, value: Any) -> bytes:
    """A JSON file that is broken as text or as what it says."""
    if rng.random() < 0.75:
        return other_json(rng, value).encode("utf-8", "surrogatepass")
    text = json.dumps(value, indent=rng.choice((None, 1))).encode()
    choice = rng.randrange(5)
    if choice == 0:
        return rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"[")) + text
    if choice == 1:
        return text.decode().encode("utf-16")
    return damage(rng, text)


class Payload:
    """A pickle that makes a file where code must not run."""

    def __init__(self, canary: Path):
        self.path = str(canary / "ran")

    def __reduce__(self):
        return os.mkdir, (self.path,)


def code(canary: Path, rng: random.Random) -> bytes:
    """A pickle that runs code when it is loaded carelessly."""
    payload = Payload(canary)
    return pickle.dumps(rng.choice((payload, {"weight": payload}, [payload])), protocol=rng.choice((0, 2, 4)))

"""JSON that somebody hands in: read whole, or refused in one line that says where; lines of values."""

import json
import os
import time

import pytest

from feedface.common.errors import UserError
from feedface.common.json_files import MAX_DEPTH, JsonFile, load_json, parse_json


@pytest.fixture
def write(tmp_path):
    def write(content: str | bytes):
        (tmp_path / "a.json").write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / "a.json"

    return write


@pytest.mark.parametrize("value", [None, 3, -0.5, "\u20ac", [], {}, {"a": [1, {"b": None}]}, [10**299]])
def test_what_json_holds(write, value):
    assert load_json(write(json.dumps(value))) == value
    assert load_json(write(b"\xef\xbb\xbf\n " + json.dumps(value).encode())) == value


@pytest.mark.parametrize(
    ("content", "line", "words"),
    [
        ("", 1, "empty file"),
        (" \n\n", 1, "empty file"),
        ('{\n"id": 1,\n}', 3, "not valid JSON"),
        ('{"id": 1}\nx', 2, "not valid JSON"),
        (b'{"id":\n "\xff"}', 2, "not UTF-8"),
        ('["1", 12,\n1' + "0" * 5000 + "]", 2, "a number of 5001 digits"),
        ('{"a": 1,\n"b": -' + "9" * 301 + "}", 2, "digits"),
        ('{"a": 10,\n"b": 1e400}', 2, "1e400"),
        ('{"a": 0,\n"b": NaN}', 2, "NaN"),
        ("[\n-Infinity]", 2, "-Infinity"),
    ],
)
def test_refused_with_the_line(write, content, line, words):
    path = write(content)
    with pytest.raises(UserError) as raised:
        load_json(path)
    message = str(raised.value)
    assert message.startswith(f"{path}:{line}: ") and words in message and len(message) < 200 + len(str(path))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 900, 5000, 1_000_000])
@pytest.mark.parametrize("pair", ["[]", ('{"a":', "}")])
def test_nested_too_deeply(write, depth, pair):
    opening, closing = pair
    with pytest.raises(UserError, match="nested too deeply"):
        load_json(write(opening * depth + "1" + closing * depth))
    assert load_json(write(opening * MAX_DEPTH + "1" + closing * MAX_DEPTH))


def test_what_is_no_file(tmp_path, write, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    for path, words in [
        (tmp_path / "none.json", "no such file"),
        (tmp_path, "a directory"),
        (tmp_path / "pipe", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (tmp_path / "a\0b", "cannot be read"),
        (tmp_path / ("x" * 5000), "cannot be read"),
        (write("{}") / "below", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=words):
            load_json(path)
    monkeypatch.setattr("feedface.common.json_files.MAX_BYTES", 10)
    with pytest.raises(UserError, match="the limit"):
        load_json(write("[1, 2, 3, 4]"))


def test_a_line_of_a_larger_file():
    assert parse_json('{"a": 1}', "records.jsonl", 7) == {"a": 1}
    with pytest.raises(UserError, match=r"^records\.jsonl:7: not valid JSON"):
        parse_json('{"a": }', "records.jsonl", 7)


def test_lines_of_values(write):
    file = JsonFile(write('\n[ {"a":\n1 , "b" : [\n"x,]}",\n{"c":\n2}] ,"b": [5,\n6]},\n\n"z"\n]'))
    assert file.data == [{"a": 1, "b": [5, 6]}, "z"]
    wanted = {(): 2, (0,): 2, (0, "a"): 3, (0, "b"): 6, (0, "b", 1): 7, (1,): 9, (0, "none"): 2, (5,): 2, (1, "a"): 9}
    assert {keys: file.line(*keys) for keys in wanted} == wanted


def test_linear_time(write):
    """10^5 texts, each on a line of its own, and the line of each: a second or two, not minutes."""
    count = 100_000
    path = write('{"captions": [\n' + ",\n".join(['"a woman on a beach"'] * count) + "]}")
    begin = time.monotonic()
    file = JsonFile(path)
    lines = [file.line("captions", index) for index in range(count)]
    assert lines == list(range(2, count + 2))
    assert time.monotonic() - begin < 10

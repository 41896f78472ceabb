"""The record schema: what is written is read back, and every mistake is named with its line and key."""

import json
import os
import re
import time
from pathlib import Path

import pytest

from feedface.common.errors import UserError
from feedface.data.records import Record, RecordReference, read_records, write_records

ROW = {
    "path": "images/a.png",
    "caption": "a man — with a hat",
    "width": 64,
    "height": 48,
    "bbox": [10, 10, 30, 30],
    "square_bbox": [9, 9, 31, 31.5],
    "mask_path": "masks/a.png",
}

RAW = "<raw>{}</raw>"  # JSON as it is written


def write_rows(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_round_trip_with_portable_paths(tmp_path):
    record = Record(
        path=tmp_path / "images/a.png",
        caption="two\u2028lines, “quoted”",
        width=64,
        height=64,
        bbox=(1.0, 2.0, 30.5, 40.25),
        square_bbox=(-3.0, 0.0, 33.0, 42.0),
        mask_path=tmp_path / "masks/a.png",
        ref=(
            RecordReference(tmp_path / "images/b.png", (0.0, 0.0, 8.0, 8.0)),
            RecordReference("/elsewhere/c.png", (1.0, 1.0, 9.0, 9.0)),
        ),
        identity="000000",
    )
    write_records(tmp_path / "records.jsonl", [record, record])
    row = json.loads((tmp_path / "records.jsonl").read_text().split("\n")[0])
    assert row["path"] == "images/a.png" and row["ref"][1]["path"] == "/elsewhere/c.png"

    moved = tmp_path / "moved"
    moved.mkdir()
    (tmp_path / "records.jsonl").rename(moved / "records.jsonl")
    read = read_records(moved / "records.jsonl")
    assert len(read) == 2
    assert read[0].path == moved / "images/a.png" and read[0].ref[0].path == moved / "images/b.png"
    assert (read[0].caption, read[0].bbox, read[0].square_bbox, read[0].identity) == (
        record.caption,
        record.bbox,
        record.square_bbox,
        "000000",
    )
    assert read[1].origin == f"{moved / 'records.jsonl'}:2"


def test_paths_relative_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    box = (0.0, 0.0, 9.0, 9.0)
    record = Record(Path("out/images/a.png"), "a", 64, 64, box, box, Path("masks/a.png"))
    write_records("out/records.jsonl", [record])
    monkeypatch.chdir("/")
    read = read_records(tmp_path / "out/records.jsonl")[0]
    assert (read.path, read.mask_path) == (tmp_path / "out/images/a.png", tmp_path / "masks/a.png")


def test_several_files_and_empty_lines(tmp_path):
    a = write_rows(tmp_path / "a.jsonl", [ROW, "", ROW])
    b = write_rows(tmp_path / "b.jsonl", [ROW])
    assert [r.origin for r in read_records([a, b])] == [f"{a}:1", f"{a}:3", f"{b}:1"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"caption": None}, ("caption", "string")),
        ({"caption": ["a"]}, ("caption", "string")),
        ({"caption": "  "}, ("caption",)),
        ({"mask_path": ...}, ("mask_path", "missing")),
        ({"width": 64.5}, ("width", "whole number")),
        ({"height": True}, ("height",)),
        ({"bbox": [1, 2, 3]}, ("bbox", "four numbers")),
        ({"bbox": [1, 2, 3, float("nan")]}, ("bbox", "four numbers")),
        ({"bbox": [10, 10, 5, 30]}, ("bbox", "empty")),
        ({"square_bbox": [70, 10, 90, 30]}, ("square_bbox", "outside", "64 x 48")),
        ({"ref": {"path": "x"}}, ("ref", "list")),
        ({"ref": [{"path": "x"}]}, ("ref[0]", "square_bbox", "missing")),
        ({"identity": 7}, ("identity",)),
        ({"bbox": RAW.format("1e400")}, ("bbox", "four numbers")),
        ({"bbox": RAW.format("1" + "0" * 400)}, ("bbox", "four numbers")),
        ({"square_bbox": [-1e300, 0, 1e300, 9]}, ("square_bbox", "four numbers")),
        ({"square_bbox": [9, 9, 10, 10]}, ("square_bbox", "a side of 1 px", "4 to 12000")),
        ({"square_bbox": [0, 0, 1e6, 1e6]}, ("square_bbox", "a side of 1e+06 px")),
        ({"ref": [{"path": "x", "square_bbox": [0, 0, 9e5, 9e5]}]}, ("ref[0].square_bbox", "a side of 900000 px")),
        ({"width": RAW.format("1" + "0" * 5000)}, ("a number of 5001 digits",)),
        ({"width": 2_000_000}, ("width", "whole number", "1000000")),
        ({"caption": RAW.format('"\\ud800"')}, ("surrogate",)),
        ({"more": RAW.format("[" * 5000 + "]" * 5000)}, ("nested too deeply",)),
    ],
)
def test_mistakes_are_named(tmp_path, change, words):
    row = {key: value for key, value in {**ROW, **change}.items() if value is not ...}
    line = re.sub(r'"<raw>(.*)</raw>"', lambda match: json.loads(f'"{match[1]}"'), json.dumps(row))
    path = write_rows(tmp_path / "r.jsonl", [ROW, line])
    with pytest.raises(UserError) as error:
        read_records(path)
    for word in (f"{path}:2", *words):
        assert word in str(error.value)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_no_records(tmp_path, text):
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(UserError, match="no records"):
        read_records(tmp_path / "r.jsonl")


def test_files_that_are_not_records(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    (tmp_path / "list.jsonl").write_text("[1]\n")
    (tmp_path / "cut.jsonl").write_text('{"path": "a\n')
    for name, words in [
        ("missing.jsonl", "no such file"),
        ("binary", "UTF-8"),
        ("list.jsonl", "list.jsonl:1: must be an object"),
        ("cut.jsonl", "cut.jsonl:1: not valid JSON"),
        (".", "a directory"),
    ]:
        with pytest.raises(UserError, match=words):
            read_records(tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "device", "sparse"])
def test_what_is_no_file_of_lines(tmp_path, kind):
    path = tmp_path / "r.jsonl"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.touch()
        os.truncate(path, 1 << 40)  # one endless line, which takes no room on the disk
    with pytest.raises(UserError, match="a line of more than 16 MiB" if kind == "sparse" else "not a regular file"):
        read_records(path)


def test_many_lines_are_read_fast(tmp_path):
    """20 000 records of four references: half a second on an idle core."""
    row = {**ROW, "ref": [{"path": f"images/{i}.png", "square_bbox": [1.5, 2.5, 30.5, 31.5]} for i in range(4)]}
    path = tmp_path / "r.jsonl"
    path.write_text((json.dumps(row) + "\n") * 20_000)
    begin = time.process_time()
    assert len(read_records(path)) == 20_000
    assert time.process_time() - begin < 6

"""Long files of records: an index beside them instead of everything in memory."""

import json
import pickle

import numpy as np
import pytest

from feedface.common.errors import UserError
from feedface.data.record_table import RecordList, RecordTable, index_file, open_records
from feedface.data.records import read_records

BOX = [1, 2, 21, 22]
FACE = {"caption": "a man", "width": 32, "height": 48, "bbox": BOX, "square_bbox": BOX, "mask_path": "mask.png"}


def rows(count: int) -> list[dict]:
    """Rows with 0, 1, 2 references; each fourth is one of open FlashFace."""
    refs = [{"path": f"ref{i}.png", "square_bbox": BOX} for i in range(2)]
    made = [FACE | {"path": f"{i}.png", "identity": str(i % 3), "ref": refs[: i % 3]} for i in range(count)]
    for i in range(0, count, 4):
        made[i] = {"path": f"{i}.png", "size": [64, 40], "caption": "\u2028 ä", "ref": ["crop.png"]}
    return made


def write(path, made, separator="\n"):
    path.write_bytes(b"\xef\xbb\xbf" + separator.join(json.dumps(row, ensure_ascii=False) for row in made).encode())
    return path


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    return [write(tmp_path / "a.jsonl", rows(7), "\n\n"), write(folder / "b.jsonl", rows(5), "\r\n")]


def test_same_records_as_read_whole(files):
    whole = read_records(files, faceless=True)
    for table in (open_records(files, True, small=0), open_records(files, True, small=0), open_records(files, True)):
        assert list(table) == whole and len(table) == 12
        assert table[-1] == whole[-1] and table[5:9] == whole[5:9]
        assert table.refs.tolist() == [len(record.ref) for record in whole]
        assert table.sizes.tolist() == [[record.width, record.height] for record in whole]
        assert table.faceless.tolist() == [record.mask_path is None for record in whole]
        with pytest.raises(IndexError):
            table[12]
    assert isinstance(open_records(files, True), RecordList) and isinstance(open_records(files, True, 0), RecordTable)


def test_second_start_reads_the_index_alone(files, monkeypatch):
    first = open_records(files, True, small=0)
    monkeypatch.setattr("feedface.data.record_table.lines_of", None)
    assert list(pickle.loads(pickle.dumps(open_records(files, True, small=0)))) == list(first)


def test_records_that_changed_are_indexed_anew(files):
    open_records(files, True, small=0)
    write(files[0], rows(8))
    assert list(open_records(files, True, small=0)) == read_records(files, faceless=True)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_index_is_made_anew(files, content):
    index_file(files[0]).write_bytes(content)
    assert list(open_records(files, True, small=0)) == read_records(files, faceless=True)


def test_a_folder_that_cannot_be_written_to(files, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr("feedface.common.tar_files.atomic_file", refuse)
    assert len(open_records(files, True, small=0)) == 12 and not index_file(files[0]).exists()


def test_bad_lines_are_named_and_leave_no_index(files):
    made = rows(7)
    made[5]["width"] = "wide"
    write(files[0], made)
    with pytest.raises(UserError, match=r"a\.jsonl:6: width: must be a whole number"):
        open_records(files, True, small=0)
    assert not index_file(files[0]).exists()
    with pytest.raises(UserError, match=r"a\.jsonl:1: width: missing"):  # open FlashFace's, where they are not taken
        open_records(files, False, small=0)
    write(files[0], [])
    with pytest.raises(UserError, match="holds no records"):
        open_records(files, True, small=0)


def test_a_line_that_changed_since_is_named(files):
    table = open_records(files, True, small=0)
    text = files[0].read_bytes()
    files[0].write_bytes(text.replace(b'"a man"', b"12     ", 1))
    assert np.array_equal(table.refs[:2], [1, 1])
    with pytest.raises(UserError, match=r"a\.jsonl:3: caption: must be a string"):
        table[1]

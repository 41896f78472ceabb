"""Shards: records and pictures inside of tar files are the same as beside them, and read by their place."""

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toy_records import make_records

from feedface.common import tar_files
from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.common.tar_files import tar_members
from feedface.data.dataset import PictureStore
from feedface.data.masks import read_mask
from feedface.data.record_table import RecordList, RecordTable, open_records
from feedface.data.records import read_records
from feedface.data.shard_writer import write_shards
from feedface.data.tar_records import expand_ranges
from feedface.encoders import ReferenceSpec

BOX = [1, 2, 21, 22]


@pytest.fixture
def jsonl(tmp_path) -> Path:
    return make_records(tmp_path / "plain", people=2, dense=True)


@pytest.fixture
def shards(tmp_path, jsonl) -> list[Path]:
    return write_shards(read_records(jsonl), tmp_path / "shards", shard_bytes=10_000)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def make_tar(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            add(tar, name, content)
    return path


def png(side: int = 32, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (side, side), 0).save(file, "PNG")
    return file.getvalue()


def row(**changes) -> bytes:
    known = {"width": 32, "height": 32, "bbox": BOX, "square_bbox": BOX, "caption": "a man"}
    return json.dumps(known | changes).encode()


def content(record) -> tuple:
    """What training reads of a record, whatever its files are called."""
    pictures = [read_image(path).tobytes() for path in (record.path, *(ref.path for ref in record.ref))]
    boxes = record.bbox, record.square_bbox, tuple(ref.square_bbox for ref in record.ref)
    return pictures, read_mask(record.mask_path).tobytes(), boxes, record.caption, record.pose


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_shards_hold_the_same_as_the_files(jsonl, shards, tmp_path, small):
    assert len(shards) > 1
    plain = read_records(jsonl)
    pattern = tmp_path / "shards" / f"shard-{{00000..{len(shards) - 1:05d}}}.tar"
    for paths in (shards, [pattern]):
        packed = open_records(paths, small=small)
        assert isinstance(packed, RecordList if small else RecordTable) and len(packed) == len(plain)
        assert [content(record) for record in packed] == [content(record) for record in plain]
    assert [content(record) for record in pickle.loads(pickle.dumps(packed))] == [content(record) for record in plain]
    paths = {ref.path for record in packed for ref in record.ref} | {record.path for record in packed}
    assert len(paths) == len(plain)  # a picture has one name, from whichever shard it is named


def test_training_sees_the_same(jsonl, shards):
    """Which picture comes when is a matter of row numbers (`draws`), so what is read of a row is all that matters."""
    spec = ReferenceSpec("crop", 32)
    plain, packed = (PictureStore(open_records(paths, small=0), 64, 8, spec, False) for paths in ([jsonl], shards))
    for row in range(len(plain.records)):
        np.testing.assert_array_equal(packed.image(row), plain.image(row))
        np.testing.assert_array_equal(packed.masks(row), plain.masks(row))
        for face in range(1 + plain.records.refs[row]):
            assert torch.equal(packed.face(*packed.crop_of(row, face)), plain.face(*plain.crop_of(row, face)))
    assert not packed.broken


def test_a_cache_knows_when_a_tar_has_changed(shards):
    path = read_records(shards[0])[0].path
    before = tar_files.file_stamp(path)
    os.utime(shards[0], (1, 1))
    assert before != tar_files.file_stamp(path) != [] == tar_files.file_stamp(shards[0].with_name("none.tar") / "1.png")


def test_the_same_records_make_the_same_shards(jsonl, shards, tmp_path):
    again = write_shards(read_records(jsonl), tmp_path / "again", shard_bytes=10_000)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]
    with pytest.raises(UserError, match="has shards already"):
        write_shards(read_records(jsonl), tmp_path / "again")
    with tarfile.open(shards[0]) as tar:  # as others read them: a sample's files side by side
        assert [Path(name).suffix for name in tar.getnames()[:3]] == [".json", ".png", ".png"]


def test_a_tar_is_looked_through_once(shards, monkeypatch):
    [record] = open_records(shards[:1])[:1]
    tar_files._opened.cache_clear()
    monkeypatch.setattr(tar_files, "_members", None)
    assert read_image(record.path).shape == (64, 64, 3)
    monkeypatch.undo()
    make_tar(shards[0], {"other.png": png()})  # another tar of that name is looked through anew
    with pytest.raises(UserError, match=r"00000000\.png: no such picture in the tar"):
        read_image(record.path)


def test_what_may_be_left_out_is_found_by_name(tmp_path):
    files = {"a/1.json": row(caption="x"), "a/1.jpg": png(), "a/1.mask.png": png(mode="L"), "a/1.txt": b"other"}
    files |= {"2.json": b'{"size": [32, 32]}', "2.png": png(), "2.txt": b" a woman\n", "notes.txt": b""}
    tar = make_tar(tmp_path / "s.tar", files)
    second, first = read_records(tar, faceless=True)
    assert (first.path, first.mask_path) == (tar / "a/1.jpg", tar / "a/1.mask.png") and first.caption == "x"
    assert (second.path, second.mask_path, second.caption) == (tar / "2.png", None, "a woman")
    assert first.origin == f"{tar}/a/1.json:1"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.json": row(), "1.png": png()}, r"s\.tar/1\.json:1: mask_path: missing"),
        ({"1.json": b"{", "1.png": png()}, r"s\.tar/1\.json:1"),
        ({"1.json": b"[]"}, r"s\.tar/1\.json:1"),
        ({"1.png": png()}, r"s\.tar: holds no records"),
        ({}, r"s\.tar: holds no records"),
        ({"1.json": row(), "./1.json": row()}, r"s\.tar: holds two files"),
    ],
)
@pytest.mark.parametrize("small", [0, 1 << 30])
def test_bad_samples_are_named(tmp_path, files, message, small):
    with pytest.raises(UserError, match=message):
        open_records([make_tar(tmp_path / "s.tar", files)], small=small)


def test_what_is_no_whole_plain_tar_is_said(tmp_path, shards):
    packed = make_tar(tmp_path / "z.tar", {"1.json": row()}, "w:gz")
    text = tmp_path / "t.tar"
    text.write_text("no tar" * 200)
    short = tmp_path / "c.tar"
    short.write_bytes(shards[0].read_bytes()[:9000])
    for path, message in ((packed, "not compressed"), (text, "not a plain tar"), (short, "not whole|not a plain tar")):
        with pytest.raises(UserError, match=message):
            tar_members(path)
    with pytest.raises(UserError, match="no such"):
        read_image(tmp_path / "none.tar" / "1.png")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "folder.tar" / "1.png").write_bytes(png())
    assert read_image(tmp_path / "folder.tar" / "1.png").shape == (32, 32, 3)  # a folder may have any name


def test_a_broken_picture_in_a_tar_is_broken_as_any_other(tmp_path):
    tar = make_tar(tmp_path / "s.tar", {"1.png": png()[:60], "2.png": b"", "3.txt": b"text"})
    for name, message in (("1.png", "damaged"), ("2.png", "empty file"), ("3.txt", "not a picture")):
        with pytest.raises(UserError, match=rf"s\.tar/{name}: .*{message}"):
            read_image(tar / name)


def test_ranges():
    assert list(map(str, expand_ranges(["a.jsonl", "s-{08..10}.tar"]))) == [
        "a.jsonl",
        "s-08.tar",
        "s-09.tar",
        "s-10.tar",
    ]
    assert len(expand_ranges(["{0..1}/s-{0..2}.tar"])) == 6
    assert list(map(str, expand_ranges(["{a..b}.tar"]))) == ["{a..b}.tar"]

"""Whole or not there, whatever happens while writing; and a full disk is said in words."""

import errno
import os
import shutil
import stat
from collections import namedtuple

import pytest

from feedface.files import atomic_file, atomic_folder, remove_leftovers

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_full_disk(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**10, 10**10 - 4096, 4096))
    with pytest.raises(OSError, match=r"the disk is full, make room.*target") as caught, kind(tmp_path / "target"):
        raise RuntimeError("unexpected pos 121728 vs 121680")  # torch.save on a full disk
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [atomic_file, atomic_folder])
def test_other_errors_stay_what_they_are(tmp_path, kind):
    with pytest.raises(RuntimeError, match="defect"), kind(tmp_path / "target"):
        raise RuntimeError("defect")
    assert not list(tmp_path.iterdir())


def test_files_are_readable_as_usual(tmp_path):
    umask = os.umask(0)
    os.umask(umask)
    with atomic_file(tmp_path / "file") as path:
        path.write_text("x")
        path.chmod(0o600)  # as safetensors leaves it
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("x")
        (folder / "file").chmod(0o600)
    for path in (tmp_path / "file", tmp_path / "folder" / "file"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_leftovers(tmp_path):
    (tmp_path / ".tmp-1-file").write_text("x")
    (tmp_path / ".tmp-2-folder" / "inner").mkdir(parents=True)
    (tmp_path / "file").write_text("x")
    remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]

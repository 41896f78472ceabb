"""Whole or not there, whatever happens while writing; and a full disk is said in words."""

import errno
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

import feedface
from feedface.common.files import atomic_file, atomic_folder, follow, point, pointed, remove_leftovers

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


def test_every_folder_inside_is_synced(tmp_path, monkeypatch):
    synced, original = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino) or original(handle))
    with atomic_folder(tmp_path / "folder") as folder:
        (folder / "inner" / "most").mkdir(parents=True)
        (folder / "inner" / "most" / "file").write_text("x")
    place = tmp_path / "folder"
    for path in (tmp_path, place, place / "inner", place / "inner" / "most", place / "inner" / "most" / "file"):
        assert path.stat().st_ino in synced, path


KILLED_BETWEEN_THE_RENAMES = """
import os, signal, sys
from feedface.common.files import atomic_folder
original, calls = os.replace, []
def replace(*names):
    calls.append(names)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    original(*names)
os.replace = replace
with atomic_folder(sys.argv[1]) as folder:
    (folder / "file").write_text("new")
"""


@pytest.mark.parametrize("then", ["sweep", "write again"])
def test_a_kill_between_the_two_renames_loses_nothing(tmp_path, then):
    place = tmp_path / "fol[der"  # no pattern
    place.mkdir()
    (place / "file").write_text("old")
    environment = {**os.environ, "PYTHONPATH": str(Path(feedface.__file__).parent.parent)}
    killed = subprocess.run([sys.executable, "-c", KILLED_BETWEEN_THE_RENAMES, str(place)], env=environment)
    assert killed.returncode == -signal.SIGKILL and not place.exists()
    if then == "sweep":
        remove_leftovers(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["fol[der"]
    else:
        with pytest.raises(RuntimeError), atomic_folder(place):
            raise RuntimeError("this time it fails before it is whole")
    assert (place / "file").read_text() == "old"
    with atomic_folder(place) as folder:
        (folder / "file").write_text("new")
    assert (place / "file").read_text() == "new"
    assert not list(tmp_path.glob(".old-*"))


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch):
    place = tmp_path / "folder"
    place.mkdir()
    (place / "file").write_text("old")
    original, calls = os.replace, []

    def replace(*names):
        calls.append(names)
        if len(calls) == 2:
            raise OSError(errno.EIO, "input/output error")
        original(*names)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="input/output"), atomic_folder(place):
        pass
    assert (place / "file").read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("links", [True, False])
def test_pointing_at_the_newest(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(type(tmp_path), "symlink_to", refuse)
    for name in ("1", "2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        point(tmp_path / "last", name)
        assert (tmp_path / "last").is_symlink() == links
        assert pointed(tmp_path / "last") == tmp_path / name
        assert (follow(tmp_path / "last" / "file")).read_text() == name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "last"]
    shutil.rmtree(tmp_path / "2")
    assert pointed(tmp_path / "last") == tmp_path / "2" and follow(tmp_path / "last") == tmp_path / "last"


def refuse(self, target, target_is_directory=False):
    raise OSError(errno.EPERM, "Operation not permitted", str(self))


@pytest.mark.parametrize("content", ["", "..", "../..", "/etc", "x" * 300, "a/b", "\0"])
def test_a_file_called_last_that_is_none_of_ours(tmp_path, content):
    (tmp_path / "last").write_text(content)
    assert follow(tmp_path / "last") == tmp_path / "last"
    assert follow(tmp_path / "first") == tmp_path / "first"

"""Which pictures are found in a folder of anything, and which folders are refused."""

import os

import pytest
from preparation_tools import nobody, save

from feedface.common.errors import UserError
from feedface.preparation import scan as module
from feedface.preparation.scan import check_folders, scan, stamp_of, summary


@pytest.fixture
def data(tmp_path):
    for name in ("b.jpg", "a/1.png", "a/1.jpg", "z/1.png", "a/ü 語.JPEG", "a/b/c/deep.webp"):
        save(nobody(20), tmp_path / "data" / name)
    return tmp_path / "data"


def found(data, out="elsewhere"):
    return scan(data, data.parent / out).pictures


def test_pictures_of_all_folders_in_one_order(data):
    assert found(data) == ["a/1.jpg", "a/1.png", "a/b/c/deep.webp", "a/ü 語.JPEG", "b.jpg", "z/1.png"]


def test_the_rest_is_counted(data):
    for name in ("notes.txt", "a/list.csv", "README", ".hidden.png", ".tmp-1-x.png", "clip.HEVC"):
        (data / name).write_bytes(b"x")
    (data / ".git").mkdir()
    result = scan(data, data.parent / "out")
    assert len(result.pictures) == 6
    assert result.left_out == {"hidden": 3, ".txt": 1, ".csv": 1, "no suffix": 1, ".hevc": 1}
    assert summary(result) == "6 picture(s); left out: 3 hidden, 1 .csv, 1 .hevc, 1 .txt, 1 no suffix"


def test_links(data, tmp_path):
    save(nobody(20), tmp_path / "more" / "m.png")
    (tmp_path / "more" / "back").symlink_to(data)
    (data / "more").symlink_to(tmp_path / "more")
    (data / "again").symlink_to(data / "a")
    (data / "up").symlink_to(tmp_path)
    (data / "loop").symlink_to(data / "loop")
    (data / "b_link.jpg").symlink_to(data / "b.jpg")
    (data / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "out" / "single").mkdir(parents=True)
    (data / "masks").symlink_to(tmp_path / "out" / "single")
    assert set(found(data, "out")) - set(found(data / "a")) >= {"more/m.png", "b_link.jpg", "gone.jpg", "b.jpg"}
    assert len(found(data, "out")) == 9
    assert stamp_of(data / "gone.jpg") is None


def test_names_that_cannot_be_written_down_are_left_out(data):
    with open(os.fsencode(data) + b"/caf\xe9.jpg", "wb"):
        pass
    (data / ("x" * 240 + ".jpg")).touch()
    result = scan(data, data.parent / "out")
    assert len(result.pictures) == 6 and len(result.notes) == 2
    assert "too long" in result.notes[0] and "not UTF-8" in result.notes[1]


def test_a_folder_named_like_an_output_is_refused(data):
    for folder, name in (("b.jpg.json", "b.jpg"), ("a/1.png_0.png", "a/1.png")):
        path = save(nobody(20), data / folder / "x.png")
        with pytest.raises(UserError, match=f"{folder}: a folder with the name of a file that {name} gets"):
            found(data)
        path.unlink()
    assert len(found(data)) == 6


def test_a_folder_that_cannot_be_listed_is_refused(data, monkeypatch):
    listing = os.scandir

    def refuse(folder):
        if folder == data / "a":
            raise PermissionError(13, "Permission denied")
        return listing(folder)

    monkeypatch.setattr(module.os, "scandir", refuse)  # tests may run as root, who may list everything
    with pytest.raises(UserError, match=r"data/a: cannot be listed \(Permission denied\)"):
        found(data)


def test_no_pictures(tmp_path):
    with pytest.raises(UserError, match="holds no pictures; they need"):
        found(tmp_path)
    (tmp_path / "a.txt").touch()
    with pytest.raises(UserError, match=r"holds no pictures \(1 \.txt\)"):
        found(tmp_path)


@pytest.mark.parametrize(
    "folder, out, message",
    [
        ("data", "data", "lies inside --data_folder"),
        ("data", "data/a/out", "lies inside --data_folder"),
        ("nowhere", "out", "no such folder"),
        ("data/b.jpg", "out", "not a folder"),
        ("data", "data/b.jpg/out", "lies inside"),
        ("data", "file", "a file, not a folder"),
        ("out/single", "out", "which a run writes to"),
    ],
)
def test_folders_that_do_not_go_together(data, tmp_path, folder, out, message):
    (tmp_path / "file").touch()
    (tmp_path / "out/single").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        check_folders(tmp_path / folder, tmp_path / out)


def test_the_output_may_hold_the_photos(data, tmp_path):
    check_folders(data, tmp_path)


def test_the_stamp_changes_with_the_file(data):
    before = stamp_of(data / "b.jpg")
    os.utime(data / "b.jpg", ns=(1, 1))
    assert stamp_of(data / "b.jpg") == [before[0], 1]

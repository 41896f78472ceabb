"""Files a run leaves: numbered, never overwritten, whole or not there, named safely."""

import errno
import os

import numpy as np
import pytest
from PIL import Image

from feedface.output import OutputError, PictureFolder, PictureInfo, check_writable, safe_name, save_json, save_png
from feedface.sheet import Tile, contact_sheet

INFO = PictureInfo("a man 😀 / ..\nhat", 3, "toy", "abc", {"steps": 2, "size": [64, 64]}, ("face",))
IMAGE = Image.new("RGB", (16, 16), (9, 8, 7))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_metadata_holds_what_made_the_picture(tmp_path):
    path = PictureFolder(tmp_path).save(IMAGE, INFO)
    with Image.open(path) as image:
        assert image.text["prompt"] == INFO.prompt
        assert image.text["seed"] == "3"
        assert image.text["model"] == "toy"
        assert '"steps": 2' in image.text["settings"]


def test_numbers_go_on_and_nothing_is_overwritten(tmp_path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "0007.png")
    (tmp_path / "notes.png").write_text("not ours")
    assert PictureFolder(tmp_path).save(IMAGE, INFO).name == "0008.png"
    assert PictureFolder(tmp_path).save(IMAGE, INFO).name == "0009.png"


def test_a_finished_picture_is_found_again(tmp_path):
    path = PictureFolder(tmp_path).save(IMAGE, INFO)
    assert PictureFolder(tmp_path).find(INFO) == path


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "other"},
        {"seed": 4},
        {"model_digest": "other"},
        {"settings": {"steps": 3, "size": [64, 64]}},
        {"references": ("face", "another")},
    ],
)
def test_other_settings_are_another_picture(tmp_path, change):
    folder = PictureFolder(tmp_path)
    folder.save(IMAGE, INFO)
    assert folder.find(PictureInfo(**(vars(INFO) | change))) is None


def test_a_damaged_picture_does_not_count_as_finished(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = PictureFolder(tmp_path).save(noise, INFO)
    path.write_bytes(path.read_bytes()[:-2000])
    assert PictureFolder(tmp_path).find(INFO) is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch, error):
    folder = PictureFolder(tmp_path)

    def fail(image, path, **options):
        path.write_bytes(b"half")
        raise error

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises((OutputError, KeyboardInterrupt)) as raised:
        folder.save(IMAGE, INFO)
    if isinstance(error, OSError):
        assert str(raised.value) == f"{tmp_path / '0000.png'}: cannot be written (No space left on device)"
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="cannot be written"):
            check_writable(folder)
        with pytest.raises(OutputError, match="cannot be written"):
            PictureFolder(folder)


def test_checking_a_folder_changes_nothing(tmp_path):
    check_writable(tmp_path / "a" / "b")
    check_writable(tmp_path)
    assert names(tmp_path) == []


def test_json_takes_any_text(tmp_path):
    save_json({"id": "\ud83d 😀"}, tmp_path / "a.json")
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ".",
            "..",
            "../../etc",
            "/etc/passwd",
            "a/b",
            "a\\b",
            "a\nb",
            "a\0b",
            "😀",
            "CON",
            "x" * 10_000,
            "é" * 500,
        ),
        *("\ud83d", "results.json", " ", "-rf", "a:b", "a.", "C:\\x"),
    ],
)
def test_safe_names(tmp_path, text):
    name = safe_name(text)
    (tmp_path / name).mkdir()
    assert names(tmp_path) == [name]
    assert name == safe_name(text) and len(name.encode()) <= 100
    assert name not in (".", "..") and not set(name) & set('/\\:*?"<>|\0\n.')


def test_plain_names_stay_and_changed_names_differ():
    assert [safe_name(text) for text in ("1433", "a-b_c", "Zoë")] == ["1433", "a-b_c", "Zoë"]
    assert len({safe_name(text) for text in ("a/b", "a_b", "a\\b", "a:b", "/a_b")}) == 5


def test_contact_sheet_shows_everything_within_bounds():
    red, blue = Image.new("RGB", (30, 40), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    sheet = contact_sheet(
        [Tile(red, "a.png")] * 2, [("a prompt", [Tile(blue, "0000")] * 8), ("word " * 999, [Tile(blue)])]
    )
    pixels = np.asarray(sheet).reshape(-1, 3)
    cell = 192 * 192
    assert (pixels == (0, 0, 255)).all(1).sum() == 9 * cell
    assert (pixels == (255, 0, 0)).all(1).sum() == 2 * 192 * 144


def test_contact_sheet_of_very_many_samples_stays_small():
    tile = Tile(Image.new("RGB", (64, 64)), "label")
    sheet = contact_sheet([tile], [("one", [tile] * 500), ("two", [tile] * 500)])
    assert max(sheet.size) < 4000


def test_save_png_is_atomic_over_an_older_file(tmp_path):
    (tmp_path / "sheet.png").write_text("old")
    save_png(IMAGE, tmp_path / "sheet.png")
    assert names(tmp_path) == ["sheet.png"]
    assert Image.open(tmp_path / "sheet.png").size == (16, 16)

"""Files a run leaves: numbered, never overwritten, whole or not there, named safely."""

import errno
import json
import os
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
from PIL import Image

from feedface.common.contact_sheet import Tile, contact_sheet
from feedface.common.errors import UserError
from feedface.common.saving import OutputError, check_writable, safe_name, save_json, save_png
from feedface.inference.outputs import PictureFolder, PictureInfo

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


def test_a_pipe_among_the_pictures_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0004.png")
    assert PictureFolder(tmp_path).save(IMAGE, INFO).name == "0005.png"


def test_runs_that_share_a_folder_take_different_numbers(tmp_path):
    one, other = PictureFolder(tmp_path), PictureFolder(tmp_path)
    paths = []
    for seed in range(4):
        paths.append(one.save(IMAGE, replace(INFO, seed=seed)))
        paths.append(other.save(IMAGE, replace(INFO, seed=seed + 100)))
    assert names(tmp_path) == [f"{number:04d}.png" for number in range(8)] == sorted(path.name for path in paths)
    both = PictureFolder(tmp_path)
    assert all(both.find(replace(INFO, seed=seed)) for seed in (0, 1, 2, 3, 100, 101, 102, 103))


def save_many(folder, first):
    pictures = PictureFolder(folder)
    for seed in range(first, first + 10):
        pictures.save(IMAGE, replace(INFO, seed=seed))
        pictures.save_run({"seed": seed}, IMAGE, keep=True)


def test_processes_that_share_a_folder_lose_nothing(tmp_path):
    context = get_context("fork")
    processes = [context.Process(target=save_many, args=(tmp_path, first)) for first in (0, 100, 200, 300)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    seeds = {int(Image.open(path).text["seed"]) for path in tmp_path.glob("[0-9]*.png")}
    assert seeds == {first + number for first in (0, 100, 200, 300) for number in range(10)}
    kept = [json.loads(path.read_text())["seed"] for path in tmp_path.glob("results_*.json")]
    assert set(kept) == seeds and len(kept) == 40
    assert len(names(tmp_path)) == 3 * 40 + 2 == len(list(tmp_path.glob("*.*")))


def test_a_disk_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    test_runs_that_share_a_folder_take_different_numbers(tmp_path)


def test_a_number_that_is_taken_meanwhile_is_never_overwritten(tmp_path):
    folder = PictureFolder(tmp_path)
    (tmp_path / "0000.png").write_text("another's")
    assert folder.save(IMAGE, INFO).name == "0001.png"
    assert (tmp_path / "0000.png").read_text() == "another's"


def test_results_of_the_last_run_and_of_each(tmp_path):
    folder = PictureFolder(tmp_path)
    first = folder.save_run({"run": 1}, IMAGE, keep=True)
    (tmp_path / "sheet_0004.png").touch()  # whose results were deleted
    second = folder.save_run({"run": 2}, IMAGE, keep=True)
    last = folder.save_run({"run": 3}, IMAGE, keep=False)
    assert [path.name for path in (*first, *second)] == [
        *("results_0000.json", "sheet_0000.png"),
        *("results_0005.json", "sheet_0005.png"),
    ]
    assert [json.loads(path.read_text())["run"] for path, _ in (first, second, last)] == [1, 2, 3]
    assert last == (tmp_path / "results.json", tmp_path / "sheet.png")


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


@pytest.mark.parametrize("use", [check_writable, PictureFolder, lambda folder: save_png(IMAGE, folder / "a.png")])
def test_too_many_folders_in_each_other(tmp_path, use):
    with pytest.raises(UserError, match=r"15\d\d folders in each other; 200 are the limit"):
        use(tmp_path / ("a/" * 1500))
    use(tmp_path / "/".join("a" * 150))


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


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (7, 1), (9, 2)])
def test_contact_sheet_sets_references_in_a_row(count, rows):
    red, blue = Image.new("RGB", (64, 64), (255, 0, 0)), Image.new("RGB", (64, 64), (0, 0, 255))
    sheet = np.asarray(contact_sheet([Tile(red)] * count, [("a prompt", [Tile(blue)])]))
    reds, blues = (np.argwhere((sheet == colour).all(-1)) for colour in ((255, 0, 0), (0, 0, 255)))
    assert len(reds) == count * 192 * 192
    assert (np.diff(np.unique(reds[:, 0])) > 1).sum() + 1 == rows
    assert reds[:, 0].max() < blues[:, 0].min() and reds[:, 1].min() == blues[:, 1].min()
    assert sheet.shape[1] <= 8 * 204 + 12


def test_contact_sheet_of_very_many_samples_stays_small():
    tile = Tile(Image.new("RGB", (64, 64)), "label")
    sheet = contact_sheet([tile], [("one", [tile] * 500), ("two", [tile] * 500)])
    assert max(sheet.size) < 4000
    assert contact_sheet([tile], [("one", [tile] * 60)], total=1000).size == sheet.size


def test_save_png_is_atomic_over_an_older_file(tmp_path):
    (tmp_path / "sheet.png").write_text("old")
    save_png(IMAGE, tmp_path / "sheet.png")
    assert names(tmp_path) == ["sheet.png"]
    assert Image.open(tmp_path / "sheet.png").size == (16, 16)

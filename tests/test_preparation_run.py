"""Whole runs in this process: what they leave, what they do not do again, what they refuse."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from preparation_tools import MINI, nobody, save, tree, two_people, write_model, write_people

from feedface.common.errors import UserError
from feedface.common.files import folder_lock
from feedface.data.records import read_records
from feedface.data.transforms import LAPA_VALUES
from feedface.preparation.check import check_folder
from feedface.preparation.filters import Thresholds
from feedface.preparation.models import choose, load_models
from feedface.preparation.options import Options
from feedface.preparation.preparer import Preparer
from feedface.preparation.process import Rules, overlap
from feedface.preparation.run import run
from feedface.synthetic.world import make_portraits

ALL_FORMATS = ("feedface", "flashface", "adaface")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "mini")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Six portraits, one picture with two faces, one with none, one broken, other files."""
    folder = tmp_path_factory.mktemp("world") / "photos"
    write_people(folder)
    save(two_people(), folder / "person_00" / "pair.png")
    save(nobody(), folder / "wall.jpg")
    (folder / "notes.txt").write_text("hello")
    whole = (folder / "person_00" / "0.png").read_bytes()
    (folder / "person_01" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.fixture
def data(photos):
    """A copy that may be changed, beside the output; times kept."""
    folder = photos.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(photos, folder))


@pytest.fixture
def options(data, model, tmp_path):
    return Options(data=data, out=tmp_path / "out", model=model, device="cpu", identity="folder")


@pytest.fixture
def made(monkeypatch):
    """The pictures that go through the models."""
    rels = []
    make = Preparer.make

    def watched(self, batch):
        rels.extend(loaded.rel for loaded in batch)
        return make(self, batch)

    monkeypatch.setattr(Preparer, "make", watched)
    return rels


def files(out):
    return {name for name in tree(out) if not name.startswith((".lock", "report"))}


def row(out, name):
    return json.loads((out / f"{name}.json").read_text())


def test_what_a_run_leaves(options, capsys):
    assert run(options) == 0
    singles = {f"single/person_{person:02d}/{number}.png" for person in range(3) for number in range(2)}
    assert files(options.out) == {
        *(f"{name}.{suffix}" for name in singles for suffix in ("png", "json")),
        *(f"multi/person_00/pair.png_{face}.{suffix}" for face in (0, 1) for suffix in ("png", "json")),
        "error/wall.jpg.json",
        "error/person_01/cut.png.json",
        "records.jsonl",
        "settings.json",
    }
    assert {"report.html", "report.png"} <= set(tree(options.out))
    assert row(options.out, "multi/person_00/pair.png_1")["reason"] == "2 faces"
    assert row(options.out, "error/wall.jpg")["reason"] == "no face found"
    assert "truncated" in row(options.out, "error/person_01/cut.png")["reason"]
    said = capsys.readouterr().out
    assert "9 picture(s); left out: 1 .txt; 9 to do, 0 done before" in said
    assert "9 picture(s): 6 single, 1 multi, 2 error, 0 filtered" in said and "6 record(s) of 3 people" in said


def test_the_records(options, capsys):
    run(options)
    records = read_records(options.out / "records.jsonl")
    assert [record.path.relative_to(options.data).as_posix() for record in records] == [
        f"person_{person:02d}/{number}.png" for person in range(3) for number in range(2)
    ]
    for index, record in enumerate(records):
        assert (record.width, record.height) == (96, 96) and record.caption
        mask = np.asarray(Image.open(record.mask_path))
        assert mask.shape == (96, 96) and mask.dtype == np.uint8 and set(np.unique(mask)) <= set(LAPA_VALUES)
        other = records[index ^ 1]
        assert [(ref.path, ref.square_bbox) for ref in record.ref] == [(other.path, other.square_bbox)]
        assert record.identity == f"person_{index // 2:02d}"
    assert check_folder(options.out) == 0


@pytest.mark.parametrize("workers, batch_size", [(0, 1), (0, 3), (1, 2), (3, 20)])
def test_workers_and_batches_change_nothing(options, tmp_path, workers, batch_size):
    options = replace(options, formats=ALL_FORMATS)
    run(options)
    run(replace(options, out=tmp_path / "other", workers=workers, batch_size=batch_size))
    assert tree(options.out) == tree(tmp_path / "other")


def test_a_second_run_does_nothing(options, made):
    options = replace(options, formats=ALL_FORMATS)
    run(options)
    before, times = tree(options.out), {path: path.stat().st_mtime_ns for path in options.out.rglob("*.png")}
    made.clear()
    run(options)
    assert made == [] and tree(options.out) == before
    kept = {path for path in times if path.name != "report.png"}
    assert all(path.stat().st_mtime_ns == times[path] for path in kept)


def test_after_a_stop_only_what_is_missing_is_made(options, made, monkeypatch, tmp_path):
    run(options)
    whole = tree(options.out)
    options = replace(options, out=tmp_path / "stopped", batch_size=2, workers=1)
    make = Preparer.make

    def stop(self, batch):
        if len(made) >= 4:
            raise KeyboardInterrupt
        return make(self, batch)

    made.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Preparer, "make", stop)
        with pytest.raises(KeyboardInterrupt):
            run(options)
    first = list(made)
    assert len(first) == 4
    # What a kill in the middle of writing leaves.
    (options.out / "single" / "person_00" / ".tmp-01234567-x.png").touch()
    (options.out / ".tmp-01234567-records.jsonl").touch()
    made.clear()
    run(options)
    assert sorted(first + made) == sorted(set(first + made)) and len(first + made) == 9
    assert tree(options.out) == whole


def test_outputs_that_are_gone_or_broken_are_made_again(options, made):
    run(options)
    whole = tree(options.out)
    (options.out / "single/person_00/0.png.png").unlink()
    (options.out / "single/person_00/1.png.json").write_text('{"path"')
    (options.out / "multi/person_00/pair.png_1.json").unlink()
    (options.out / "records.jsonl").unlink()
    made.clear()
    run(options)
    assert made == ["person_00/0.png", "person_00/1.png", "person_00/pair.png"] and tree(options.out) == whole


def test_changed_new_and_deleted_pictures(options, data, made, tmp_path):
    options = replace(options, formats=ALL_FORMATS)
    run(options)
    made.clear()
    save(nobody(), data / "person_00" / "0.png")
    save(np.asarray(Image.open(data / "person_02" / "0.png"))[:, ::-1], data / "person_00" / "pair.png")
    shutil.copy(data / "person_01" / "0.png", data / "new.png")
    shutil.rmtree(data / "person_02")
    run(options)
    assert made == ["new.png", "person_00/0.png", "person_00/pair.png"]
    run(replace(options, out=tmp_path / "anew"))
    assert tree(options.out) == tree(tmp_path / "anew")
    assert not (options.out / "single/person_02").exists() and not (options.out / "multi/person_00").exists()


def test_filters_can_be_changed(options, made, tmp_path):
    run(options)
    whole = tree(options.out)
    sizes = {
        name: row(options.out, name)["face_px"]
        for name in sorted(n[:-5] for n in whole if n.startswith("single") and n.endswith("json"))
    }
    limit = sorted(sizes.values())[3]
    made.clear()
    strict = replace(options, rules=Rules(thresholds=Thresholds(min_face_px=limit)))
    run(strict)
    assert len(made) == 3 and len(read_records(options.out / "records.jsonl")) == 3
    assert len(list((options.out / "filtered").rglob("*.png"))) == 3
    run(replace(strict, out=tmp_path / "anew"))
    assert tree(options.out) == tree(tmp_path / "anew")
    run(options)
    assert tree(options.out) == whole


def test_captions_from_a_file(options, made, tmp_path, capsys):
    """Missing: filtered; changed: done again; unused names: said."""
    captions = {f"person_{person:02d}/{number}.png": f"{person} {number}" for person in range(3) for number in range(2)}
    file = tmp_path / "captions.json"
    file.write_text(json.dumps(captions | {"other.png": "x"}))
    options = replace(options, caption="file", caption_file=file)
    run(options)
    assert [record.caption for record in read_records(options.out / "records.jsonl")] == list(captions.values())
    assert "no picture is called other.png" in capsys.readouterr().err
    made.clear()
    captions["person_00/1.png"] = "new"
    del captions["person_02/0.png"]
    file.write_text(json.dumps(captions))
    run(options)
    assert made == ["person_00/1.png", "person_02/0.png"]
    assert [record.caption for record in read_records(options.out / "records.jsonl")] == list(captions.values())
    assert "no caption" in row(options.out, "filtered/person_02/0.png")["reason"]
    made.clear()
    run(options)
    assert made == []


def test_sidecar_captions_and_a_fixed_text(options, data, made):
    (data / "person_00" / "0.txt").write_text("a man")
    run(replace(options, caption="sidecar"))
    (record,) = read_records(options.out / "records.jsonl")
    assert record.caption == "a man" and record.path == data / "person_00/0.png"
    made.clear()
    run(replace(options, caption_text="somebody"))
    assert {record.caption for record in read_records(options.out / "records.jsonl")} == {"somebody"} and len(made) == 6


def test_formats_come_and_go(options):
    run(options)
    plain = tree(options.out)
    run(replace(options, formats=("flashface", "adaface")))
    rows = [json.loads(line) for line in (options.out / "flashface.jsonl").read_text().splitlines()]
    assert [set(row) for row in rows] == [{"path", "size", "caption", "ref"}] * 6
    assert rows[0]["size"] == [96, 96] and rows[0]["ref"] == ["crops/person_00/1.png.png"]
    record = read_records(options.out / "records.jsonl")[1]
    side = round(record.square_bbox[2] - record.square_bbox[0])
    assert Image.open(options.out / rows[0]["ref"][0]).size == (side, side)
    names = sorted(path.name for path in (options.out / "adaface" / "person_00").iterdir())
    assert len(names) == 4 and all(name.replace("_mask", "") in names for name in names)
    mask = np.asarray(Image.open(options.out / "adaface" / "person_00" / names[1]))
    assert names[1].endswith("_mask.png") and mask.shape == (96, 96) and set(np.unique(mask)) == {0, 255}
    run(options)
    assert tree(options.out) == plain


def test_adaface_needs_people(options):
    with pytest.raises(UserError, match="--identity"):
        run(replace(options, identity="none", formats=("adaface",)))


@pytest.mark.parametrize("square", ["pad", "inside"])
def test_square_boxes(options, square):
    run(replace(options, rules=Rules(square=square)))
    assert check_folder(options.out) == 0


@pytest.mark.parametrize(
    "change, name",
    [
        ({"detector": "opencv"}, "detector 'mini', now it is 'opencv'"),
        ({"det_threshold": 0.6}, "det_threshold 0.5, now it is 0.6"),
        ({"rules": Rules(duplicate_iou=0.5)}, "duplicate_iou"),
        ({"rules": Rules(square="inside")}, "square"),
        ({"data": "person_00"}, "data_folder"),
    ],
)
def test_other_settings_need_another_folder(options, change, name):
    run(options)
    before = tree(options.out)
    if "data" in change:
        change = {"data": options.data / change["data"]}
    with pytest.raises(UserError, match=f"{name}.*another --out_folder"):
        run(replace(options, **change))
    assert tree(options.out) == before


def test_other_weights_need_another_folder(options, tmp_path):
    run(options)
    with pytest.raises(UserError, match="other weights of the parser"):
        run(replace(options, model=write_model(tmp_path / "other", seed=1)))


def test_two_runs_on_one_folder(options):
    options.out.mkdir()
    with (
        folder_lock(options.out, "busy"),
        pytest.raises(UserError, match="another run is making data here"),
    ):
        run(options)
    run(options)


def test_somebody_elses_folder_is_left_alone(options):
    save(nobody(), options.out / "single" / "precious.png")
    with pytest.raises(UserError, match=r"single: not made by make_data\.py"):
        run(options)
    assert (options.out / "single" / "precious.png").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_ends_the_run_and_leaves_nothing_half(options, workers, monkeypatch):
    run(options)
    whole = tree(options.out)
    shutil.rmtree(options.out)
    room = [5]
    save_png = Image.Image.save

    def full(image, path, *arguments, **settings):
        room[0] -= 1
        if room[0] < 0:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return save_png(image, path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", full)
        with pytest.raises(UserError, match=r"\.png: cannot be written"):
            run(replace(options, workers=workers, batch_size=1))
    assert not [name for name in tree(options.out) if ".tmp-" in name]
    run(options)
    assert tree(options.out) == whole


def test_a_missing_parser_leaves_nothing_behind(options, tmp_path):
    with pytest.raises(UserError, match="parser"):
        run(replace(options, model=tmp_path / "nothing", parser="mini", detector="opencv"))
    assert not files(options.out)


def test_a_device_that_is_not_there(options):
    with pytest.raises(UserError, match="--device cuda"):
        run(replace(options, device="cuda"))


def test_nothing_to_train_on(options, data, capsys):
    for folder in data.glob("person_*"):
        shutil.rmtree(folder)
    assert run(options) == 0
    assert (options.out / "records.jsonl").read_bytes() == b""
    assert "nothing to train on" in capsys.readouterr().err
    assert check_folder(options.out) == 0


def test_a_picture_that_cannot_be_opened_is_tried_again(options, data, made):
    (data / "gone.png").symlink_to(data / "nowhere.png")
    run(options)
    assert row(options.out, "error/gone.png")["stamp"] is None
    made.clear()
    shutil.copy(data / "person_00" / "0.png", data / "nowhere.png")
    run(options)
    assert set(made) == {"gone.png", "nowhere.png"}
    assert (options.out / "single/gone.png.json").exists() and not (options.out / "error/gone.png.json").exists()


def test_people_by_their_faces(options):
    run(replace(options, identity="cluster"))
    assert all(record.identity.startswith("person_0") for record in read_records(options.out / "records.jsonl"))
    with pytest.raises(UserError, match="no recogniser"):
        run(replace(options, identity="cluster", detector="opencv", out=options.out.with_name("other")))


def test_opencv_and_no_recogniser(options):
    run(replace(options, detector="opencv", identity="none"))
    assert json.loads((options.out / "settings.json").read_text())["detector"] == "opencv"
    assert sum(path.suffix == ".json" for path in options.out.rglob("*.json")) >= 9


@pytest.mark.skipif(not (MINI / "parser").is_dir(), reason="models/mini has no parser")
def test_against_the_renderer(tmp_path):
    """The committed models: boxes and masks are where the portraits' are."""
    truth = make_portraits(np.arange(100_000, 100_012), np.zeros(12, int), size=96)
    for index, image in enumerate(truth.images):
        save(image, tmp_path / "photos" / f"{index:02d}.png")
    run(Options(tmp_path / "photos", tmp_path / "out", MINI, device="cpu"))
    records = read_records(tmp_path / "out" / "records.jsonl")
    assert len(records) >= 11
    for record in records:
        index = int(record.path.stem)
        assert overlap(record.bbox, truth.boxes[index]) > 0.7
        mask = np.searchsorted(LAPA_VALUES, np.asarray(Image.open(record.mask_path)))
        assert (mask == truth.masks[index]).mean() > 0.85


@pytest.mark.skipif(not (MINI / "parser").is_dir(), reason="models/mini has no parser")
def test_masks_do_not_depend_on_the_batch_or_on_threads():
    """Else a run that is gone on with, or another number of processes, would give other bytes."""
    detector, parser = load_models(choose("mini", "mini", MINI, 0.5), "cpu", 0, 1)
    images = make_portraits(np.arange(7), np.zeros(7, int), size=96).images
    pictures = [(image, detector.detect(image)) for image in images]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = parser.parse_many(pictures)
        torch.set_num_threads(2)
        alone = [parser.parse(*picture) for picture in pictures]
    finally:
        torch.set_num_threads(before)
    for some, others in zip(together, alone, strict=True):
        np.testing.assert_array_equal(some, others)


def test_timings(options, tmp_path):
    run(replace(options, timings=tmp_path / "timings.json"))
    timings = json.loads((tmp_path / "timings.json").read_text())
    assert timings["pictures"] == 9 and set(timings["processes"][0]) >= {"read", "detect", "parse", "write", "all"}


def test_times_of_the_photos_count_not_their_names(options, data, made):
    run(options)
    made.clear()
    os.utime(data / "wall.jpg", ns=(5, 5))
    run(options)
    assert made == ["wall.jpg"]

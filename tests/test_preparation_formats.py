"""records.jsonl and the other formats from rows; `--check` finds what does not fit."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from preparation_tools import nobody, save

from feedface.common.errors import UserError
from feedface.data.records import read_records
from feedface.data.transforms import LAPA_VALUES
from feedface.faces.crop import square_box
from feedface.preparation.check import check_folder
from feedface.preparation.formats import (
    MAX_REFS,
    Cut,
    check_formats,
    make_cut,
    make_records,
    plan_cuts,
    square_around,
    write_all,
)
from feedface.preparation.result import write_row

BOX = [20.0, 16.0, 50.0, 60.0]


def make_row(rel, outcome="single", **changes):
    square = [round(side, 2) for side in square_box(BOX)]
    picture = {"path": rel, "stamp": [1, 2], "outcome": outcome, "reason": "", "img_size": [96, 80], "faces": 1}
    return picture | {"bbox": BOX, "square_bbox": square, "caption": f"photo {rel}"} | changes


@pytest.fixture
def folders(tmp_path):
    """Pictures, masks and JSON files of three singles and an error; rows in the order of paths."""
    data, out = tmp_path / "photos", tmp_path / "data"
    rows = [make_row(rel) for rel in ("anna/1.jpg", "anna/2.jpg", "bert/1.jpg")]
    noise = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    mask = np.zeros((80, 96), np.uint8)
    mask[10:70, 15:60] = LAPA_VALUES[1]
    for row in rows:
        save(noise, data / row["path"])
        save(mask, out / "single" / f"{row['path']}.png")
        write_row(out / "single" / f"{row['path']}.json", row)
    return data, out, [*rows, make_row("zoo.jpg", "error")]


def written(folders, *formats, identities=None):
    data, out, rows = folders
    records = make_records(rows, {} if identities is None else identities, data, out)
    write_all(records, formats, data, out)
    return records


BY_FOLDER = {"anna/1.jpg": "anna", "anna/2.jpg": "anna", "bert/1.jpg": "bert"}


def test_records(folders):
    data, out, _ = folders
    written(folders, identities=BY_FOLDER)
    records = read_records(out / "records.jsonl")
    assert [record.identity for record in records] == ["anna", "anna", "bert"]
    assert [[ref.path.name for ref in record.ref] for record in records] == [["2.jpg"], ["1.jpg"], []]
    assert records[0].path == data / "anna/1.jpg" and records[0].mask_path == out / "single/anna/1.jpg.png"
    assert json.loads((out / "records.jsonl").read_text().splitlines()[0])["mask_path"] == "single/anna/1.jpg.png"


def test_pictures_of_nobody_in_particular_have_no_refs(folders):
    written(folders, identities={"anna/1.jpg": "anna"})
    records = read_records(folders[1] / "records.jsonl")
    assert [record.identity for record in records] == ["anna", None, None] and not any(r.ref for r in records)


def test_refs_are_the_next_ones_of_the_person_around_the_end():
    rows = [make_row(f"{index:02d}.jpg") for index in range(40)]
    records = make_records(rows, {row["path"]: "x" for row in rows}, Path("photos"), Path("data"))
    assert all(len(record.ref) == MAX_REFS for record in records)
    assert [ref.path.stem for ref in records[38].ref][:3] == ["39", "00", "01"]
    assert all(record.path not in {ref.path for ref in record.ref} for record in records)


def test_flashface(folders):
    data, out, _ = folders
    records = written(folders, "flashface", identities=BY_FOLDER)
    cuts = plan_cuts(records, ["flashface"], data, out)
    for cut in cuts:
        make_cut(cut)
    rows = [json.loads(line) for line in (out / "flashface.jsonl").read_text().splitlines()]
    assert rows[0] == {
        "path": (data / "anna/1.jpg").as_posix(),
        "size": [96, 80],
        "caption": "photo anna/1.jpg",
        "ref": ["crops/anna/2.jpg.png"],
    }
    assert Image.open(out / "crops/anna/2.jpg.png").size == (48, 48)
    assert len(cuts) == 3


def test_adaface(folders):
    data, out, _ = folders
    records = written(folders, identities={"anna/1.jpg": "Anna/Ä"})
    cuts = plan_cuts(records, ["adaface"], data, out)
    assert [cut.is_mask for cut in cuts] == [False, True]  # whom nobody knows is left out
    for cut in cuts:
        make_cut(cut)
    picture, mask = (cut.target for cut in cuts)
    assert picture.parent.parent == out / "adaface" and mask.name == f"{picture.stem}_mask.png"
    with Image.open(mask) as image:
        values = np.asarray(image)
        assert image.mode == "L" and values.shape == (80, 80) and set(np.unique(values)) == {0, 255}
    np.testing.assert_array_equal(np.asarray(Image.open(picture)), np.asarray(Image.open(data / "anna/1.jpg"))[:, :80])


def test_names_in_one_folder_differ(folders):
    data, out, _ = folders
    names = ["a/1.jpg", "b/1.jpg", "a_1.jpg", "a/1.png"]
    records = make_records([make_row(rel) for rel in names], dict.fromkeys(names, "x"), data, out)
    assert len({cut.target for cut in plan_cuts(records, ["adaface", "flashface"], data, out)}) == 12


@pytest.mark.parametrize(
    "box, expected",
    [((0, 0, 10, 10), (0, 0, 60, 60)), ((80, 10, 100, 30), (40, 0, 100, 60)), ((40, 10, 60, 30), (20, 0, 80, 60))],
)
def test_the_largest_square_around_a_face(box, expected):
    assert square_around(box, 100, 60) == expected


def test_adaface_needs_people():
    with pytest.raises(UserError, match="adaface"):
        check_formats(["adaface"], "none")
    check_formats(["adaface"], "folder")


def test_a_sound_folder(folders, capsys):
    written(folders, identities=BY_FOLDER)
    assert check_folder(folders[1]) == 0
    assert capsys.readouterr().out == "3 record(s) checked, 0 problem(s)\n"


def resized(path):
    save(nobody(40), path)


def no_class(path):
    save(np.full((80, 96), 7, np.uint8), path)


def empty(path):
    save(np.zeros((80, 96), np.uint8), path)


def colour(path):
    save(np.zeros((80, 96, 3), np.uint8), path)


def small(path):
    save(np.full((8, 8), LAPA_VALUES[1], np.uint8), path)


def cut_short(path):
    path.write_bytes(path.read_bytes()[:40])


def new_caption(path):
    path.write_text(path.read_text().replace("photo anna", "photo of anna"))


@pytest.mark.parametrize(
    "name, damage, message",
    [
        ("photos/anna/1.jpg", Path.unlink, "no such picture"),
        ("photos/anna/1.jpg", resized, "is 40 x 40, recorded as 96 x 80"),
        ("photos/anna/1.jpg", cut_short, "photos/anna/1.jpg"),
        ("data/single/anna/1.jpg.png", Path.unlink, "no such mask"),
        ("data/single/anna/1.jpg.png", no_class, "value 7 is of no class"),
        ("data/single/anna/1.jpg.png", empty, "is empty"),
        ("data/single/anna/1.jpg.png", colour, "must be 8-bit grey, is RGB"),
        ("data/single/anna/1.jpg.png", small, "is 8 x 8, the picture 96 x 80"),
        ("data/single/anna/1.jpg.png", cut_short, "not a mask that can be read"),
        ("data/single/anna/1.jpg.json", Path.unlink, "missing, or not the JSON file"),
        ("data/single/anna/1.jpg.json", new_caption, "caption is"),
    ],
)
def test_what_does_not_fit_is_a_line(folders, tmp_path, capsys, name, damage, message):
    written(folders)
    damage(tmp_path / name)
    assert check_folder(folders[1]) == 1
    line, summary = capsys.readouterr().out.splitlines()
    assert "records.jsonl:1: " in line and message in line
    assert summary == "3 record(s) checked, 1 problem(s)"


def test_records_that_do_not_fit(folders, capsys):
    _, out, _ = folders
    written(folders, identities=BY_FOLDER)
    rows = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    rows[0]["square_bbox"] = [20, 10, 60, 50]
    rows[1]["ref"] = [
        {"path": rows[1]["path"], "square_bbox": [0, 0, 5, 5]},
        {"path": "none", "square_bbox": [0, 0, 5, 5]},
    ]
    rows[2] = rows[1]
    (out / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_folder(out)
    said = capsys.readouterr().out
    for part in (
        "records.jsonl:1: square_bbox: [20.0, 10.0, 60.0, 50.0] is not bbox x 1.1",
        "records.jsonl:2: ref[0]: is the picture itself",
        "records.jsonl:2: ref[1]",
        "no such picture",
        "records.jsonl:3: path",
        "single/bert/1.jpg.json: has no record",
    ):
        assert part in said, said


def test_what_is_no_folder_of_ours(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="no such f"):
            check_folder(folder)
    (tmp_path / "records.jsonl").write_text('{"path": 1}\n')
    with pytest.raises(UserError, match=r"records\.jsonl:1: "):
        check_folder(tmp_path)


def test_cuts_are_whole_or_not_there(folders, monkeypatch):
    data, out, _ = folders
    cut = Cut("anna/1.jpg", data / "anna/1.jpg", out / "crops" / "x.png", (0, 0, 30, 30))
    monkeypatch.setattr(Image.Image, "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_cut(cut)
    assert not list((out / "crops").iterdir())
    shutil.rmtree(out)


def test_records_that_never_end(folders):
    written(folders)
    os.truncate(folders[1] / "records.jsonl", 1 << 40)  # takes no room on the disk
    with pytest.raises(UserError, match="a line of more than"):
        check_folder(folders[1])

"""report.html and report.png, from what a run leaves."""

import re

import numpy as np
import pytest
from html_reader import Reader
from PIL import Image

from feedface.faces.detect import Face
from feedface.faces.parse import mask_values
from feedface.preparation.filters import Thresholds
from feedface.preparation.process import Rules, judge, load
from feedface.preparation.report import SHOWN, short_reason, write_report
from feedface.preparation.result import stems
from feedface.preparation.tiles import BOX, POINT, SQUARE, Picture, draw_tile
from feedface.synthetic.world import make_portraits

ODD = '<b>"ü" & co'
FILES = ("report.html", "report.png")
PEOPLE = ["p", "p", "q", None]  # of the records


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data folder and an output folder as a run leaves them, by the renderer's truth: data, out, rows, settings."""
    root = tmp_path_factory.mktemp("report")
    data, out = root / "data", root / "out"
    count = SHOWN + 6
    portraits = make_portraits(np.arange(count) + 700_000, np.zeros(count, int))
    (data / ODD).mkdir(parents=True)
    rules, rows = (
        Rules(thresholds=Thresholds(min_face_px=float(np.median(portraits.boxes[:, 2] - portraits.boxes[:, 0])))),
        [],
    )
    faces = [Face(box, 0.9, points) for box, points in zip(portraits.boxes, portraits.landmarks, strict=True)]
    for index, image in enumerate(portraits.images):
        rel, mask, found = f"{ODD}/{index:02d}.png", portraits.masks[index], [faces[index]]
        masks = [mask]
        if index == 3:  # two faces
            image = np.concatenate([image, portraits.images[4]], 1)
            other = faces[4].box + np.float32([64, 0, 64, 0])
            found.append(Face(other, 0.8, faces[4].landmarks + np.float32([64, 0])))
            masks = [np.pad(mask, ((0, 0), (0, 64))), np.pad(portraits.masks[4], ((0, 0), (64, 0)))]
        Image.fromarray(image).save(data / rel)
        if index == 5:
            found, masks = [], []
        if index == 6:
            (data / rel).write_bytes(b"nothing")
        rows += leave(out, judge(load(data, rel), found, masks, rules))
    settings = {"data_folder": str(data), "detector": "mini", "weights": {"a": {"b": "digest"}}}
    settings["last_run"] = {"thresholds": {"min_face_px": rules.thresholds.min_face_px, "min_blur": None}}
    return data, out, rows, settings


def leave(out, outcome) -> list[dict]:
    """What a run leaves of an outcome, less the JSON files; returns their content."""
    if outcome.kind == "single":
        outcome.caption, outcome.caption_by = "a person <i>in red</i>", "none"
    for stem, mask in zip(stems(outcome.rel, outcome.kind, len(outcome.faces)), outcome.masks, strict=False):
        (out / stem).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask_values(mask)).save(out / f"{stem}.png")
    return outcome.rows()


def test_page_says_everything_and_loads_nothing(made):
    data, out, rows, settings = made
    write_report(out, rows, data, settings, PEOPLE)
    page = Reader((out / "report.html").read_text(encoding="utf-8"))
    assert all(source.startswith("data:image/") for source in page.sources)
    kinds = {row["path"]: row["outcome"] for row in rows}
    for kind in ("single", "multi", "error", "filtered"):
        count = list(kinds.values()).count(kind)
        assert count and f"{kind}: {count}" in page.text
    assert "4 records in records.jsonl, 3 of them of 2 people with 1 to 2 pictures each" in page.text
    assert f"{ODD}/06.png" in page.text and "not a picture that can be read here" in page.text
    assert "face …, smaller than --min_face_px" in page.text and "a person <i>in red</i>" in page.text
    assert "digest" not in page.text and str(out.parent) not in page.text  # machine and run leave no trace
    with Image.open(out / "report.png") as sheet:
        assert sheet.width > 1000 and not sheet.info


def test_same_files_same_bytes(made):
    data, out, rows, settings = made
    write_report(out, rows, data, settings, PEOPLE)
    first = [(out / name).read_bytes() for name in FILES]
    write_report(out, iter(rows), data, settings, PEOPLE)
    assert [(out / name).read_bytes() for name in FILES] == first
    assert not list(out.glob(".tmp-*"))


def test_a_long_run_shows_some_and_lists_all_others(made, tmp_path):
    data, _, rows, _ = made
    single = next(row for row in rows if row["outcome"] == "single")
    many = [single | {"path": f"{ODD}/{index:05d}.png"} for index in range(3 * SHOWN)]
    errors = [
        {
            "path": f"e{index}",
            "outcome": "error",
            "reason": f"damaged ({index})",
            "img_size": None,
            "faces": 0,
            "stamp": None,
        }
        for index in range(1100)
    ]
    write_report(tmp_path, many + errors, data, {}, [None])
    page = Reader((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert f"single: {3 * SHOWN}, {SHOWN} of them" in page.text and "… and 100 more" in page.text
    assert len(page.sources) == 1 + 2 * SHOWN
    assert re.search(r"damaged\s*1100", page.text)  # the same reason, counted


def test_nothing_at_all(tmp_path):
    write_report(tmp_path, [], tmp_path, {}, [])
    assert "0 pictures" in Reader((tmp_path / "report.html").read_text()).text
    assert (tmp_path / "report.png").exists()


def test_pictures_and_masks_that_are_gone(made, tmp_path):
    _, _, rows, _ = made
    write_report(tmp_path, rows, tmp_path / "nowhere", {}, [])
    assert (tmp_path / "report.png").exists()
    assert "0 records in records.jsonl." in Reader((tmp_path / "report.html").read_text(encoding="utf-8")).text


def test_tiles_show_what_was_found(made):
    data, out, rows, _ = made
    row = next(row for row in rows if row["outcome"] == "single")
    tile = np.asarray(draw_tile(Picture([row]), data, out))
    bare = np.asarray(draw_tile(Picture([row | {"point": None}]), data, out / "no masks"))
    assert tile.shape == (180, 362, 3)
    for colour in (BOX, SQUARE, POINT):
        assert (tile[:, :180] == colour).all(-1).any()
    assert (tile[:, 182:] == BOX).all(-1).any()
    assert (bare != tile).any(-1).mean() > 0.1  # the mask
    x0, y0, x1, y1 = (np.array(row["bbox"]) * 180 / 64).round().astype(int)
    green = np.argwhere((tile[:, :180] == BOX).all(-1))
    assert np.abs(green.min(0) - [y0, x0]).max() <= 1 and np.abs(green.max(0) - [y1, x1]).max() <= 2


def test_equal_reasons_are_counted_together():
    assert short_reason("face 41 px, smaller than --min_face_px 64") == "face …, smaller than --min_face_px 64"
    assert short_reason("blur 4.1e-05, less sharp than --min_blur 10") == "blur …, less sharp than --min_blur 10"
    assert short_reason("yaw -33.1 degrees, more than --max_yaw 30") == "yaw … degrees, more than --max_yaw 30"
    assert short_reason("damaged picture (line 3)") == "damaged picture"
    assert short_reason("no caption: a.txt is empty") == "no caption"
    assert short_reason("3 faces") == "3 faces"

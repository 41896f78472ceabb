"""Rows of the open FlashFace as training reads them, and how its samples show their references."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.data.dataset import PictureDataset, PictureStore
from feedface.data.draws import DrawSettings, draw
from feedface.data.records import read_records
from feedface.encoders import ReferenceSpec

SHAPES = {"img": (4, 8, 8)}


def rows(folder: Path, *more: dict) -> Path:
    """Eight pictures of 64 x 48 px with 0, 1, 2 or 3 crops, and `more` rows."""
    rng = np.random.default_rng(0)

    def picture(name: str, *size: int) -> str:
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / name)
        return name

    crops = [picture(f"crop{i}.png", 20 + i, 24) for i in range(3)]
    content = [
        {"path": picture(f"{i}.png", 48, 64), "size": [64, 48], "caption": f"picture {i}", "ref": crops[: i % 4]}
        for i in range(8)
    ]
    del content[0]["ref"]  # may be missing
    content += more
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    return folder / "rows.jsonl"


def dataset(file: Path, **settings) -> PictureDataset:
    records = read_records(file, faceless=True)
    store = PictureStore(records, 64, 8, ReferenceSpec("latent", 32), in_memory=False)
    faceless = [True] * len(records)
    return PictureDataset(store, DrawSettings(0, SHAPES, faceless=faceless, **settings))


def test_rows_are_samples(tmp_path: Path):
    data = dataset(rows(tmp_path), face_dropout=0.0, other_picture=0.0)
    batch = data.__getitems__([(sample, 3) for sample in range(8)])
    assert batch.content.references.shape == (8, 3, 3, 32, 32)
    assert batch.content.image.shape == (8, 3, 64, 64)
    assert batch.content.mask.min() == 1
    assert batch.broken == {}
    # Who has no reference shows none.
    assert batch.draws.drop_face.tolist() == [data.refs[row] == 0 for row in batch.draws.rows.tolist()]


def test_broken_rows_are_passed_over_and_named(tmp_path: Path):
    Image.new("RGB", (64, 48)).save(tmp_path / "wrong.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    more = [
        {"path": "wrong.png", "size": [64, 64], "caption": "wrong size"},
        {"path": "gone.png", "size": [64, 48], "caption": "missing"},
        {"path": "1.png", "size": [64, 48], "caption": "bad reference", "ref": ["broken.png"]},
    ]
    data = dataset(rows(tmp_path, *more))
    broken = data.__getitems__([(sample, 1) for sample in range(11)]).broken
    assert {Path(name).name for name in broken} == {"wrong.png", "gone.png", "broken.png"}
    assert "64 x 48 px, but its record says 64 x 64" in broken[str(tmp_path / "wrong.png")]


def test_references_are_shown_1_to_as_many_as_there_are():
    settings = DrawSettings(0, SHAPES)
    shown = [draw(settings, sample, 4, [9] * 50).shown for sample in range(2000)]
    counts = np.bincount(shown, minlength=5)
    assert counts[0] == 0
    assert np.abs(counts[1:] - 500).max() < 3 * np.sqrt(2000 * 0.25 * 0.75)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"path": "a.png", "size": [64], "caption": "x"}, "size"),
        ({"path": "a.png", "size": "64x64", "caption": "x"}, "size"),
        ({"path": "", "size": [64, 64], "caption": "x"}, "path"),
        ({"path": "a.png", "size": [64, 64], "caption": "x", "ref": "b.png"}, "ref"),
        ({"path": "a.png", "size": [64, 64]}, "caption"),
    ],
)
def test_a_line_that_breaks_the_schema_is_named(row: dict, words: str, tmp_path: Path):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=rf"rows\.jsonl:1: .*{words}"):
        read_records(tmp_path / "rows.jsonl", faceless=True)


def test_elsewhere_such_rows_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"rows\.jsonl:1: "):
        read_records(rows(tmp_path))

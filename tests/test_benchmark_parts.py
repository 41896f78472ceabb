"""The small benchmarks of docs/performance.md run and print their tables; what they measure is not judged here."""

import re
import sys

import numpy as np
import pytest
from PIL import Image
from research.benchmarks import attention, decoding


def table(capsys):
    """The rows that were printed, as lists of cells, without the head."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_attention(monkeypatch, capsys):
    sizes = ["--rows", "1", "--tokens", "9", "--heads", "2", "--width", "8", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["attention", *sizes])
    attention.main()
    rows = table(capsys)
    assert [row[0] for row in rows] == ["views", "copied", "apart", "plain", "the product"]
    assert all(float(cell) >= 0 for row in rows for cell in row[1:])


@pytest.mark.parametrize("resize", [["--resize", "1200x1600"], []])
def test_decoding(tmp_path, monkeypatch, capsys, resize):
    file = tmp_path / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(256, size=(640, 600, 3), dtype=np.uint8)).save(file)
    monkeypatch.setattr(sys, "argv", ["decoding", str(file), *resize, "--rounds", "1"])
    decoding.main()
    out = capsys.readouterr()
    assert out.out.startswith("1200 x 1600 px" if resize else "600 x 640 px")
    timed = set(re.findall(r"round 0, \('([a-z ]+)', '([a-z]+)'\)", out.err))
    assert timed == {(part, way) for part in ("the picture", "the face") for way in ("whole", "draft")}

"""The scripts behind sheets and tables of docs/methods.md run, on two people; what they reach is not judged here."""

import json
import sys

import numpy as np
import pytest
from PIL import Image
from research import blending, dense_face, hair, people_in_one, side_by_side
from research.reproduction import parts

from feedface.common.places import CHECKOUT


def run(monkeypatch, script, *options):
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, options)])
    script.main()


def test_side_by_side(tmp_path, monkeypatch):
    systems = tmp_path / "systems.json"
    model = str(CHECKOUT / "models/mini")
    systems.write_text(json.dumps([{"name": "one", "model": model}, {"name": "other", "model": model}]))
    out = tmp_path / "sheets" / "sheet.png"
    run(
        monkeypatch, side_by_side, "--systems", systems, "--out", out, "--people", 1, "--prompts", "a photo of a person"
    )
    with Image.open(out) as sheet:
        assert sheet.width >= 2 * 128 and sheet.height >= 2 * 128  # two systems below each other


def test_what_the_judge_knows_people_by(monkeypatch, capsys):
    run(monkeypatch, parts, "--model", CHECKOUT / "models/mini", "--people", 6)
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0].removeprefix("| another's ") for row in rows] == ["| as they are", *parts.PARTS]
    assert float(rows[0][1].split()[0]) > float(rows[3][1].split()[0])  # another's hair is less like the person


def test_hair_is_measured(monkeypatch, capsys):
    area, colour = np.array([0.0, 0.1, 0.3]), np.eye(3)
    assert hair.figures((area, colour), area, colour) == ["0.0%", "10.0%", "30.0%", "1.00"]
    systems = ["--systems", CHECKOUT / "models/mini"]
    run(monkeypatch, hair, *systems, "--references", 0, "--people", 3)
    assert [line.split(" | ")[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["| real", "| mini"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, options, figures, sheets",
    [
        (dense_face, ["--people", 2, "--shown", 1], "figures.json", ["poses", "inpainting", "dense"]),
        (people_in_one, ["--pairs", 2], "people.json", ["people"]),
        (blending, ["--pairs", 2, "--shown", 1], None, []),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_measured_sheets(tmp_path, monkeypatch, script, options, figures, sheets):
    monkeypatch.chdir(CHECKOUT)  # the models' folders are named from there
    run(monkeypatch, script, *options, "--out", tmp_path)
    if figures:
        assert json.loads((tmp_path / figures).read_text())
    found = {file.stem for file in tmp_path.glob("*.png")}
    assert found and set(sheets) <= found

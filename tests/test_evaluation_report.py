"""report.html, table.md, table.tex, sheet.png and the scatter, from what an evaluation leaves."""

import json
import math
import shutil

import numpy as np
import pytest
from html_reader import Reader
from PIL import Image

from feedface.common.contact_sheet import CELL_PX, GAP_PX, Tile, tile_rows
from feedface.common.errors import UserError
from feedface.evaluation.columns import HIGHER, LOWER, ZERO, Column, column_of, ordered
from feedface.evaluation.metrics import Figure
from feedface.evaluation.report import write_report
from feedface.evaluation.results import as_figure, evenly, load_results

ODD = '<b>"ü" & $x_1$|%'
SYSTEMS = {ODD: 60, "FeedFace": 160}  # name -> red of its pictures
PEOPLE = {"ann": 40, "b c/d": 140, "zoë": 240}  # name -> green
FILES = ("report.html", "table.md", "table.tex", "face_against_text.png", "sheet.png")
COMMAND = 'python evaluate.py --cases "a b" <x>'
FIGURE = {"value": 0.29349, "low": 0.27, "high": 0.31001}


def colour(system: str | None, person: str, prompt: int = 0) -> tuple[int, int, int]:
    return (0 if system is None else SYSTEMS[system], PEOPLE[person], 100 * prompt)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An evaluation's folder: two systems, three people, two prompts; every picture has a colour of its own."""
    out = tmp_path_factory.mktemp("out")

    def put(file: str, rgb: tuple) -> str:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), rgb).save(out / file)
        return file

    people, rows = {}, []
    for number, person in enumerate(PEOPLE):
        reference = put(f"references/{number}/00.png", colour(None, person))
        people[person] = {"references": [reference], "prompts": [f"prompt <{number}0>", f"prompt {number}1"]}
        for system in SYSTEMS:
            for prompt in range(2):
                file = put(f"pictures/{SYSTEMS[system]}/{number}/{prompt}.png", colour(system, person, prompt))
                found = not (person == "ann" and prompt)
                row = {"system": system, "case": person, "prompt": prompt, "sample": 0, "seed": 10 * number + prompt}
                rows.append(row | {"file": file, "face_found": found, "face_other": 0.4 * found, "clip_text": 0.3})
    people["zoë"]["notices"] = ["IMG_1.jpg shows no face and is left out"]
    systems = {
        ODD: {
            "settings": {"steps": 25}, "model": {"path": "models/a", "name": "a", "digest": "0123"},
            "figures": {"face_other": FIGURE, "clip_text": {"value": 0.31, "low": 0.30, "high": 0.32}, "nearest": None,
                        "attribute_all": {"value": 0.5, "low": 0.4, "high": 0.6}, "new_one": FIGURE},
            "normalised": {"face": FIGURE, "clip_face": FIGURE, "text": None, "clip_text": FIGURE, "overall": None,
                           "seconds": {"value": 1320, "low": 1200, "high": 1440},
                           "left_out": {"face": "1 of 3 cases cannot be normalised (ann: one reference)"}},
            "not_measured": {"image_reward": "the package is <missing>", "nearest": "needs two people"},
            "seconds": 1320, "peak_memory_mib": 612.4, "detection_rate": {"value": 5 / 6, "low": 0.5, "high": 1.0},
        },
        "FeedFace": {
            "figures": {"face_other": {"value": 0.2, "low": 0.1, "high": 0.25}},
            "not_measured": {"image_reward": "the package is <missing>", "clip_text": "no CLIP"},
            "detection_rate": 0.25, "peak_memory_mib": None,
        },
    }  # fmt: skip
    scores = {
        "protocol": "ppr10k",
        "command": COMMAND,
        "judge": {"face": "buffalo_l", "clip": None},
        "cases": {"count": 3, "failed": {"nobody": "no face in any picture"}, "people": people},
        "systems": systems,
        "comparisons": {f"FeedFace - {ODD}": {"face_other": {"value": -0.0935, "low": -0.2, "high": -0.01}}},
    }
    (out / "scores.json").write_text(json.dumps(scores))
    (out / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(out)
    return out


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made, tmp_path / "copy")


def change(out, edit) -> None:
    scores = json.loads((out / "scores.json").read_text())
    edit(scores)
    (out / "scores.json").write_text(json.dumps(scores))


def text_of(out) -> str:
    return Reader((out / "report.html").read_text(encoding="utf-8")).text


def sheet_cells(out) -> list[list[tuple[int, int, int]]]:
    """The colours of the cells, [rows][columns], by looking down the first column for pictures."""
    with Image.open(out / "sheet.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    columns = [GAP_PX + column * (CELL_PX + GAP_PX) + CELL_PX // 2 for column in range(len(SYSTEMS) + 1)]
    # The left edge, where no letters of "no picture" are.
    solid = (pixels[:, GAP_PX : GAP_PX + 40] == pixels[:, GAP_PX : GAP_PX + 1]).all(axis=(1, 2))
    paper = (pixels[:, GAP_PX + 5] == 255).all(axis=-1)
    inside = np.flatnonzero(solid & ~paper)
    runs = [run for run in np.split(inside, np.flatnonzero(np.diff(inside) > 1) + 1) if len(run) > CELL_PX // 2]
    return [[tuple(pixels[run[len(run) // 4], x].tolist()) for x in columns] for run in runs]


def test_the_page_is_whole_and_needs_nothing_else(made):
    page = Reader((made / "report.html").read_text(encoding="utf-8"))
    assert page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert ODD in page.text and '<b>"ü' not in (made / "report.html").read_text(encoding="utf-8")


def test_the_page_says_what_was_measured_how_and_what_was_not(made):
    text = text_of(made)
    for said in (
        COMMAND, "buffalo_l", "0.293", "[0.270, 0.310]", "83.3 %", "612 MiB", "22 min", "new one",
        column_of("face_other").about, column_of("detection_rate").about,
        "the package is <missing>", "needs two people", "1 of 3 cases cannot be normalised (ann: one reference)",
        "no face in any picture", "IMG_1.jpg shows no face and is left out", "face found: 50%",
        "0.176", "0.818",  # the paper's own, beside the same protocol
    ):  # fmt: skip
        assert said in text, said


def test_a_difference_is_called_by_its_interval(made):
    assert "worse" in text_of(made) and "-0.093 [-0.200, -0.010]" in (made / "table.md").read_text(encoding="utf-8")
    column = Column("k", "k", HIGHER, "")
    assert column.verdict(Figure(1, 0.5, 2)) == "better" and column.verdict(Figure(-1, -2, -0.5)) == "worse"
    assert column.verdict(Figure(1, -0.5, 2)) == "no difference shown"
    assert Column("k", "k", LOWER, "").verdict(Figure(1, 0.5, 2)) == "worse"
    assert Column("k", "k", ZERO, "").verdict(Figure(1, 0.5, 2)) == ""
    assert column.verdict(Figure(1, math.nan, math.nan)) == ""


def test_the_sheet_shows_the_reference_then_each_system_on_the_same_seed(made):
    shown = [[colour(None, person), *(colour(system, person, row % 2) for system in SYSTEMS)]
             for row, person in enumerate(PEOPLE)]  # fmt: skip
    assert sheet_cells(made) == shown


def test_pictures_that_are_gone_are_grey_and_the_rest_stays(copy):
    (copy / "pictures/160/1/1.png").unlink()
    (copy / "references/2/00.png").write_bytes(b"no picture")
    write_report(copy)
    cells = sheet_cells(copy)
    grey = cells[1][2]
    assert grey == cells[2][0] and len(set(grey)) == 1
    assert cells[0][2] == colour("FeedFace", "ann") and cells[1][1] == colour(ODD, "b c/d", 1)


def test_a_sheet_holds_every_row_and_tile():
    def tile(value: int) -> Tile:
        return Tile(Image.new("RGB", (64, 64), (value,) * 3), "a very long prompt " * 5)

    sheet = tile_rows(
        [("", [tile(200), tile(0), tile(0), tile(0)]), ("a title", [tile(200), tile(0), tile(0), tile(90)])]
    )
    pixels = np.asarray(sheet)
    for value, cells in ((200, 2), (0, 5), (90, 1)):
        area = (pixels == value).all(axis=2).sum() / CELL_PX**2
        assert area == pytest.approx(cells, abs=0.2)


def test_the_same_files_give_the_same_bytes(made, copy):
    for name in FILES:
        (copy / name).unlink()
    write_report(copy)
    assert all((copy / name).read_bytes() == (made / name).read_bytes() for name in FILES)
    assert not list(copy.glob(".tmp*"))


def test_tables_hold_the_rows_of_the_paper(made):
    lines = (made / "table.md").read_text(encoding="utf-8").split("\n")
    head = next(number for number, line in enumerate(lines) if line.startswith("| system"))
    assert lines[head + 2].startswith('| &lt;b>"ü" & $x_1$\\|% | 0.293 [0.270, 0.310] | 0.293 [0.270, 0.310] | – |')
    assert lines[head + 2].endswith("| – | 22 min [20, 24] |")
    assert lines[head + 4].startswith("| DreamBooth, as published | 0.176 | 0.718 | 0.878 | 0.316 | 2.09 | 72 min |")
    latex = (made / "table.tex").read_text(encoding="utf-8")
    rows = [line for line in latex.split("\n") if line.endswith("\\\\")]
    assert len(rows) == 5 and all(row.replace("\\&", "").count("&") == 6 for row in rows)
    assert rows[1].startswith(r"\textless{}b\textgreater{}\"ü\" \& \$x\_1\$\textbar{}\% & ".replace('\\"', '"'))
    assert r"0.293 {\scriptsize [0.270, 0.310]}" in rows[1]


def test_without_normalisation_the_latex_table_holds_the_main_figures(copy):
    change(copy, lambda scores: [scores["systems"][name].pop("normalised", None) for name in SYSTEMS])
    write_report(copy)
    latex = (copy / "table.tex").read_text(encoding="utf-8")
    assert r"\textbf{0.293} {\scriptsize [0.270, 0.310]}" in latex and "as published" not in latex
    assert r"50.0 \% {\scriptsize [40.0, 60.0]}" in latex
    assert "0.176" not in text_of(copy)


def test_a_system_of_which_nothing_was_measured_still_has_its_place(copy):
    def bare(scores):
        scores.pop("comparisons"), scores.pop("judge"), scores.pop("command"), scores.pop("cases")
        scores["systems"] = {"FeedFace": {}}
        scores["protocol"] = "another"

    change(copy, bare)
    write_report(copy)
    assert "FeedFace" in text_of(copy) and "Evaluation: another" in text_of(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("scores.json", None, "scores.json: no such file; run evaluate.py"),
        ("scores.jsonl", None, "scores.jsonl: no such file; run evaluate.py"),
        ("scores.json", "{", "scores.json:1: not valid JSON"),
        ("scores.json", '{"systems": {}}', "scores.json: has no systems"),
        ("scores.json", '{"systems": {"a": 5}}', "scores.json:1: systems.a: must be an object, not 5"),
        ("scores.json", '{"systems": {"a": {"figures": []}}}', "systems.a.figures: must be an object"),
        (
            "scores.json",
            '{"systems": {"a": {}},\n"cases": {"people": {"b": {"prompts": 5}}}}',
            "2: cases.people.b.prompts",
        ),
        ("scores.jsonl", '{"system": "FeedFace", "case": "ann", "face_other": "x"}', "jsonl:1: face_other: cannot be"),
        ("scores.jsonl", '{"system": "FeedFace", "case": 5}', "scores.jsonl:1: case: must be a string, not 5"),
        ("scores.jsonl", '{"system": "FeedFace", "case": "ann"}\n{"sys', "scores.jsonl:2: not valid JSON"),
        ("scores.jsonl", "\n[1]\n", "scores.jsonl:2: must be an object"),
    ],
)
def test_missing_and_damaged_scores_are_named(copy, file, content, message):
    (copy / file).unlink() if content is None else (copy / file).write_text(content)
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as caught:
        write_report(copy)
    assert "\n" not in str(caught.value)


def test_one_seed_is_shared_by_as_many_systems_as_have_it(made):
    results = load_results(made)
    assert {name: row["seed"] for name, row in results.same_seed("b c/d", 3).items()} == dict.fromkeys(SYSTEMS, 11)
    results.rows[:] = [row for row in results.rows if (row["system"], row["prompt"]) != (ODD, 1)]
    assert {row["prompt"] for choice in range(4) for row in results.same_seed("b c/d", choice).values()} == {0}
    assert results.same_seed("nobody") == {}


def test_the_best_is_that_of_the_column_as_it_is_written():
    figures = {"a": Figure(0.2, 0.1, 0.3), "b": Figure(-0.3, -0.4, -0.2), "c": None, "d": Figure(0.20004, 0.1, 0.3)}

    def winners(better: str, among: str = "abcd") -> set[str]:
        return Column("k", "k", better, "").best(figures, among)

    assert winners(HIGHER) == {"a", "d"} and winners(LOWER) == {"b"} and winners(ZERO) == {"a", "d"}
    assert winners("") == set()
    assert winners(HIGHER, "ad") == set(), "all the same"
    assert winners(HIGHER, "ac") == set(), "nothing to compare with"
    figures |= {"base": Figure(0.0, 0.0, 0.0), "a": Figure(0.02, 0.01, 0.03)}
    background = Column("background_pixels", "background", LOWER, "")
    assert background.best({name: figures[name] for name in ("base", "a")}, figures) == set()


def test_real_pictures_are_shown_but_never_the_best(copy):
    assert "**0.293**" in (copy / "table.md").read_text(encoding="utf-8")
    change(copy, lambda scores: scores["systems"][ODD]["model"].update(digest=None))
    write_report(copy)
    assert "**0.293**" not in (copy / "table.md").read_text(encoding="utf-8")
    assert f"Drawn by no system, for comparison: {ODD}." in text_of(copy)


def test_numbers_are_written_in_their_units():
    def written(figure: Figure, form: str) -> str:
        column = Column("k", "k", HIGHER, "", form)
        return f"{column.number(figure.value)} {column.interval(figure)}".rstrip()

    figure = Figure(0.5, 0.25, 1.0)
    assert written(figure, "share") == "50.0 % [25.0, 100.0]"
    assert written(figure, "score") == "0.500 [0.250, 1.000]"
    assert written(Figure(4320, 3600, 5040), "time") == "72 min [60, 84]"
    assert written(Figure(2.5, 2.0, 3.0), "seconds") == "2.50 s [2.00, 3.00]"
    assert written(Figure(20480, 20480, 20480), "mib") == "20.0 GiB"
    assert written(Figure(0.5, math.nan, math.nan), "score") == "0.500"


def test_figures_are_read_with_and_without_intervals():
    assert as_figure({"value": 1, "low": 0, "high": 2}) == Figure(1.0, 0.0, 2.0)
    assert as_figure(0.5).value == 0.5 and math.isnan(as_figure(0.5).low)
    assert [as_figure(value) for value in (None, "x", {}, {"value": None}, math.nan)] == [None] * 5


def test_columns_stand_in_groups_and_unknown_ones_are_kept():
    keys = [column.key for column in ordered(["seconds", "zz", "attribute_hat", "clip_text", "attributes", "nearest"])]
    assert keys == ["nearest", "clip_text", "attributes", "attribute_hat", "zz", "seconds"]
    assert evenly(list(range(100)), 3) == [0, 49, 99] and evenly([1, 2], 3) == [1, 2]

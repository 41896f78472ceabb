"""The report of an evaluation: report.html, tables and pictures, from what the evaluation left in its folder.

    python -m feedface.evaluation.report OUT      # again, for instance after a change of these words

The words are in templates/, what the figures are in `columns`. scores.json holds

    {"protocol", "command", "judge": {…},
     "cases": {…, "failed": {case: reason}, "people": {case: {"references": [files], "prompts": [texts], "notices"}}},
     "systems": {name: {"settings", "model": {"path", "name", "digest"}, "figures": {key: figure},
                        "normalised": {column of Table 1: figure or null, "left_out": {column: reason}},
                        "not_measured": {key: reason}, "seconds", "peak_memory_mib", "detection_rate"}},
     "comparisons": {"A - B": {key: figure}}}

with figures {"value", "low", "high"}; scores.jsonl a line a scored picture. Files are named relative to the folder.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from feedface.common.command_line import Parser
from feedface.common.contact_sheet import Tile, tile_rows
from feedface.common.errors import run_cli
from feedface.common.files import atomic_file
from feedface.common.pages import environment
from feedface.common.saving import save_png
from feedface.evaluation.columns import NORMALISED, OF_ATTRIBUTES, PAPER, TABLE_1, Column, column_of, ordered
from feedface.evaluation.metrics import Figure, per_person
from feedface.evaluation.plots import scatter
from feedface.evaluation.results import Results, as_figure, evenly, figures_of, load_results

SHEET_PEOPLE = 10
# What stands for likeness and for the prompt in the scatter: the first that the most systems have.
FACE_AXIS = ("face_other", "face_reference", "nearest", "clip_face")
TEXT_AXIS = ("attributes", "image_reward", "clip_text")
# What stands for a system in one row where nothing was normalised, as far as it was measured.
SHORT = ("detection_rate", "face_other", "nearest", "clip_face", "attributes", "image_reward", "clip_text", "seconds")


def write_report(out: Path) -> None:
    """Write report.html (complete in one file), table.md, table.tex, face_against_text.png and sheet.png.

    out: the folder of an evaluation; its scores.json, scores.jsonl and pictures are all that is read, and the same
    files give the same bytes. Pictures that are gone become grey cells. `UserError` without the scores.
    """
    out = Path(out)
    results = load_results(out)
    axes = text, face = axis(results, TEXT_AXIS), axis(results, FACE_AXIS)
    points = {name: (found.get(text.key), found.get(face.key)) for name, found in results.figures.items()}
    plot = out / "face_against_text.png"
    scatter(plot, points, *(f"{one.name} ({'share, ' if one.form == 'share' else ''}{one.better} is better)"
                            for one in axes))  # fmt: skip
    sheet = draw_sheet(results)
    save_png(sheet, out / "sheet.png")
    with Image.open(plot) as drawn:
        pages = render(results, drawn.convert("RGB"), sheet, axes)
    for name, content in pages.items():
        with atomic_file(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n", errors="replace")


def axis(results: Results, keys: tuple[str, ...]) -> Column:
    counts = [sum(key in found for found in results.figures.values()) for key in keys]
    return column_of(keys[counts.index(max(counts))])


def draw_sheet(results: Results) -> Image.Image:
    """A row a person, at most `SHEET_PEOPLE` of them, evenly from all: the reference, then every system's picture of
    one prompt and seed; another prompt from person to person."""
    rows = []
    for number, case in enumerate(evenly(results.people, SHEET_PEOPLE)):
        same = results.same_seed(case, number)
        first = next(iter(same.values()))
        seed = f", seed {first['seed']}" if first.get("seed") is not None else ""
        prompt = results.prompt(first)
        tiles = [Tile(results.reference(case), "reference")]
        tiles += [Tile(results.picture(same[name]) if name in same else None, name) for name in results.systems]
        rows.append((f"{case}{seed}: {prompt}" if prompt else f"{case}{seed}", tiles))
    return tile_rows(rows)


class Cell(NamedTuple):
    """A figure as it stands in a table; None: not measured. span: of all intervals of its row together."""

    figure: Figure | None
    column: Column
    best: bool = False
    span: tuple[float, float] | None = None


Row = tuple[str, list[Cell]]


def render(results: Results, plot: Image.Image, sheet: Image.Image, axes: tuple[Column, Column]) -> dict[str, str]:
    """File name -> content. plot: face against text, with `axes` (text, face); sheet: the systems side by side."""
    paper = paper_columns(results)
    keys = [key for found in results.figures.values() for key in found]
    measured = ordered(key for key in keys if not key.startswith(NORMALISED))
    columns = paper or [column for column in measured if column.key in SHORT]
    by_column = cells(results, columns)
    pairs = {name: figures_of(entries) for name, entries in results.scores.comparisons.items()}
    pairs = {name: found for name, found in pairs.items() if found}
    told = {
        "results": results,
        "scores": results.scores,
        "others": ", ".join(name for name in results.systems if name not in results.drawn),
        "measured": measured,
        "figures": list(zip((column.title for column in measured), cells(results, measured), strict=True)),
        "columns": columns,
        "paper": bool(paper),
        "rows": [(name, [row[place] for row in by_column]) for place, name in enumerate(results.systems)],
        "published": published(paper) if results.scores.protocol == "ppr10k" else [],
        "differences": pairs,
        "compared": ordered(key for found in pairs.values() for key in found),
        "missing": not_measured(results),
        "noted": [(case, notice) for case in results.people for notice in results.case(case).notices],
        "axes": axes,
        "plot": plot,
        "sheet": sheet,
        "people": lambda: people(results, axes),
        "each": sorted(Counter(row["system"] for row in results.rows)[name] for name in results.systems),
        "listings": listings(results),
    }
    templates = environment(Path(__file__).parent / "templates")
    templates.filters |= {"markdown": _markdown, "latex": _latex}
    return {name: templates.get_template(name).render(told) for name in ("report.html", "table.md", "table.tex")}


def paper_columns(results: Results) -> list[Column]:
    """The columns of the paper's table, named after what this evaluation scores text by; none if none was measured."""
    columns = [replace(column, key=NORMALISED + column.key) for column in TABLE_1]
    if "attributes" in {entry.normalised.text_measure for entry in results.scores.systems.values()}:
        place = [column.key for column in TABLE_1].index("text")
        columns[place] = replace(columns[place], name="text (attributes)", about=OF_ATTRIBUTES)
    measured = any(column.key in found for found in results.figures.values() for column in columns)
    return columns if measured else []


def published(columns: Sequence[Column]) -> list[Row]:
    """The paper's own rows, where its columns were measured."""
    pairs = {name: zip(row, columns, strict=True) for name, row in PAPER.items()} if columns else {}
    return [(f"{name}, as published", [Cell(as_figure(value), column) for value, column in row])
            for name, row in pairs.items()]  # fmt: skip


def cells(results: Results, columns: Sequence[Column]) -> list[list[Cell]]:
    """A row a column, a cell a system."""
    rows = []
    for column in columns:
        figures = {name: found.get(column.key) for name, found in results.figures.items()}
        winners, span = column.best(figures, results.drawn), _span(figures.values())
        rows.append([Cell(figure, column, name in winners, span) for name, figure in figures.items()])
    return rows


def _span(figures: Iterable[Figure | None]) -> tuple[float, float] | None:
    """What the intervals of a row span together; None where there is nothing to compare."""
    ends = [end for figure in figures if figure for end in (figure.low, figure.high, figure.value)]
    ends = [end for end in ends if math.isfinite(end)]
    return (min(ends), max(ends)) if len(ends) > 3 and max(ends) > min(ends) else None


def not_measured(results: Results) -> list[tuple[str, str, str]]:
    """(figure, systems, reason), systems with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for system, reasons in results.reasons.items():
        for pair in reasons.items():
            found.setdefault(pair, []).append(system)
    rows = []
    for (key, reason), systems in found.items():
        name = column_of(key).name + (", in the paper's table" if key.startswith(NORMALISED) else "")
        everyone = systems == results.systems and len(systems) > 1
        rows.append((name, "all systems" if everyone else ", ".join(systems), reason))
    return rows


def people(results: Results, axes: tuple[Column, Column]) -> Iterable[tuple]:
    """(reference, case, for each system its text and face and the share of faces found), so that a reader finds who
    succeeds and who fails."""
    of_system = [[row for row in results.rows if row["system"] == name] for name in results.systems]
    means = [[per_person(rows, key) for key in (axes[0].key, axes[1].key, "face_found")] for rows in of_system]
    for case in results.people:
        reference = results.reference(case)
        if reference is not None:
            reference.thumbnail((64, 64), Image.Resampling.LANCZOS)
        yield reference, case, [[values.get(case) for values in of] for of in means]


def listings(results: Results) -> dict[str, list[tuple[str, str]]]:
    """Title -> (name, value) of everything that scores.json says of how it was made."""
    scores = results.scores
    found = {
        name: [*_flat({"model": entry.model}), *_flat(entry.settings), *_flat({"seconds in all": entry.seconds})]
        for name, entry in scores.systems.items()
    }
    plain = {key: one for key, one in (scores.cases.model_extra or {}).items() if not isinstance(one, list)}
    rest = plain | {"protocol": scores.protocol or None, "judge": scores.judge} | (scores.model_extra or {})
    found["judge"] = _flat(scores.judge) if isinstance(scores.judge, dict) else []
    found["cases and the rest"] = _flat({key: one for key, one in rest.items() if not isinstance(one, dict)})
    return {title: rows for title, rows in found.items() if rows}


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return rows


@cache
def _markdown(text: object) -> str:
    """A cell of a table: in one line, without what begins a cell or a tag."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _latex(text: str) -> str:
    escaped = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
               "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # fmt: skip
    return "".join(escaped.get(char, f"\\{char}" if char in "&%$#_{}" else char) for char in text)


def main() -> None:
    parser = Parser(
        prog="python -m feedface.evaluation.report", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("out", type=Path, help="folder of an evaluation")
    out = parser.parse_args().out
    write_report(out)
    print(out / "report.html")


if __name__ == "__main__":
    run_cli(main)

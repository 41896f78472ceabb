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

import base64
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image

from feedface.common.command_line import Parser
from feedface.common.contact_sheet import Tile, tile_rows
from feedface.common.errors import run_cli
from feedface.common.files import atomic_file
from feedface.evaluation import columns as words
from feedface.evaluation.columns import NORMALISED, PAPER, TABLE_1, Column, best, column_of, ordered
from feedface.evaluation.metrics import Figure, per_person
from feedface.evaluation.plots import scatter
from feedface.evaluation.results import Results, as_figure, load_results, spread
from feedface.inference.outputs import save_png

SHEET_PEOPLE = 10
# What stands for likeness and for the prompt in the scatter: the first that the most systems have.
FACE_AXIS = ("face_other", "face_reference", "nearest", "clip_face")
TEXT_AXIS = ("attributes", "image_reward", "clip_text")
# What stands for a system in one row where nothing was normalised, as far as it was measured.
SHORT = ("detection_rate", "face_other", "nearest", "clip_face", "attributes", "image_reward", "clip_text", "seconds")
PROTOCOLS = {
    "ppr10k": "Real people: photos of PPR10K, several of each person.",
    "mini": "People of this project's synthetic world, whom no model here was trained on, judged by a network (the "
    "inspector) that was trained apart from all of them.",
}


def write_report(out: Path) -> None:
    """Write report.html (complete in one file), table.md, table.tex, face_against_text.png and sheet.png.

    out: the folder of an evaluation; its scores.json, scores.jsonl and pictures are all that is read, and the same
    files give the same bytes. Pictures that are gone become grey cells. `UserError` without the scores.
    """
    out = Path(out)
    results = load_results(out)
    text, face = axis(results, TEXT_AXIS), axis(results, FACE_AXIS)
    points = {name: (results.figure(name, text.key), results.figure(name, face.key)) for name in results.systems}
    plot = out / "face_against_text.png"
    scatter(plot, points, _axis_label(text), _axis_label(face))
    sheet = draw_sheet(results)
    save_png(sheet, out / "sheet.png")
    with Image.open(plot) as drawn:
        pages = render(results, drawn.convert("RGB"), sheet, (text, face))
    for name, content in pages.items():
        with atomic_file(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n", errors="replace")


def axis(results: Results, keys: tuple[str, ...]) -> Column:
    counts = [sum(results.figure(name, key) is not None for name in results.systems) for key in keys]
    return column_of(keys[counts.index(max(counts))])


def _axis_label(column: Column) -> str:
    return f"{column.name} ({'share, ' if column.form == 'share' else ''}{column.better} is better)"


def draw_sheet(results: Results) -> Image.Image:
    """A row a person, at most `SHEET_PEOPLE` of them, evenly from all: the reference, then every system's picture of
    one prompt and seed; another prompt from person to person."""
    rows = []
    for number, case in enumerate(spread(results.people, SHEET_PEOPLE)):
        same = results.same_seed(case, number)
        first = next(iter(same.values()))
        seed = f", seed {first['seed']}" if first.get("seed") is not None else ""
        prompt = results.prompt(first)
        tiles = [Tile(results.reference(case), "reference")]
        tiles += [Tile(results.picture(same[name]) if name in same else None, name) for name in results.systems]
        rows.append((f"{case}{seed}: {prompt}" if prompt else f"{case}{seed}", tiles))
    return tile_rows(rows)


@dataclass(frozen=True)
class Cell:
    """A figure as it stands in a table; None: not measured. span: of all intervals of its row together."""

    figure: Figure | None
    column: Column
    best: bool = False
    span: tuple[float, float] | None = None

    @property
    def number(self) -> str:
        return "–" if self.figure is None else words.write_number(self.figure.value, self.column.form)

    @property
    def difference(self) -> str:
        return words.write_difference(self.figure, self.column.form)

    @property
    def interval(self) -> str:
        return "" if self.figure is None else words.write_interval(self.figure, self.column.form)

    @property
    def verdict(self) -> str:
        return words.verdict(self.figure, self.column)

    @property
    def markdown(self) -> str:
        return f"{f'**{self.number}**' if self.best else self.number} {self.interval}".rstrip()

    @property
    def latex(self) -> str:
        number = _latex(self.number).replace("-", "$-$", 1) if self.figure else "--"
        number = rf"\textbf{{{number}}}" if self.best else number
        interval = self.interval.replace("-", "$-$")
        return rf"{number} {{\scriptsize {interval}}}" if interval else number

    def place(self, value: float, width: float) -> str:
        """Of `value` on the scale of the row, `width` pixels long."""
        low, high = self.span
        return f"{width * (value - low) / (high - low):.1f}"


Row = tuple[str, list[Cell]]


def render(results: Results, plot: Image.Image, sheet: Image.Image, axes: tuple[Column, Column]) -> dict[str, str]:
    """File name -> content. plot: face against text, with `axes` (text, face); sheet: the systems side by side."""
    measured = measured_columns(results)
    paper = paper_columns(results)
    told = {
        "results": results,
        "scores": results.scores,
        "protocol": PROTOCOLS.get(str(results.scores.protocol), ""),
        "others": ", ".join(name for name in results.systems if name not in results.drawn),
        "columns": paper or [column for column in measured if column.key in SHORT],
        "paper": bool(paper),
        "published": published(results, paper) if results.scores.protocol == "ppr10k" else [],
        "measured": measured,
        "figures": list(zip((column.title for column in measured), _by_column(results, measured), strict=True)),
        "differences": differences(results),
        "missing": not_measured(results),
        "left_out": left_out(results),
        "arrows": {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "zero": r" $\rightarrow 0$", "": ""},
    }
    told["rows"] = _by_system(results, told["columns"])
    told["compared"] = ordered(key for cells in told["differences"].values() for key in cells)
    pages = {name: _environment().get_template(name).render(told) for name in ("table.md", "table.tex")}
    told |= {
        "groups": [(group, list(rows)) for group, rows in groupby(told["figures"], lambda row: row[1][0].column.group)],
        "cards": cards(results),
        "text": axes[0],
        "face": axes[1],
        "plot": embed(plot, "PNG"),
        "sheet": embed(sheet, "JPEG"),
        "people": list(people(results, axes)),
        "listings": listings(results),
    }
    return pages | {"report.html": _environment().get_template("report.html").render(told)}


def paper_columns(results: Results) -> list[Column]:
    """The columns of the paper's table, named after what this evaluation scores text by; none if none was measured."""
    columns = [replace(column, key=NORMALISED + column.key) for column in TABLE_1]
    if "attributes" in {entry.normalised.text_measure for entry in results.systems.values()}:
        place = [column.key for column in TABLE_1].index("text")
        columns[place] = replace(columns[place], name="text (attributes)", about=words.OF_ATTRIBUTES)
    measured = any(results.figure(name, column.key) for name in results.systems for column in columns)
    return columns if measured else []


def published(results: Results, columns: Sequence[Column]) -> list[Row]:
    """The paper's own rows."""
    if not columns:
        return []
    pairs = {name: zip(row, columns, strict=True) for name, row in PAPER.items()}
    return [(f"{name}, as published", [Cell(as_figure(value), column) for value, column in row])
            for name, row in pairs.items()]  # fmt: skip


def measured_columns(results: Results) -> list[Column]:
    """The columns in which any system has a figure."""
    keys = [key for name in results.systems for key in results.keys(name)]
    columns = ordered(["detection_rate", *keys, "peak_memory_mib"])
    return [column for column in columns if any(results.figure(name, column.key) for name in results.systems)]


def _by_column(results: Results, columns: Sequence[Column], spans: bool = True) -> list[list[Cell]]:
    """A row a column, a cell a system; `spans`: to be drawn on one scale."""
    rows = []
    for column in columns:
        figures = {name: results.figure(name, column.key) for name in results.systems}
        winners, span = best(figures, column, results.drawn), _span(figures.values()) if spans else None
        rows.append([Cell(figure, column, name in winners, span) for name, figure in figures.items()])
    return rows


def _by_system(results: Results, columns: Sequence[Column]) -> list[Row]:
    cells = _by_column(results, columns, spans=False)
    return [(name, [row[place] for row in cells]) for place, name in enumerate(results.systems)]


def _span(figures: Iterable[Figure | None]) -> tuple[float, float] | None:
    """What the intervals of a row span together; None where there is nothing to compare."""
    ends = [
        end for figure in figures if figure for end in (figure.low, figure.high, figure.value) if math.isfinite(end)
    ]
    return (min(ends), max(ends)) if len(ends) > 3 and max(ends) > min(ends) else None


def differences(results: Results) -> dict[str, dict[str, Cell]]:
    """ "A - B" -> key -> cell, in the order of the columns."""
    found = {}
    for name, entries in results.scores.comparisons.items():
        known = {column.key: Cell(as_figure(entries[column.key]), column) for column in ordered(entries)}
        found[name] = {key: cell for key, cell in known.items() if cell.figure}
    return {name: cells for name, cells in found.items() if cells}


def not_measured(results: Results) -> list[tuple[str, str, str]]:
    """(figure, systems, reason), systems with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for system in results.systems:
        for key, reason in results.reasons(system).items():
            found.setdefault((key, reason), []).append(system)
    everyone = list(results.systems)
    rows = []
    for (key, reason), systems in found.items():
        name = column_of(key).name + (", in the paper's table" if key.startswith(NORMALISED) else "")
        all_of_them = systems == everyone and len(everyone) > 1
        rows.append((name, "all systems" if all_of_them else ", ".join(systems), reason))
    return rows


def left_out(results: Results) -> list[tuple[str, str]]:
    """(person, why), and what is noted of others."""
    notices = [(case, notice) for case in results.people for notice in results.case(case).notices]
    return [*results.scores.cases.failed.items(), *notices]


def cards(results: Results) -> list[tuple[Any, str]]:
    """How much was evaluated: (number, of what)."""
    each = sorted(Counter(row["system"] for row in results.rows)[name] for name in results.systems)
    found = [
        (len(results.drawn), "system" if len(results.drawn) == 1 else "systems"),
        (len(results.people), "people"),
        (len({(row["case"], row.get("prompt")) for row in results.rows}), "pairs of person and prompt"),
        ("–".join(str(number) for number in dict.fromkeys((each[0], each[-1]))), "pictures a system"),
    ]
    if results.scores.cases.failed:
        found.append((len(results.scores.cases.failed), "people left out, see below"))
    judge = results.scores.judge
    if isinstance(judge, dict) and isinstance(judge.get("face"), str):
        found.append((judge["face"], "judge of faces"))
    return found


def people(results: Results, axes: tuple[Column, Column]) -> Iterable[tuple[Any, str, list[tuple[str, str, float]]]]:
    """(reference, case, for each system its face and text and the share of faces found), so that a reader finds who
    succeeds and who fails."""
    text, face = axes
    of_system = [[row for row in results.rows if row["system"] == name] for name in results.systems]
    means = [[per_person(rows, key) for key in (face.key, text.key, "face_found")] for rows in of_system]
    for case in results.people:
        reference = results.reference(case)
        if reference is not None:
            reference.thumbnail((64, 64), Image.Resampling.LANCZOS)
        cells = []
        for *values, found in means:
            written = [words.write_number(of[case], column.form) if case in of else "–"
                       for of, column in zip(values, (face, text), strict=True)]  # fmt: skip
            cells.append((*written, found.get(case, 1.0)))
        yield embed(reference, "JPEG") if reference else None, case, cells


def listings(results: Results) -> dict[str, list[tuple[str, str]]]:
    """Title -> (name, value) of everything that scores.json says of how it was made."""
    scores, found = results.scores, {}
    for name, entry in results.systems.items():
        found[name] = [
            *_flat({"model": entry.model}),
            *_flat(entry.settings),
            *_flat({"seconds in all": entry.seconds}),
        ]
    judge = scores.judge if isinstance(scores.judge, dict) else {}
    found["judge"] = _flat(judge)
    rest = {"protocol": scores.protocol or None, "judge": scores.judge} | (scores.model_extra or {})
    plain = {key: one for key, one in (scores.cases.model_extra or {}).items() if not isinstance(one, dict | list)}
    other = {key: one for key, one in rest.items() if not isinstance(one, dict)}
    found["cases and the rest"] = _flat(plain | other)
    return {title: rows for title, rows in found.items() if rows}


def _flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in values.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)))
    return rows


def embed(image: Image.Image, kind: str) -> dict:
    """An image for a page that needs no other file: its source, width and height."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    source = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"source": source, "width": image.width, "height": image.height}


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("feedface.evaluation"),
        autoescape=select_autoescape(["html"], default_for_string=False),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    environment.filters |= {"md": _markdown, "tex": _latex, "oneline": lambda text: " ".join(text.split())}
    return environment


def _visible(value: object) -> object:
    """Names may hold control characters and lone surrogates, which a page must not."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", value)


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

"""The report of an evaluation: report.html, tables and pictures, from what the evaluation left in its folder.

    python -m feedface.evaluation.report OUT      # again, for instance after a change of these words

scores.json holds

    {"protocol", "command", "judge": {…},
     "cases": {…, "failed": {case: reason}, "people": {case: {"references": [files], "prompts": [texts], "notices"}}},
     "systems": {name: {"settings", "model": {"path", "name", "digest"}, "figures": {key: figure},
                        "normalised": {column of Table 1: figure or null, "left_out": {column: reason}},
                        "not_measured": {key: reason}, "seconds", "peak_memory_mib", "detection_rate"}},
     "comparisons": {"A - B": {key: figure}}}

with figures {"value", "low", "high"}; scores.jsonl a line a scored picture. Files are named relative to the folder.
"""

from pathlib import Path

from PIL import Image

from feedface.common.command_line import Parser
from feedface.common.errors import run_cli
from feedface.common.files import atomic_file
from feedface.common.saving import save_png
from feedface.evaluation.columns import Column, column_of
from feedface.evaluation.page import html_page
from feedface.evaluation.plots import scatter
from feedface.evaluation.results import Results, load_results, spread
from feedface.evaluation.sheets import Row, people_sheet, side_by_side
from feedface.evaluation.tables import latex_table, markdown_page

__all__ = ["people_sheet", "write_report"]

SHEET_PEOPLE = 10
# What stands for likeness and for the prompt in the scatter: the first that the most systems have.
FACE_AXIS = ("face_other", "face_reference", "nearest", "clip_face")
TEXT_AXIS = ("attributes", "image_reward", "clip_text")


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
        page = html_page(results, drawn.convert("RGB"), sheet, (text, face))
    for name, content in (
        ("table.md", markdown_page(results)),
        ("table.tex", latex_table(results)),
        ("report.html", page),
    ):
        with atomic_file(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8", newline="\n", errors="replace")


def axis(results: Results, keys: tuple[str, ...]) -> Column:
    counts = [sum(results.figure(name, key) is not None for name in results.systems) for key in keys]
    return column_of(keys[counts.index(max(counts))])


def draw_sheet(results: Results) -> Image.Image:
    """A row a person, at most `SHEET_PEOPLE` of them, evenly from all: the reference, then every system's picture of
    one prompt and seed; another prompt from person to person."""
    rows = []
    for number, case in enumerate(spread(results.people, SHEET_PEOPLE)):
        same = results.same_seed(case, number)
        first = next(iter(same.values()))
        seed = f", seed {first['seed']}" if first.get("seed") is not None else ""
        prompt = results.prompt(first)
        title = f"{case}{seed}: {prompt}" if prompt else f"{case}{seed}"
        pictures = [results.picture(same[name]) if name in same else None for name in results.systems]
        rows.append(Row(title, results.reference(case), pictures))
    return side_by_side(list(results.systems), rows)


def _axis_label(column: Column) -> str:
    return f"{column.name} ({'share, ' if column.form == 'share' else ''}{column.better} is better)"


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

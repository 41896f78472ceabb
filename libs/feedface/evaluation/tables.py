"""The tables of an evaluation: table.md (all figures) and table.tex (a row a system, like Table 1 of the paper)."""

from collections.abc import Sequence
from dataclasses import replace

from feedface.evaluation.columns import (
    ARROWS,
    PAPER,
    TABLE_1,
    Column,
    best,
    column_of,
    ordered,
    verdict,
    write_figure,
    write_interval,
    write_number,
)
from feedface.evaluation.metrics import Figure
from feedface.evaluation.results import NORMALISED, Results, as_figure

Rows = list[tuple[str, dict[str, Figure | None]]]  # (system, column's key -> figure)

# What stands for a system in one row where nothing was normalised, as far as it was measured.
SHORT = ("detection_rate", "face_other", "nearest", "clip_face", "attributes", "image_reward", "clip_text", "seconds")
INTERVALS = "Brackets: 95 % bootstrap intervals over people. Bold: the best, which need not be better than chance."
AS_PUBLISHED = "as published"


def table_1_columns(results: Results) -> tuple[Column, ...]:
    """The columns of the paper's table, the text score named after what this evaluation scores text by."""
    measures = {(entry.get("normalised") or {}).get("text_measure") for entry in results.systems.values()}
    if "attributes" in measures:
        about = (
            "Share of what the prompt names that the judge sees, per person scaled so that 0 is the references "
            "themselves, which know nothing of the prompt, and 1 is the base model without a face."
        )
        return tuple(
            replace(column, name="text (attributes)", about=about) if column.key == "text" else column
            for column in TABLE_1
        )
    return TABLE_1


def has_table_1(results: Results) -> bool:
    return any(results.normalised(name, column.key) for name in results.systems for column in TABLE_1)


def table_1(results: Results) -> Rows:
    """As measured here."""
    return [(name, {column.key: results.normalised(name, column.key) for column in TABLE_1})
            for name in results.systems]  # fmt: skip


def published(results: Results) -> Rows:
    """The paper's own rows, for the protocol that is the paper's."""
    if results.scores.get("protocol") != "ppr10k":
        return []
    keys = [column.key for column in TABLE_1]
    return [(f"{name}, {AS_PUBLISHED}", dict(zip(keys, map(as_figure, row), strict=True)))
            for name, row in PAPER.items()]  # fmt: skip


def measured_columns(results: Results) -> list[Column]:
    """The columns in which any system has a figure."""
    keys = [key for name in results.systems for key in results.keys(name)]
    columns = ordered(["detection_rate", *keys, "peak_memory_mib"])
    return [column for column in columns if any(results.figure(name, column.key) for name in results.systems)]


def short_columns(results: Results) -> list[Column]:
    return [column for column in measured_columns(results) if column.key in SHORT]


def figures_of(results: Results, columns: Sequence[Column]) -> Rows:
    return [(name, {column.key: results.figure(name, column.key) for column in columns}) for name in results.systems]


def winners_of(results: Results, rows: Rows, columns: Sequence[Column]) -> dict[str, set[str]]:
    """Column's key -> the best systems in it."""
    return {column.key: best([(name, row[column.key]) for name, row in rows], column, results.drawn)
            for column in columns}  # fmt: skip


def not_measured(results: Results) -> list[tuple[str, str, str]]:
    """(figure, systems, reason), systems with the same reason together."""
    found: dict[tuple[str, str], list[str]] = {}
    for system in results.systems:
        for key, reason in results.reasons(system).items():
            found.setdefault((key, reason), []).append(system)
    everyone = list(results.systems)
    texts = {1: everyone[0]}.get(len(everyone), "all systems")
    rows = []
    for (key, reason), systems in found.items():
        name = column_of(key).name
        name = f"{name}, in the paper's table" if key.startswith(NORMALISED) else name
        rows.append((name, texts if systems == everyone else ", ".join(systems), reason))
    return rows


def differences(results: Results) -> list[tuple[str, list[tuple[Column, Figure, str]]]]:
    """("A - B", [(column, difference, verdict)])."""
    rows = []
    for name, entries in (results.scores.get("comparisons") or {}).items():
        known = {key: as_figure(value) for key, value in entries.items()}
        columns = [column for column in ordered(known) if known[column.key]]
        drawn = [(column, known[column.key], verdict(known[column.key], column)) for column in columns]
        if drawn:
            rows.append((name, drawn))
    return rows


def markdown_page(results: Results) -> str:
    """table.md: the paper's table where it was measured, every figure, differences, what was not measured."""
    lines = [INTERVALS, ""]
    others = [name for name in results.systems if name not in results.drawn]
    if others:
        lines += [f"Drawn by no system, for comparison: {_cell(', '.join(others))}.", ""]
    if has_table_1(results):
        columns = table_1_columns(results)
        body = _marked(results, columns, table_1(results)) + _plain(columns, published(results))
        lines += [*_markdown_table(["system", *(column.title for column in columns)], body), ""]
    columns = measured_columns(results)
    # A row a figure: there are more figures than systems, and each needs its words.
    marked = list(zip(*_marked(results, columns, figures_of(results, columns)), strict=True))[1:]
    body = [[column.title, *cells] for column, cells in zip(columns, marked, strict=True)]
    lines += [*_markdown_table(["figure", *results.systems], body), ""]
    for name, drawn in differences(results):
        body = [[column.title, write_difference(one, column), said] for column, one, said in drawn]
        lines += [f"{_cell(name)}, of the same people:", ""]
        lines += [*_markdown_table(["", "difference", "the first is"], body), ""]
    missing = not_measured(results)
    if missing:
        lines += ["Not measured:", ""]
        lines += [f"- {_cell(name)} ({_cell(systems)}): {_cell(reason)}" for name, systems, reason in missing] + [""]
    shown = [*(table_1_columns(results) if has_table_1(results) else ()), *columns]
    lines += ["What the columns are (" + ", ".join(f"{arrow} {word} is better" for word, arrow in
                                                   list(ARROWS.items())[:2]) + "):", ""]  # fmt: skip
    lines += [f"- **{column.name}**: {column.about}" for column in shown if column.about]
    return "\n".join(lines) + f"\n\nCommand: `{results.scores.get('command', 'not told')}`\n"


def latex_table(results: Results) -> str:
    """table.tex: a booktabs table to \\input, a row a system."""
    if has_table_1(results):
        columns, rows = table_1_columns(results), table_1(results)
    else:
        columns = short_columns(results)
        rows = figures_of(results, columns)
    arrows = {"higher": r" $\uparrow$", "lower": r" $\downarrow$", "zero": r" $\rightarrow 0$"}
    head = ["", *(_latex(column.name) + arrows.get(column.better, "") for column in columns)]
    winners = {
        column.key: best(((name, row[column.key]) for name, row in rows), column, results.drawn) for column in columns
    }

    def cell(name: str, figure: Figure | None, column: Column) -> str:
        if figure is None:
            return "--"
        number = _latex(write_number(figure.value, column.form)).replace("-", "$-$", 1)
        number = rf"\textbf{{{number}}}" if name in winners[column.key] else number
        interval = write_interval(figure, column.form).replace("-", "$-$")
        return rf"{number} {{\scriptsize {interval}}}" if interval else number

    def line(name: str, row: dict[str, Figure | None]) -> str:
        return " & ".join([_latex(name), *(cell(name, row[column.key], column) for column in columns)]) + r" \\"

    body = [line(name, row) for name, row in rows]
    if has_table_1(results) and published(results):
        body += [r"\midrule", *(line(name, row) for name, row in published(results))]
    command = " ".join(str(results.scores.get("command", "")).split())
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}; small brackets: 95 % bootstrap intervals over people",
            f"% {command}",
            r"\begin{tabular}{l" + "r" * len(columns) + "}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def write_difference(figure: Figure, column: Column) -> str:
    """With its sign; shares in points."""
    if column.form == "share":
        text = f"{100 * figure.value:+.1f} points"
    elif column.form == "score":
        text = f"{figure.value:+.3f}"
    else:
        text = ("+" if figure.value > 0 else "") + write_number(figure.value, column.form)
    return f"{text} {write_interval(figure, column.form)}".rstrip()


def _marked(results: Results, columns: Sequence[Column], rows: Rows) -> list[list[str]]:
    """Cells in Markdown, the best of a column in bold."""
    winners = {
        column.key: best(((name, row[column.key]) for name, row in rows), column, results.drawn) for column in columns
    }
    lines = []
    for name, row in rows:
        cells = [name]
        for column in columns:
            text, value = write_figure(row[column.key], column.form), row[column.key]
            if value is not None and name in winners[column.key]:
                number = write_number(value.value, column.form)
                text = f"**{number}**{text.removeprefix(number)}"
            cells.append(text)
        lines.append(cells)
    return lines


def _plain(columns: Sequence[Column], rows: Rows) -> list[list[str]]:
    return [[name, *(write_figure(row[column.key], column.form) for column in columns)] for name, row in rows]


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(map(_cell, head))} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return lines + [f"| {' | '.join(map(_cell, row))} |" for row in rows]


def _cell(text: str) -> str:
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")


def _latex(text: str) -> str:
    escaped = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--",
               "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # fmt: skip
    return "".join(escaped.get(char, f"\\{char}" if char in "&%$#_{}" else char) for char in text)

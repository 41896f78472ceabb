"""report.html: an evaluation for somebody who knows nothing of it, complete in one file."""

import base64
import html
import io
import json
import math
import re
from collections.abc import Iterable, Sequence

from PIL import Image

from feedface.evaluation.columns import BETTER, WORSE, Column, best, ordered, write_interval, write_number
from feedface.evaluation.metrics import Figure, per_person
from feedface.evaluation.results import Results
from feedface.evaluation.tables import (
    differences,
    figures_of,
    has_table_1,
    measured_columns,
    not_measured,
    published,
    short_columns,
    table_1,
    table_1_columns,
    winners_of,
    write_difference,
)

PROTOCOLS = {
    "ppr10k": "Real people: photos of PPR10K, several of each person.",
    "mini": "People of this project's synthetic world, whom no model here was trained on, judged by a network (the "
    "inspector) that was trained apart from all of them.",
}
STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1b1b1f; margin: 0 auto; max-width: 1240px; padding: 1.5em; }
h1 { font-size: 1.7em; margin: 0 0 0.3em; } h2 { margin: 2em 0 0.4em; font-size: 1.25em; }
p { max-width: 75ch; margin: 0.5em 0; } .faint, small { color: #666; } small { font-weight: normal; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.6em 0 1em; }
th, td { padding: 0.4em 0.9em 0.4em 0; text-align: left; vertical-align: top; border-bottom: 1px solid #e6e6ea; }
thead th { vertical-align: bottom; border-bottom: 2px solid #1b1b1f; }
td.number, th.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
th.number { white-space: normal; max-width: 11em; }
tr.group th { padding-top: 1.2em; font-size: 1.05em; border-bottom: 1px solid #1b1b1f; }
td.about { max-width: 34em; min-width: 17em; } td.about small { display: block; }
td small, td svg { display: block; margin-left: auto; }
.best { font-weight: 700; } tr.published td { color: #666; font-style: italic; }
.better { color: #00664d; } .worse { color: #a63c00; } .missing { color: #999; }
.cards { display: flex; flex-wrap: wrap; gap: 0.8em; padding: 0; margin: 1em 0; list-style: none; }
.cards li { background: #f4f4f7; border-radius: 6px; padding: 0.5em 0.9em; }
.cards b { display: block; font-size: 1.3em; }
img { max-width: 100%; height: auto; } td img { display: block; border-radius: 3px; }
pre { background: #f4f4f7; padding: 0.8em; border-radius: 6px; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 0.6em 0; } summary { cursor: pointer; font-weight: 600; }
"""


def html_page(results: Results, plot: Image.Image, sheet: Image.Image, axes: tuple[Column, Column]) -> str:
    """plot: face against text, with what stands on its axes (text, face); sheet: the systems side by side."""
    protocol = str(results.scores.get("protocol", ""))
    title = f"Evaluation: {protocol}" if protocol else "Evaluation"
    parts = [
        f"<h1>{_text(title)}</h1>",
        "<p>Each system is shown photos of a person, reads a prompt, and draws a picture. Three questions: is it that "
        "person, is it what the prompt says, and does the rest of the picture stay as it would be without the face? "
        f"{_text(PROTOCOLS.get(protocol, ''))}</p>",
        _cards(results),
        "<p>↑ higher is better, ↓ lower is better, → 0 nearer to zero is better. Brackets are 95 % bootstrap "
        "intervals: a figure is the mean of a person's pictures, then of people, and the interval is how far it would "
        "move with other people. <b>Bold</b>: the best, whether or not its interval sets it apart.</p>",
        _others(results),
    ]
    if has_table_1(results):
        parts += ["<h2>As in the paper's Table 1</h2>", *_by_system(results, table_1_columns(results))]
    else:
        parts += ["<h2>In short</h2>", *_by_system(results, short_columns(results))]
    text, face = axes
    parts += [
        "<h2>Face against text</h2>",
        f"<p>Upwards <b>{_text(face.name)}</b>, to the right <b>{_text(text.name)}</b>, so the upper right is best. "
        "Most systems trade some of the one for the other. The lines are the intervals.</p>",
        _image(plot, "PNG", "scatter of face against text", plot.width * 3 // 4),
        "<h2>Side by side</h2>",
        "<p>A row a person: the face that was shown, then what each system drew for the same prompt from the same "
        "noise (seed). The reference shows one of the photos; systems may have seen several.</p>",
        _image(sheet, "JPEG", "pictures of all systems side by side"),
        "<h2>All figures</h2>",
        "<p>The strip under a figure is its interval, on one scale for the whole row.</p>",
        _figures(results),
    ]
    parts += _differences(results)
    parts += _missing(results)
    parts += _people(results, axes)
    parts += _made(results)
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _cards(results: Results) -> str:
    pictures = results.pictures_a_system()
    prompts = {(row["case"], row.get("prompt")) for row in results.rows}
    each = sorted(set(pictures.values()))
    cards = [
        (len(results.drawn), "system" if len(results.drawn) == 1 else "systems"),
        (len(results.people), "people"),
        (len(prompts), "pairs of person and prompt"),
        ("–".join(str(number) for number in (each[:1] + each[1:][-1:])), "pictures a system"),
    ]
    failed = results.cases.get("failed") or {}
    if failed:
        cards.append((len(failed), "people left out, see below"))
    judge = results.scores.get("judge")
    name = judge.get("face") if isinstance(judge, dict) else None
    if isinstance(name, str):
        cards.append((name, "judge of faces"))
    return '<ul class="cards">' + "".join(f"<li><b>{_text(n)}</b>{_text(what)}</li>" for n, what in cards) + "</ul>"


def _others(results: Results) -> str:
    others = [name for name in results.systems if name not in results.drawn]
    return f"<p>Drawn by no system, for comparison: {_text(', '.join(others))}.</p>" if others else ""


def _by_system(results: Results, columns: Sequence[Column]) -> list[str]:
    """A row a system: of the paper's table, with its own rows and the words for its columns, or of some figures."""
    paper = has_table_1(results)
    rows = table_1(results) if paper else figures_of(results, columns)
    winners = winners_of(results, rows, columns)
    lines = [_head(["system", *(column.title for column in columns)])]
    for css, part in (("", rows), (' class="published"', published(results) if paper else [])):
        for name, row in part:
            cells = [_number(row[column.key], column, name in winners[column.key]) for column in columns]
            lines.append(f"<tr{css}><td>{_text(name)}</td>{''.join(cells)}</tr>")
    if not paper:
        return [_table(lines), "<p>What each of these is, and all others, stands under “All figures”.</p>"]
    words = "".join(f"<li><b>{_text(column.name)}</b>: {_text(column.about)}</li>" for column in columns)
    note = (
        "<p>In italics what the paper printed. Photos, prompts, judges and machines here may be others, so compare "
        "orders of magnitude, not decimals.</p>"
    )
    return [_table(lines), note if published(results) else "", f"<ul>{words}</ul>"]


def _figures(results: Results) -> str:
    """A row a figure with its words, a column a system."""
    lines, group = [_head(["", *results.systems])], None
    for column in measured_columns(results):
        if column.group != group:
            group = column.group
            lines.append(f'<tr class="group"><th colspan="{len(results.systems) + 1}">{_text(group)}</th></tr>')
        figures = {name: results.figure(name, column.key) for name in results.systems}
        winners, span = best(figures.items(), column, results.drawn), _span(figures.values())
        about = f"<small>{_text(column.about)}</small>" if column.about else ""
        cells = [_number(figure, column, name in winners, span) for name, figure in figures.items()]
        lines.append(f'<tr><td class="about">{_text(column.title)}{about}</td>{"".join(cells)}</tr>')
    return _table(lines)


def _number(
    figure: Figure | None, column: Column, is_best: bool = False, span: tuple[float, float] | None = None
) -> str:
    if figure is None:
        return '<td class="number missing" title="not measured">–</td>'
    css = "number best" if is_best else "number"
    interval = write_interval(figure, column.form)
    small = f"<small>{interval}</small>" if interval else ""
    strip = _strip(figure, span) if span and interval else ""
    return f'<td class="{css}">{_text(write_number(figure.value, column.form))}{small}{strip}</td>'


def _span(figures: Iterable[Figure | None]) -> tuple[float, float] | None:
    """What the intervals of a row span together; None where there is nothing to compare."""
    ends = [
        end for figure in figures if figure for end in (figure.low, figure.high, figure.value) if math.isfinite(end)
    ]
    return (min(ends), max(ends)) if len(ends) > 3 and max(ends) > min(ends) else None


def _strip(figure: Figure, span: tuple[float, float]) -> str:
    """The interval as a line, the value as a dot, on the scale of the row."""
    width, margin = 110, 5

    def place(value: float) -> str:
        return f"{margin + (width - 2 * margin) * (value - span[0]) / (span[1] - span[0]):.1f}"

    return (
        f'<svg width="{width}" height="10" aria-hidden="true"><path d="M0 5H{width}" stroke="#e6e6ea"/>'
        f'<path d="M{place(figure.low)} 5H{place(figure.high)}" stroke="#0072B2" stroke-width="3" opacity=".45"/>'
        f'<circle cx="{place(figure.value)}" cy="5" r="3.5" fill="#0072B2"/></svg>'
    )


def _differences(results: Results) -> list[str]:
    """A row a figure, a column a pair of systems."""
    drawn = dict(differences(results))
    if not drawn:
        return []
    columns = ordered(column.key for rows in drawn.values() for column, _, _ in rows)
    lines = [_head(["", *drawn])]
    for column in columns:
        cells = []
        for rows in drawn.values():
            found = [(figure, said) for one, figure, said in rows if one == column]
            cells += [_difference(figure, said, column) for figure, said in found] or ['<td class="number">–</td>']
        lines.append(f"<tr><td>{_text(column.title)}</td>{''.join(cells)}</tr>")
    return [
        "<h2>Differences</h2>",
        "<p>The figure of the second system taken from that of the first, person by person: surer than two figures "
        "side by side, because some people are easier than others for every system. Better or worse is said only where "
        "the interval leaves out 0.</p>",
        _table(lines),
    ]


def _difference(figure: Figure, said: str, column: Column) -> str:
    css = said if said in (BETTER, WORSE) else "faint"
    number, interval = write_difference(figure, column), write_interval(figure, column.form)
    said = f'<small class="{css}">{_text(said)}</small>' if said else ""
    return f'<td class="number">{_text(number.removesuffix(interval))}<small>{interval}</small>{said}</td>'


def _missing(results: Results) -> list[str]:
    parts, rows = [], not_measured(results)
    if rows:
        lines = [_head(["figure", "of", "why"], numbers=False), *(_row(row) for row in rows)]
        parts += ["<h2>What was not measured</h2>", "<p>Nothing is guessed: a dash above is one of these.</p>"]
        parts.append(_table(lines))
    failed = results.cases.get("failed") or {}
    notices = [(case, notice) for case in results.people for notice in results.case(case).get("notices") or []]
    left = [*failed.items(), *notices]
    if left:
        parts += ["<h2>Left out</h2>", _table([_head(["person", "why"], numbers=False), *(_row(row) for row in left)])]
    return parts


def _people(results: Results, axes: tuple[Column, Column]) -> list[str]:
    """Face and text of each person, so that a reader finds who succeeds and who fails."""
    text, face = axes
    by_system = {name: [row for row in results.rows if row["system"] == name] for name in results.systems}
    means = {name: (per_person(rows, face.key), per_person(rows, text.key), per_person(rows, "face_found"))
             for name, rows in by_system.items()}  # fmt: skip
    lines = [_head(["", "person", *results.systems])]
    for case in results.people:
        reference = results.reference(case)
        if reference is not None:
            reference.thumbnail((64, 64), Image.Resampling.LANCZOS)
        cells = []
        for faces, texts, found in means.values():
            of_face, of_text = (
                write_number(values[case], column.form) if case in values else "–"
                for values, column in ((faces, face), (texts, text))
            )
            lost = f"<small>face found: {found[case]:.0%}</small>" if found.get(case, 1) < 1 else ""
            cells.append(f'<td class="number">{of_face}<small>{of_text}</small>{lost}</td>')
        image = "" if reference is None else _image(reference, "JPEG", "")
        lines.append(f"<tr><td>{image}</td><td>{_text(case)}</td>{''.join(cells)}</tr>")
    words = f"<p>Above {_text(face.name)}, below it, small, {_text(text.name)}; means of the person's pictures.</p>"
    return ["<h2>Person by person</h2>", f"<details><summary>{len(results.people)} people</summary>{words}"
            f"{_table(lines)}</details>"]  # fmt: skip


def _made(results: Results) -> list[str]:
    scores = results.scores
    parts = [
        "<h2>How it was made</h2>",
        f"<pre>{_text(scores.get('command', 'the command is not told'))}</pre>",
        "<p>The same command goes on where it was stopped and makes again what was deleted. Every picture lies in "
        "<code>pictures/</code> beside this file, its scores in <code>scores.jsonl</code>, all figures in "
        "<code>scores.json</code>, the tables for a text in <code>table.md</code> and <code>table.tex</code>.</p>",
    ]
    for name, entry in results.systems.items():
        rows = [*_flat(entry.get("model"), "model."), *_flat(entry.get("settings"), "")]
        rows += _flat({"seconds in all": entry.get("seconds")}, "")
        parts.append(_listing(name, rows))
    parts.append(_listing("judge", _flat(scores.get("judge"), "")))
    plain = {key: value for key, value in results.cases.items() if not isinstance(value, dict | list)}
    other = {key: value for key, value in scores.items() if not isinstance(value, dict) and key != "command"}
    parts.append(_listing("cases and the rest", _flat(plain, "") + _flat(other, "")))
    return parts


def _flat(value: object, prefix: str) -> list[tuple[str, str]]:
    if not isinstance(value, dict):
        return [] if value is None else [(prefix.rstrip("."), value if isinstance(value, str) else json.dumps(value))]
    rows = []
    for key, inner in value.items():
        if isinstance(inner, dict):
            rows += _flat(inner, f"{prefix}{key}.")
        elif inner is not None:
            rows.append((f"{prefix}{key}", inner if isinstance(inner, str) else json.dumps(inner)))
    return rows


def _listing(title: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    return f"<details><summary>{_text(title)}</summary>{_table([_row(row) for row in rows])}</details>"


def _table(lines: Sequence[str]) -> str:
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _head(names: Sequence[str], numbers: bool = True) -> str:
    css = ["", *([' class="number"' if numbers else ""] * (len(names) - 1))]
    cells = [f"<th{one}>{_text(name)}</th>" for one, name in zip(css, names, strict=True)]
    return f"<thead><tr>{''.join(cells)}</tr></thead>"


def _row(cells: Sequence[object]) -> str:
    return "<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in cells) + "</tr>"


def _image(image: Image.Image, kind: str, alt: str, width: int | None = None) -> str:
    """width: that it is shown with, if not its own."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    uri = f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    width = width or image.width
    height = round(image.height * width / image.width)
    return f'<img width="{width}" height="{height}" style="width: {width}px" alt="{_text(alt)}" src="{uri}">'


def _text(value: object) -> str:
    # Names may hold control characters and lone surrogates, which a page must not.
    visible = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", str(value))
    return html.escape(visible)

"""Markdown pages: jinja2 templates that lie beside the code, and how tables and figures are written in them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template

from feedface.common.files import atomic_file
from feedface.common.pages import environment
from feedface.evaluation.metrics import Figure
from research.results import Check


def template(file: Path) -> Template:
    """A template that can write `table`s and `checks_table`s; a name that it is not given is an error."""
    templates = environment(file.parent)
    templates.globals.update(table=table, checks_table=checks_table)
    return templates.get_template(file.name)


def render_block(page: Template, name: str, values: Mapping[str, Any]) -> str:
    """One `{% block %}` of a template by itself."""
    return "".join(page.blocks[name](page.new_context(dict(values)))).strip()


def write_page(file: Path, text: str) -> None:
    """Write it whole or not at all, with one line break at its end."""
    with atomic_file(file) as temporary:
        temporary.write_text(text.strip() + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = False) -> str:
    """A Markdown table; `numbers`: all columns but the first are aligned to the right."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def columns_table(columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A table of numbers, a row a mapping; `columns`: title -> format, such as "{seconds:.3g}".

    A cell stays empty where the row lacks what its format names, or has None for it.
    """

    def cell(form: str, row: Mapping[str, Any]) -> str:
        try:
            return form.format(**{key: value for key, value in row.items() if value is not None})
        except KeyError:
            return ""

    return table(list(columns), [[cell(form, row) for form in columns.values()] for row in rows], numbers=True)


def percent(figure: Figure) -> str:
    """0.405 -> "40.5 % [33.8, 47.8]"."""
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def decimal(figure: Figure, digits: int = 3) -> str:
    """0.405 -> "0.405 [0.338, 0.478]"."""
    return f"{figure.value:.{digits}f} [{figure.low:.{digits}f}, {figure.high:.{digits}f}]"


def checks_table(checks: Sequence[Check], digits: int = 3) -> str:
    """The sentences of a claim, each with its figure and whether it holds."""
    rows = [[check.sentence, decimal(check.figure, digits), f"**{check.holds}**"] for check in checks]
    return table(["claim", "measured (difference, 95 % interval)", "holds"], rows)

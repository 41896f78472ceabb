"""The report of a run of make_data.py: report.html, complete in one file, and report.png, the same as a picture.

Made from what is in the output folder and from the pictures; the same files give the same bytes.
"""

import base64
import html
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.reading import read_text
from feedface.common.validation import OPEN, parse_line_as, read_json_as
from feedface.preparation.outcome import ERROR, FILTERED, KINDS, MULTI, SINGLE
from feedface.preparation.sheet import KIND_COLOURS, Picture, draw_charts, draw_report, draw_tile

SHOWN = 24  # pictures of each outcome
LISTED = 1000  # lines of each list
MEASURES = {
    "face_px": "face, px",
    "blur": "sharpness",
    "yaw": "yaw, degrees",
    "pitch": "pitch, degrees",
    "roll": "roll, degrees",
    "scores": "detector's score",
}
STYLE = f"""
body {{ font: 15px/1.4 system-ui, sans-serif; color: #141414; margin: 2em auto; max-width: 1560px; padding: 0 1em; }}
table {{ border-collapse: collapse; margin: 0.5em 0 1.5em; }}
td, th {{ padding: 0.15em 1em 0.15em 0; text-align: left; vertical-align: top; overflow-wrap: anywhere; }}
td.number, th.number {{ text-align: right; white-space: nowrap; }}
.charts {{ max-width: 100%; }}
.tiles {{ display: flex; flex-wrap: wrap; gap: 12px; }}
figure {{ margin: 0; width: 362px; }}
figcaption {{ font-size: 12px; overflow-wrap: anywhere; }}
figcaption span {{ color: #6e6e6e; }}
{" ".join(f".{kind} {{ color: {colour}; }}" for kind, colour in KIND_COLOURS.items())}
"""


class _Thresholds(TypedDict, total=False):
    __pydantic_config__ = OPEN
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1e6)] | None] | None


class _Settings(_Thresholds, total=False):
    """settings.json, as far as it is looked at by name."""

    data_folder: str
    last_run: _Thresholds | None


class _Record(TypedDict, total=False):
    """A line of records.jsonl, as far as it is looked at."""

    identity: str | None


_SETTINGS, _RECORD = TypeAdapter(_Settings), TypeAdapter(_Record)


def write_report(out_folder: Path, rows: Iterable[dict], data_folder: Path | None = None) -> None:
    """Write report.html and report.png.

    Args:
        out_folder: of the run; its masks, settings.json and records.jsonl are read, where they are there.
        rows: the content of the pictures' JSON files, see `outcome`; the faces of a picture one after the other.
        data_folder: where the pictures are; None takes settings.json's. Pictures that are gone become grey tiles.
    """
    out_folder = Path(out_folder)
    settings = _settings(out_folder)
    if data_folder is None and "data_folder" in settings:
        data_folder = Path(settings["data_folder"])
    pictures = _pictures(rows)
    limits = (settings.get("last_run") or settings).get("thresholds") or {}
    charts = draw_charts(pictures, limits)
    shown = {}
    for kind in KINDS:
        of_kind = [picture for picture in pictures if picture.kind == kind]
        tiles = [(picture, draw_tile(picture, data_folder, out_folder)) for picture in _spread(of_kind)]
        shown[kind] = len(of_kind), tiles
    with atomic_file(out_folder / "report.png") as temporary:
        draw_report(shown, charts).save(temporary, "PNG", compress_level=6)
    page = _page(pictures, charts, shown, _settings_rows(settings), _people(out_folder))
    with atomic_file(out_folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def _pictures(rows: Iterable[dict]) -> list[Picture]:
    by_path: dict[str, list[dict]] = {}
    for row in rows:
        by_path.setdefault(row["path"], []).append(row)
    return [Picture(by_path[path]) for path in sorted(by_path)]


def _spread(pictures: Sequence[Picture]) -> list[Picture]:
    """At most `SHOWN` of them, evenly from all: neighbours are often of one person or one event."""
    if len(pictures) <= SHOWN:
        return list(pictures)
    return [pictures[int(place)] for place in np.linspace(0, len(pictures) - 1, SHOWN)]


def short_reason(reason: str) -> str:
    """A reason without what differs from picture to picture, so that equal ones can be counted."""
    reason = re.sub(r"^(face|blur|yaw|pitch|roll|score) -?[\d.]+(e[+-]\d+)?( px)?", r"\1 …", reason)
    reason = re.sub(r"^\d+ x \d+( px)?", "its size", reason)
    reason = re.sub(r"^no caption: .*", "no caption", reason)
    return re.sub(r"\s*\(.*\)", "", reason) or "unknown"


def _page(pictures, charts, shown, settings: list[tuple[str, str]], people: str) -> str:
    counts = Counter(picture.kind for picture in pictures)
    total = len(pictures)
    reasons = Counter((picture.kind, short_reason(picture.text)) for picture in pictures if picture.kind != SINGLE)
    faces = [picture.faces[0] for picture in pictures if picture.kind in (SINGLE, FILTERED) and picture.faces]
    parts = [
        f"<h1>{total} pictures</h1>",
        f"<p>{_text(people)}</p>" if people else "",
        _table(
            ["outcome", "#pictures", "#share"],
            [[kind, counts[kind], f"{counts[kind] / total:.1%}" if total else "–"] for kind in KINDS],
        ),
        f'<img class="charts" alt="charts" src="{_data_uri(charts, "PNG")}">',
    ]
    if reasons:
        ordered = sorted(reasons.items(), key=lambda item: (KINDS.index(item[0][0]), -item[1], item[0][1]))
        parts += ["<h2>Reasons</h2>", _table(["outcome", "reason", "#pictures"],
                                             [[kind, reason, count] for (kind, reason), count in ordered])]  # fmt: skip
    if faces:
        parts += [
            "<h2>Single and filtered faces</h2>",
            _table(["", "#measured", "#least", "#5 %", "#median", "#95 %", "#most"], _measured(faces)),
        ]
    for kind, (count, tiles) in shown.items():
        if count:
            note = "" if len(tiles) == count else f", {len(tiles)} of them"
            parts += [f'<h2 class="{kind}">{kind}: {count}{note}</h2>', '<div class="tiles">']
            parts += [_figure(picture, tile) for picture, tile in tiles] + ["</div>"]
    parts.append(
        "<p>Green: the face's box; white: its square; red: landmarks; tinted: classes of the mask. "
        "On the right the square of the largest face.</p>"
    )
    for kind in (ERROR, FILTERED, MULTI):
        parts += _list(kind, [picture for picture in pictures if picture.kind == kind])
    if settings:
        parts += ["<details><summary>Settings</summary>", _table(["", ""], settings), "</details>"]
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{total} pictures</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _measured(faces: Sequence[dict]) -> list[list]:
    rows = []
    for key, name in MEASURES.items():
        values = [face[key] for face in faces if face.get(key) is not None]
        figures = [f"{value:.4g}" for value in np.quantile(values, [0, 0.05, 0.5, 0.95, 1])] if values else ["–"] * 5
        rows.append([name, len(values), *figures])
    return rows


def _figure(picture: Picture, tile: Image.Image) -> str:
    caption = f"{_text(picture.rel)}<br><span>{_text(picture.text)}</span>"
    image = f'<img alt="" width="{tile.width}" height="{tile.height}" src="{_data_uri(tile, "JPEG")}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _list(kind: str, pictures: Sequence[Picture]) -> list[str]:
    if not pictures:
        return []
    rows = [[picture.rel, picture.text] for picture in pictures[:LISTED]]
    if len(pictures) > LISTED:
        rows.append([f"… and {len(pictures) - LISTED} more", f"see the folder {kind}"])
    opened = " open" if kind == ERROR else ""
    summary = f'<summary class="{kind}">{kind}: {len(pictures)}</summary>'
    return [f"<details{opened}>{summary}", _table(["picture", "reason"], rows), "</details>"]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns whose name begins with # hold numbers."""
    classes = [' class="number"' if name.startswith("#") else "" for name in head]
    names = [f"<th{css}>{_text(name.removeprefix('#'))}</th>" for css, name in zip(classes, head, strict=True)]
    lines = ["<table>", f"<tr>{''.join(names)}</tr>" if any(head) else ""]
    for row in rows:
        cells = [f"<td{css}>{_text(cell)}</td>" for css, cell in zip(classes, row, strict=True)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "\n".join(line for line in [*lines, "</table>"] if line)


def _text(value: object) -> str:
    # Names may hold control characters, which a page must not.
    visible = re.sub(r"[\x00-\x1f\x7f\x80-\x9f]", "\ufffd", str(value))
    return html.escape(visible)


def _data_uri(image: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"compress_level": 6}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _settings(out_folder: Path) -> dict:
    try:
        return read_json_as(out_folder / "settings.json", _SETTINGS)
    except UserError:
        return {}


def _settings_rows(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines; no digests, and no folder: that says nothing about the pictures."""
    rows = []
    for name, value in settings.items():
        if isinstance(value, dict) and name != "weights":
            rows += _settings_rows(value, f"{prefix}{name}.")
        elif name not in ("weights", "data_folder") and value is not None:
            rows.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _people(out_folder: Path) -> str:
    """One line about records.jsonl: how many records of how many people."""
    try:
        file = out_folder / "records.jsonl"
        lines = enumerate(read_text(file).split("\n"), start=1)
        records = [parse_line_as(line, _RECORD, f"{file}:{number}") for number, line in lines if line.strip()]
    except UserError:
        return ""
    people = Counter(record["identity"] for record in records if record.get("identity") is not None)
    line = f"{len(records)} records in records.jsonl"
    if people:
        sizes = sorted(people.values())
        line += (
            f", {sum(sizes)} of them of {len(sizes)} people with {sizes[0]} to {sizes[-1]} pictures each "
            f"(median {np.median(sizes):g}); {sum(size > 1 for size in sizes)} people have several"
        )
    return line + "."

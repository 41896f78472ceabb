"""The report of a run of make_data.py: report.html, complete in one file, and report.png, the same as a picture.

Made from what is in the output folder and from the pictures; the same files give the same bytes.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from feedface.common.contact_sheet import GAP_PX, INK, Block, Tile, draw_blocks
from feedface.common.files import atomic_file
from feedface.common.pages import data_uri, environment
from feedface.preparation.charts import draw_charts
from feedface.preparation.result import FILTERED, KINDS, SINGLE
from feedface.preparation.tiles import KIND_COLOURS, TILE_PX, Picture, draw_tile

TEMPLATE = Path(__file__).with_name("report.html.jinja")
SHOWN = 24  # pictures of each outcome
LISTED = 1000  # lines of each list
COLUMNS, CELL_PX, NAME_CHARACTERS = 4, (2 * TILE_PX + 2, TILE_PX), 44
MEASURES = {
    "face_px": "face, px",
    "blur": "sharpness",
    "yaw": "yaw, degrees",
    "pitch": "pitch, degrees",
    "roll": "roll, degrees",
    "scores": "detector's score",
}
# What differs from picture to picture in reasons, and what takes its place, so that equal ones can be counted.
SHORTER = {
    r"^(face|blur|yaw|pitch|roll|score) -?[\d.]+(e[+-]\d+)?( px)?": r"\1 …",
    r"^\d+ x \d+( px)?": "its size",
    r"^no caption: .*": "no caption",
    r"\s*\(.*\)": "",
}


@dataclass(frozen=True)
class Group:
    """The pictures of one outcome: how many, those that are shown (with tile and its address), lines of the list."""

    kind: str
    count: int
    tiles: list[tuple[Picture, Image.Image, str]]
    listed: list[tuple[str, str]]

    @property
    def title(self) -> str:
        note = "" if len(self.tiles) == self.count else f", {len(self.tiles)} of them"
        return f"{self.kind}: {self.count}{note}"


def write_report(
    out_folder: Path, rows: Iterable[dict], data_folder: Path, settings: dict, identities: Sequence[str | None]
) -> None:
    """Write report.html and report.png.

    Args:
        out_folder: of the run; its masks are read, where they are there.
        rows: the content of the pictures' JSON files, see `result`; the faces of a picture one after the other.
        data_folder: where the pictures are. Those that are gone become grey tiles.
        settings: as in settings.json; the thresholds of `last_run` are drawn into the charts.
        identities: who is shown in each record.
    """
    pictures = _pictures(rows)
    charts = draw_charts(pictures, settings.get("last_run", {}).get("thresholds", {}))
    groups = [_group(kind, pictures, data_folder, out_folder) for kind in KINDS]
    with atomic_file(out_folder / "report.png") as temporary:
        _sheet(charts, groups).save(temporary, "PNG", compress_level=6)
    total = len(pictures)
    reasons = Counter((picture.kind, short_reason(picture.text)) for picture in pictures if picture.kind != SINGLE)
    page = (
        environment(TEMPLATE.parent)
        .get_template(TEMPLATE.name)
        .render(
            total=total,
            colours=KIND_COLOURS,
            people=_people(identities),
            outcomes=[(group.kind, group.count, f"{group.count / total:.1%}" if total else "–") for group in groups],
            charts=data_uri(charts, "PNG"),
            reasons=sorted(
                ((*what, count) for what, count in reasons.items()),
                key=lambda row: (KINDS.index(row[0]), -row[2], row[1]),
            ),
            measured=_measured([one.faces[0] for one in pictures if one.kind in (SINGLE, FILTERED) and one.faces]),
            groups=groups,
            settings=_settings_rows(settings),
        )
    )
    with atomic_file(out_folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8", newline="\n")


def _pictures(rows: Iterable[dict]) -> list[Picture]:
    by_path: dict[str, list[dict]] = {}
    for row in rows:
        by_path.setdefault(row["path"], []).append(row)
    return [Picture(by_path[path]) for path in sorted(by_path)]


def _group(kind: str, pictures: Sequence[Picture], data_folder: Path, out_folder: Path) -> Group:
    pictures = [picture for picture in pictures if picture.kind == kind]
    # Evenly from all: neighbours are often of one person or one event.
    places = np.unique(np.linspace(0, len(pictures) - 1, SHOWN).astype(int)) if pictures else []
    tiles = [(pictures[place], draw_tile(pictures[place], data_folder, out_folder)) for place in places]
    listed = [(picture.rel, picture.text) for picture in pictures[:LISTED]] if kind != SINGLE else []
    if len(pictures) > LISTED and listed:
        listed.append((f"… and {len(pictures) - LISTED} more", f"see the folder {kind}"))
    return Group(kind, len(pictures), [(one, tile, data_uri(tile, "JPEG")) for one, tile in tiles], listed)


def _sheet(charts: Image.Image, groups: Sequence[Group]) -> Image.Image:
    """report.png: the charts, and below them the tiles of each outcome."""
    blocks = [Block([], INK, [Tile(charts)], cell_px=charts.size)]
    for group in groups:
        tiles = [Tile(tile, _end(picture.rel), picture.text) for picture, tile, _ in group.tiles]
        if tiles:
            blocks.append(Block([group.title], KIND_COLOURS[group.kind], tiles, COLUMNS, CELL_PX))
    return draw_blocks(blocks, max(charts.width, COLUMNS * (CELL_PX[0] + GAP_PX)))


def _end(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"…{name[1 - NAME_CHARACTERS :]}"


def short_reason(reason: str) -> str:
    """A reason without what differs from picture to picture."""
    for pattern, shorter in SHORTER.items():
        reason = re.sub(pattern, shorter, reason)
    return reason or "unknown"


def _measured(faces: Sequence[dict]) -> list[list]:
    rows = []
    for key, name in MEASURES.items() if faces else ():
        values = [face[key] for face in faces if face.get(key) is not None]
        figures = [f"{value:.4g}" for value in np.quantile(values, [0, 0.05, 0.5, 0.95, 1])] if values else ["–"] * 5
        rows.append([name, len(values), *figures])
    return rows


def _settings_rows(settings: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines; no digests, and no folder: that says nothing about the pictures."""
    rows = []
    for name, value in settings.items():
        if name in ("weights", "data_folder") or value is None:
            continue
        if isinstance(value, dict):
            rows += _settings_rows(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, value if isinstance(value, str) else json.dumps(value)))
    return rows


def _people(identities: Sequence[str | None]) -> str:
    """One line: how many records of how many people."""
    sizes = sorted(Counter(name for name in identities if name is not None).values())
    line = f"{len(identities)} records in records.jsonl"
    if sizes:
        line += (
            f", {sum(sizes)} of them of {len(sizes)} people with {sizes[0]} to {sizes[-1]} pictures each "
            f"(median {np.median(sizes):g}); {sum(size > 1 for size in sizes)} people have several"
        )
    return line + "."

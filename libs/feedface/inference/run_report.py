"""What is told of a run when it has ended: its contact sheet, and some lines for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from feedface.common.contact_sheet import MAX_SAMPLES, Tile, contact_sheet
from feedface.common.images import read_image
from feedface.common.progress import say

if TYPE_CHECKING:
    from feedface.faces.references import Reference


def run_sheet(references: Sequence[Reference], rows: Sequence[dict], folder: Path) -> Image.Image:
    """The contact sheet: the faces, and the pictures of each prompt."""
    by_prompt: dict[str, list[Tile]] = {}
    for row in rows[:MAX_SAMPLES]:
        label = f"{Path(row['file']).stem}, seed {row['seed']}"
        if row["similarity"] is not None:
            label += f", sim. {row['similarity']:.2f}"
        by_prompt.setdefault(row["prompt"], []).append(Tile(Image.fromarray(read_image(folder / row["file"])), label))
    faces = [Tile(Image.fromarray(reference.crop), Path(reference.name).name) for reference in references]
    return contact_sheet(faces, list(by_prompt.items()), total=len(rows))


def most_alike(rows: Sequence[dict], number: int) -> list[dict]:
    """Of each prompt's pictures so many, those most like the person first; equal ones as they were drawn.

    Pictures without a likeness are none of them: no face is seen in them, nobody was given, or nobody can compare.
    """
    by_prompt: dict[str, list[dict]] = {}
    for row in rows:
        of_prompt = by_prompt.setdefault(row["prompt"], [])
        of_prompt += [row] if row["similarity"] is not None else []
    ranked = (sorted(of_prompt, key=lambda row: -row["similarity"]) for of_prompt in by_prompt.values())
    return [row for of_prompt in ranked for row in of_prompt[:number]]


def report(results: dict, folder: Path, kept: tuple[Path, Path]) -> None:
    """Say what was made, and how alike it is."""
    rows = results["pictures"]
    made = sum(row["made_now"] for row in rows)
    say(f"{len(rows)} picture(s) in {folder}: {made} made now, {len(rows) - made} were finished before")
    say(f"contact sheet: {kept[1]}; settings and figures: {kept[0]}")
    summary = results["similarity"]
    if summary["mean"] is None:
        say(f"face similarity: not measured ({summary['reason']})")
    else:
        each = ", ".join("no face" if row["similarity"] is None else f"{row['similarity']:.2f}" for row in rows[:20])
        more = ", …" if len(rows) > 20 else ""
        say(
            f"face similarity to the references (cosine, recogniser of {summary['measured_with']!r}; 1 is the same "
            f"face): mean {summary['mean']:.2f} ({each}{more})"
        )
    if results["best"]:
        say(f"most alike: {', '.join(results['best'])}")

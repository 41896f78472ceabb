"""What an evaluation looks like to people: Markdown tables and contact sheets."""

import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

ZOOM = 3
GAP_PX, FONT_PX, LINE_PX = 10, 13, 16
COLUMNS = {
    "nearest_identity": "nearest identity",
    "similarity_to_another_picture": "similarity to another picture",
    "similarity_to_reference": "to the reference",
    "similarity_to_strangers": "to strangers",
    "attribute_all": "prompt attributes shown",
}
SHARES = ("nearest_identity", "attribute_")  # figures by the start of their name that are shares, shown in percent


def markdown(scores: dict) -> str:
    """The tables of what `scores.json` holds; square brackets are 95 % intervals over people."""
    cases, settings = scores["cases"], scores["settings"]
    lines = [
        f"{cases['identities']} people never trained on, {cases['samples_per_identity']} prompts each; "
        f"chance {cases['chance']:.1%}; brackets: 95 % bootstrap intervals over people. "
        f"Model {scores['model']['name']} ({scores['model']['digest']}), {settings['steps']} steps, "
        f"guidance {settings['guidance']:g}, face scale {settings['face_scale']:g}, seed {settings['seed']}; "
        f"{scores['seconds']['in all']:.0f} s on {settings['device']}.",
        "",
        *_table(scores["rows"], COLUMNS),
        "",
    ]
    relative = scores["attributes_relative_to_no_face"]
    if relative:
        found = "; ".join(f"{count}: {_show('attribute_', figure)}" for count, figure in relative.items())
        lines += [f"Prompt attributes shown, relative to no face, by number of references: {found}.", ""]
    names = {name for row in scores["rows"].values() for name in row if name.startswith("attribute_")}
    single = {name: name.removeprefix("attribute_").replace("_", " ") for name in sorted(names - {"attribute_all"})}
    lines += ["Share of pictures that show what the prompt names:", "", *_table(scores["rows"], single), ""]
    return "\n".join(lines) + f"\nCommand: `{scores['command']}`\n"


def _table(rows: dict[str, dict], columns: dict[str, str]) -> list[str]:
    lines = [f"| pictures | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for label, row in rows.items():
        cells = [_show(name, row[name]) if name in row else "–" for name in columns]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return lines


def _show(name: str, figure: dict[str, float]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if name.startswith(SHARES):
        return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def people_sheet(references: np.ndarray, samples: np.ndarray, prompts: list[list[str]]) -> Image.Image:
    """A row a person: a reference on the left, then samples with their prompts under them.

    references: uint8 [I, H, W, 3]; samples: uint8 [I, S, H, W, 3]; prompts: [I][S]. Pictures are enlarged three times.
    """
    font = ImageFont.load_default(FONT_PX)
    side = ZOOM * references.shape[1]
    letters = int(side / font.getlength("n" * 20) * 20)
    labels = [["reference", *row] for row in prompts]
    wrapped = [[textwrap.wrap(label, letters) for label in row] for row in labels]
    row_px = side + LINE_PX * max(len(lines) for row in wrapped for lines in row) + GAP_PX
    columns = samples.shape[1] + 1
    sheet = Image.new("RGB", (columns * (side + GAP_PX) + GAP_PX, len(samples) * row_px + GAP_PX), "white")
    pen = ImageDraw.Draw(sheet)
    for person, row in enumerate(wrapped):
        for column, lines in enumerate(row):
            picture = references[person] if column == 0 else samples[person, column - 1]
            left, top = GAP_PX + column * (side + GAP_PX), GAP_PX + person * row_px
            sheet.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS), (left, top))
            for number, line in enumerate(lines):
                pen.text((left, top + side + number * LINE_PX), line, "black", font)
    return sheet

"""People by name, as the command line or a job speaks of them, before anything is loaded.

`--person anna=a.png,b.png --person ben=ben.person --prompt "anna and ben in a forest" --region anna=0,0,0.5,1`

A name in the prompt stands for "a person", or for the word behind a colon: `--person anna:woman=a.png`. Regions are
boxes in parts of the picture, or masks (white is the person's). Where they are not given a picture without anybody's
face is drawn first, and its faces are given to the people from left to right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feedface.common.errors import UserError

SUFFIX = ".person"  # of a person's file
Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as parts of the picture, 0 … 1


@dataclass(frozen=True)
class Somebody:
    """What is said of one person: pictures or a person's file, and perhaps where in the picture they are."""

    name: str
    images: tuple[Path, ...] = ()
    file: Path | None = None
    word: str = "person"
    region: Box | Path | None = None


def parse_people(people: Sequence[str], regions: Sequence[str]) -> tuple[Somebody, ...]:
    """The people of `--person NAME[:WORD]=FILE[,…]` and `--region NAME=X0,Y0,X1,Y1|MASK`; `UserError` for others."""
    found: dict[str, Somebody] = {}
    where = dict(_region(text) for text in regions)
    for text in people:
        who, _, sources = text.partition("=")
        name, _, word = who.partition(":")
        files = tuple(Path(part) for part in sources.split(",") if part)
        if not re.fullmatch(r"\w+", name) or not files:
            raise UserError(f"--person {text}: give NAME=FILE or NAME=FILE,FILE with a name of letters and digits")
        if name in found:
            raise UserError(f"--person {name}: is given twice; name all pictures at once: {name}=a.png,b.png")
        found[name] = somebody(name, files, word or "person", where.pop(name, None), f"--person {name}")
    if where:
        raise UserError(f"--region {next(iter(where))}: nobody has this name; --person gives names")
    return tuple(found.values())


def somebody(
    name: str, files: Sequence[Path], word: str = "person", region: Box | Path | None = None, source: str = ""
) -> Somebody:
    """Of pictures, or of one person's file; `UserError`, after `source`, for missing files and both at once."""
    for path in [*files, *([region] if isinstance(region, Path) else [])]:
        if not path.is_file():
            raise UserError(f"{source}: no such file: {path}")
    if any(path.suffix == SUFFIX for path in files):
        if len(files) > 1:
            raise UserError(f"{source}: one person's file, or pictures")
        return Somebody(name, (), files[0], word, region)
    return Somebody(name, tuple(files), None, word, region)


def _region(text: str) -> tuple[str, Box | Path]:
    name, _, value = text.partition("=")
    try:
        box = tuple(map(float, value.split(",")))
    except ValueError:
        return name, Path(value)
    return name, check_box(box, f"--region {name}")


def check_box(box: Sequence[float], source: str) -> Box:
    """x0, y0, x1, y1 within 0 … 1; `UserError` for others."""
    if len(box) != 4 or not 0 <= box[0] < box[2] <= 1 or not 0 <= box[1] < box[3] <= 1:
        raise UserError(f"{source}: give x0,y0,x1,y1 in parts of the picture, such as 0,0,0.5,1 for its left half")
    return tuple(map(float, box))


def described(prompt: str, people: Sequence[Somebody]) -> str:
    """The prompt as the model reads it: the word for each name, with an article."""
    for who in people:
        article = "an" if who.word[0].lower() in "aeiou" else "a"
        prompt = re.sub(rf"\b{re.escape(who.name)}\b", f"{article} {who.word}", prompt)
    return prompt


def check_named(prompt: str, people: Sequence[Somebody]) -> None:
    """`UserError` where several people are to be shown and the prompt leaves one out."""
    missing = [who.name for who in people if not re.search(rf"\b{re.escape(who.name)}\b", prompt)]
    if len(people) > 1 and missing:
        raise UserError(f"--person {missing[0]}: the prompt does not say the name; write where {missing[0]} is in it")

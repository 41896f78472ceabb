"""What the page says: its texts, and how errors, notes and progress become sentences."""

from __future__ import annotations

import html
import math
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from feedface import __version__
from feedface.common.errors import UserError, one_line

CONSENT = (
    "Put people into pictures only if they agree. A picture that this page draws is not a photograph; each file says "
    "so in its metadata."
)
ABOUT = f"""
**What this is.** FeedFace {__version__} draws new pictures of a person from one to five photos of their face and a
sentence. Nothing is trained per person.

**What stays here.** Everything is computed on the machine that runs this page. Nothing is sent anywhere: no analytics,
no fonts or scripts from elsewhere. A photo is deleted once its faces are cut out; those and your pictures are kept
until you close or reload this page, then they are deleted too. A picture to begin with goes after 70 minutes at most.

**Fair use.** {CONSENT} Do not use it to deceive, to harass, or to show anybody in a way that they would refuse.
"""
TITLE = "# FeedFace\nPictures of people you know, as a sentence describes them."
EMPTY = "Your pictures appear here."
PEOPLE = (
    "For one person nothing of this is needed. For several, give each a name, and say the names in the prompt: "
    "*anna and ben on a beach*. A wide picture leaves each of them room."
)
BEGIN = "Brush over what is to be drawn anew; without a stroke all of it is. The rest stays as it is."
BATCH = (
    'Upload job files (`{"id": …, "caption_list": […], "source_group": [{"path": …}]}`) with the photos that they '
    "name. Each job is one person, or several, with several prompts."
)


def bar(done: int, total: int, text: str) -> str:
    """How far it is."""
    shown = f'<progress max="{total}" value="{done}" aria-label="progress"></progress>' if total else ""
    return f'<div class="bar" role="status">{shown}<span>{html.escape(text)}</span></div>'


def messages(problem: str, notices: Sequence[str] = ()) -> str:
    """A problem and notes, as boxes."""
    boxes = [f'<div class="message problem" role="alert">{html.escape(problem)}</div>'] if problem else []
    boxes += [f'<div class="message note" role="status">{html.escape(sentence(notice))}</div>' for notice in notices]
    return "".join(boxes)


def said(error: Exception, folder: Path | None = None) -> str:
    """An error as a sentence, without paths of `folder`; one of ours that should not be goes to the terminal."""
    if isinstance(error, UserError):
        text = one_line(error)
        return sentence(text if folder is None else re.sub(rf"{re.escape(str(folder))}/(?:\w+/)*", "", text))
    traceback.print_exception(error, file=sys.stderr)
    return f"This did not work, through a fault in the program ({type(error).__name__}). Its terminal says more."


def sentence(text: str) -> str:
    """A message that was written for the command line, for people who see fields."""
    text = re.sub(r"--([a-z_]+)", lambda match: match[1].replace("_", " "), text)
    if "." not in text.partition(" ")[0]:  # no file's name
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?", "…")) else f"{text}."


def numbers(text: str) -> list[float]:
    """ "0, 0.5; 1" -> [0, 0.5, 1]; `UserError` for anything else."""
    try:
        return [float(part) for part in re.split(r"[,;\s]+", text.strip()) if part]
    except ValueError:
        raise UserError(f"Strengths {text!r}: write numbers with commas between them, such as 0, 0.5, 1") from None


def one_number(text: str, name: str) -> float | None:
    """ "4.5" -> 4.5, "" -> None; `UserError`, with the field's name, for anything else."""
    try:
        return float(text) if text.strip() else None
    except ValueError:
        raise UserError(f"{name} {text!r}: write a number, or leave the field empty") from None


def whole(value: float | None, name: str) -> int:
    if value is None or not math.isfinite(value) or value != int(value):
        raise UserError(f"{name}: write a whole number")
    return int(value)


def size_choices(side: int, multiple: int) -> list[str]:
    """A square, an upright and a wide picture of about the model's size."""
    long = max(multiple, round(side * 1.25 / multiple) * multiple)
    return [f"{side}x{side}"] + ([f"{side}x{long}", f"{long}x{side}"] if long != side else [])


def fitting_size(side: int, multiple: int, picture: tuple[int, int]) -> str:
    """The shape of a picture of (width, height) at about the model's size, no longer than twice as long as high."""
    shape = min(max(picture[0] / picture[1], 0.5), 2.0) ** 0.5
    width, height = (max(1, round(side * factor / multiple)) * multiple for factor in (shape, 1 / shape))
    return f"{width}x{height}"

"""Words of a prompt that count more or less, as users of web UIs write it: "a woman in a (red:1.4) (hat:0.6)"."""

import re
from typing import NamedTuple

MAX_WEIGHT = 4.0
_WEIGHTED = re.compile(r"\(([^():]+):\s*(\d{1,3}(?:\.\d{0,4})?)\s*\)")


class Span(NamedTuple):
    """Letters start … end of the plain prompt, and how much they count."""

    start: int
    end: int
    weight: float


def plain_prompt(prompt: str) -> tuple[str, list[Span]]:
    """A prompt without its weights, and these. Brackets without a number from 0 to `MAX_WEIGHT` stay as they are."""
    plain, spans, done = "", [], 0
    for match in _WEIGHTED.finditer(prompt):
        weight = float(match[2])
        if weight > MAX_WEIGHT:
            continue
        plain += prompt[done : match.start()]
        spans.append(Span(len(plain), len(plain) + len(match[1]), weight))
        plain, done = plain + match[1], match.end()
    return plain + prompt[done:], [span for span in spans if span.weight != 1]

"""Words of a prompt that count more or less, as users of web UIs write it: "a woman in a (red:1.4) (hat:0.6)"."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

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


def token_weights(places: Sequence[tuple[int, int]], spans: Sequence[Span]) -> list[float]:
    """The weight of each token, whose letters are start … end of the plain prompt."""
    weights = [1.0] * len(places)
    for span in spans:
        for token, (start, end) in enumerate(places):
            if start < span.end and end > span.start:
                weights[token] = span.weight
    return weights


def weighted(states: Tensor, weights: Tensor) -> Tensor:
    """Hidden states [B,T,D] times the weights [B,T] of their tokens, each row with the length that it had.

    Web UIs keep a row's mean instead; after a text encoder's last norm that may be as good as 0, and a quotient of two
    such means anything.
    """
    changed = states * weights[..., None].to(states)
    length, before = (torch.linalg.vector_norm(rows.float(), dim=(1, 2), keepdim=True) for rows in (changed, states))
    plain = (weights == 1).all(1)[:, None, None].to(states.device)
    return torch.where(plain, states, changed * (before / length.clamp(min=1e-12)).to(states))

"""Exponential moving average of the trained weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Keeps float32 averages of `parameters`; the horizon grows with the step, so that a start is soon forgotten."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        self.parameters, self.decay = list(parameters), decay
        self.averages = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After an optimizer step. `step` counts them: from 1, or from 0, where what was before the first is forgotten."""
        rate = 1 - min(self.decay, (1 + step) / (10 + step)) if step else 1.0
        torch._foreach_lerp_(self.averages, [p.detach() for p in self.parameters], rate)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averages stand in for the parameters, inside the `with`."""
        trained = [p.detach().clone() for p in self.parameters]
        self._fill(self.averages)
        try:
            yield
        finally:
            self._fill(trained)

    def take_over(self) -> None:
        """The averages become the parameters."""
        self._fill(self.averages)

    @torch.no_grad()
    def _fill(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

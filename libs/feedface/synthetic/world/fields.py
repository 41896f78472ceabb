"""Named random fields: how an identity or a scene becomes a row of numbers that depends on its own seed alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Field:
    """A continuous quantity, uniform in [low, high]; or, with `weights`, a choice among len(weights) classes."""

    name: str
    low: float = 0.0
    high: float = 1.0
    weights: tuple[float, ...] = ()

    @property
    def width(self) -> int:
        """Numbers this field takes in a vector: one, or a one-hot row."""
        return len(self.weights) or 1

    def draw(self, uniform: Tensor) -> Tensor:
        """[N] uniform numbers in [0, 1) -> [N] values: float32, or int64 class indices."""
        if not self.weights:
            return self.low + (self.high - self.low) * uniform
        edges = torch.tensor(np.cumsum(self.weights) / np.sum(self.weights), dtype=uniform.dtype)[:-1]
        return torch.bucketize(uniform.contiguous(), edges, right=True)

    def encode(self, value: Tensor) -> Tensor:
        """[N] values -> [N, width]: scaled to [-1, 1], or one-hot."""
        if self.weights:
            return torch.nn.functional.one_hot(value, self.width).float()
        return ((value - self.low) / (self.high - self.low) * 2 - 1)[:, None]


class FieldValues:
    """Values of a list of fields for N rows; `values.name` is the [N] tensor of that field."""

    def __init__(self, fields: Sequence[Field], values: dict[str, Tensor]):
        self.fields = tuple(fields)
        self.values = values

    def __getattr__(self, name: str) -> Tensor:
        try:
            return self.__dict__["values"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def __getitem__(self, rows) -> "FieldValues":
        return type(self)(self.fields, {name: value[rows] for name, value in self.values.items()})

    def vector(self) -> Tensor:
        """[N, V] float32: every field scaled to [-1, 1] or one-hot, in the order of `fields`."""
        return torch.cat([field.encode(self.values[field.name]) for field in self.fields], dim=1)


def seeded_uniforms(keys: Iterator[tuple[int, ...]], count: int) -> Tensor:
    """[N, count] float32 in [0, 1): row i depends on keys[i] alone, never on the batch it is drawn in."""
    rows = [
        np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(count, np.float32) for key in keys
    ]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, count)


def draw_fields(fields: Sequence[Field], uniforms: Tensor) -> FieldValues:
    """[N, len(fields)] uniform numbers -> the values of every field."""
    return FieldValues(fields, {field.name: field.draw(uniforms[:, i]) for i, field in enumerate(fields)})

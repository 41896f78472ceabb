"""`State`: what a solver integrates, tensors by name, and the little algebra that rows of a batch need.

{"img": [B,C,h,w]}; the U-ViT adds {"clip_img": [B,1,D]}. Prompts, features of faces and identities are dicts of rows
too: the functions here take them all.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]


def length(batch: Mapping[str, Tensor]) -> int:
    """How many rows it has."""
    return len(next(iter(batch.values())))


def take(batch: Mapping[str, Tensor], rows: slice) -> dict[str, Tensor]:
    """Some of its rows."""
    return {name: value[rows] for name, value in batch.items()}


def join(*batches: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The rows of all, in order. All have the first one's names, and get its dtypes."""
    return {name: torch.cat([batch[name].to(value.dtype) for batch in batches]) for name, value in batches[0].items()}


def expand(batch: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """`count` rows, out of so many or out of one that serves them all."""
    return {name: value.expand(count, *value.shape[1:]) for name, value in batch.items()}


def pack(state: State) -> Tensor:
    """One vector [B,J] for a solver: each tensor flattened, in the order of the dict."""
    return torch.cat([value.flatten(1) for value in state.values()], dim=1)


def unpack(vector: Tensor, shapes: Mapping[str, Sequence[int]]) -> State:
    """The reverse of `pack`; `shapes` are those of one row, by name."""
    parts = vector.split([math.prod(shape) for shape in shapes.values()], dim=1)
    return {name: part.unflatten(1, tuple(shape)) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

"""Attention that is shared: tokens of references, kept from one pass, are read beside a picture's own in another.

Shapes: B rows, F references of one row, L tokens of one, N of the picture, D width of a site.
Source: IntellectGen's FlashFace.
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from feedface.backbones.control import Control, Operator
from feedface.backbones.site import Site


class Writer(Control):
    """Keeps what goes into the self-attentions of its sites, image tokens alone: `tokens` [B,L,D] by site."""

    def __init__(self, sites: Iterable[str]):
        self.sites = frozenset(sites)
        self.tokens: dict[str, Tensor] = {}

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        self.tokens[site.name] = x[:, site.start :]
        return op(x, context)


class ReferenceControl(Control):
    """Image tokens y attend to themselves and to references R: s·A(y,[y;R]) + (1−s)·A(y,y). Made by `FlashFace.bind`.

    Args:
        sites: keys and values [B,F·L,D] of the references, by site; B may be 1 for all rows.
        weights: [B,F] of the references: by how much each counts in the attention, 0 is not at all. A row without a
            reference comes out as without a control, to the bit.
        scale: s; from 1 on, R and y are one context.
    """

    def __init__(
        self, sites: Mapping[str, tuple[Tensor, Tensor]], weights: Tensor, scale: float, rows: slice | None = None
    ):
        self.sites, self.weights, self.scale, self.rows = sites, weights, min(scale, 1.0), rows
        self._plain_rows = not bool((weights > 0).any(dim=1).all())
        self._weighted = bool((weights != 1).any())

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        plain = op(x, context) if self.scale < 1 or self._plain_rows or site.start else None
        ours = [value.expand(len(x), -1, -1) for value in self.sites[site.name]]
        key, value = (torch.cat(pair, dim=1) for pair in zip(op.key_value(x), ours, strict=True))
        mask = log_weights(self.weights, x, ours[0].shape[1]) if self._weighted else None
        out = op.attend(op.query(x[:, site.start :]), key, value, mask)
        if plain is None:
            return out
        before = plain[:, site.start :]
        if self.scale < 1:
            out = self.scale * out + (1 - self.scale) * before
        if self._plain_rows:
            out = torch.where((self.weights > 0).any(dim=1)[:, None, None], out, before)
        return torch.cat([plain[:, : site.start], out], dim=1) if site.start else out

    def first(self, count: int) -> "ReferenceControl":
        sites = {name: (key[:count], value[:count]) for name, (key, value) in self.sites.items()}
        return ReferenceControl(sites, self.weights[:count], self.scale)


def log_weights(weights: Tensor, x: Tensor, count: int) -> Tensor:
    """What to add to the scores so that a token of weight w counts as w tokens do: [B,1,1,N+F·L].

    `weights` [B,F] are the references', `x` [B,N,D] the picture's tokens, `count` = F·L.
    """
    references = weights.log().repeat_interleave(count // weights.shape[1], dim=1)
    own = references.new_zeros(len(references), x.shape[1])
    return torch.cat([own, references], dim=1)[:, None, None].to(x.dtype)

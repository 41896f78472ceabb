"""Controls: how a method acts on a backbone at its sites. They compose: several at once, or each in its own region.

A control is passed to `Backbone.forward` with each call; nothing of it stays in the backbone, so threads do not meet.
Shapes: B batch, L tokens, D width, h w latent.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.backbones.site import Site
from feedface.diffusion.state import State, take

Rows = slice | None  # of a batch; None is all


class Operator(Protocol):
    """An attention's own parts, for a control that stands in for it. Queries, keys, values are [B,L,D], heads joined.

    Called as `op(x, context)`, it is the attention as it was. `attention` is its module, with the weights.
    """

    attention: nn.Module

    def query(self, x: Tensor) -> Tensor: ...

    def key_value(self, context: Tensor) -> tuple[Tensor, Tensor]: ...

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention and output projection -> [B,L,D]. `mask` as `scaled_dot_product_attention` takes it."""

    def __call__(self, x: Tensor, context: Tensor) -> Tensor: ...


class Control:
    """What a method's `bind` makes. Hooks are called for its `sites` only, with its `rows` of the batch only.

    Attributes:
        sites: names of the sites where it acts.
        rows: the rows of the batch that it acts on; others come out as without it, to the bit.
    """

    sites: Collection[str] = ()
    rows: Rows = None

    def block(self, site: Site, x: Tensor, out: Tensor) -> Tensor | None:
        """What to add to a block's output `out` [B,L,D], where it got `x`: image tokens only."""
        raise NotImplementedError

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        """Instead of `op(x, context)`, [B,L,D]. In a self-attention `context` is `x`."""
        raise NotImplementedError

    def residuals(self, state: State, t: Tensor) -> dict[str, Tensor]:
        """What to add at its sites of kind "residual", by their names."""
        return {}

    def first(self, count: int) -> "Control":
        """The same for a batch of the first `count` rows alone, all of which it acts on."""
        raise NotImplementedError


# ------------------------------------------------------------------------------------------------- what backbones call


def acts(control: Control | None, name: str) -> bool:
    """Whether there is something to do at the site of that name."""
    return control is not None and name in control.sites


def controlled_block(control: Control, site: Site, x: Tensor, out: Tensor) -> Tensor:
    """A block's output `out` with what `control` adds to it."""
    rows = control.rows or slice(None)
    start = slice(site.start, None)
    change = control.block(site, x[rows, start], out[rows, start])
    if change is None:
        return out
    if torch.is_grad_enabled():
        out = out.clone()  # the control's backward pass still needs the tokens it read
    out[rows, start] += change
    return out


def controlled_attention(control: Control, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
    """What stands for `op(x, context)`."""
    if control.rows is None:
        return control.attention(site, op, x, context)
    out = op(x, context).clone()  # of all rows, so that the others' are as without a control, to the bit
    out[control.rows] = control.attention(site, op, x[control.rows], context[control.rows])
    return out


def controlled_residuals(control: Control | None, state: State, t: Tensor) -> dict[str, Tensor]:
    """What `control` adds to feature maps, for all rows of the batch; empty where it adds nothing."""
    if control is None:
        return {}
    if control.rows is None:
        return control.residuals(state, t)
    added = control.residuals(take(state, control.rows), t[control.rows])
    return {name: _spread(value, control.rows, len(t)) for name, value in added.items()}


def _spread(value: Tensor, rows: slice, count: int) -> Tensor:
    """`value` in these rows of a batch of `count`, zeros elsewhere."""
    if rows == slice(None):
        return value
    whole = value.new_zeros(count, *value.shape[1:])
    whole[rows] = value
    return whole


# ---------------------------------------------------------------------------------------------------------- composition


class Controls(Control):
    """Several at once: all see the same tokens, and what they add is summed. Only one may replace an attention."""

    def __init__(self, parts: Sequence[Control | None]):
        self.parts = [part for part in parts if part is not None]
        self.sites = frozenset().union(*(part.sites for part in self.parts))
        all_rows = [part.rows for part in self.parts]
        self.rows = all_rows[0] if all_rows and all(rows == all_rows[0] for rows in all_rows) else None

    def first(self, count: int) -> "Controls":
        return Controls([part.first(count) for part in self.parts])

    def block(self, site: Site, x: Tensor, out: Tensor) -> Tensor | None:
        total = None
        for index, part in self._at(site):
            rows = self._rows(part)
            change = part.block(site, x[rows], out[rows])
            if change is not None:
                change = _spread(self._weighted(index, change, site), rows, len(x))
                total = change if total is None else total + change
        return total

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        acting = self._at(site)
        if len(acting) > 1:
            raise ValueError(f"{len(acting)} controls would replace the attention {site.name}; one can")
        [(_, part)] = acting
        if part.rows == self.rows:
            return part.attention(site, op, x, context)
        return controlled_attention(part, site, op, x, context)

    def residuals(self, state: State, t: Tensor) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for index, part in enumerate(self.parts):
            rows = self._rows(part)
            for name, value in part.residuals(take(state, rows), t[rows]).items():
                value = _spread(self._weighted(index, value), rows, len(t))
                total[name] = total[name] + value if name in total else value
        return total

    def _at(self, site: Site) -> list[tuple[int, Control]]:
        """Those that act at a site, with their numbers."""
        return [(index, part) for index, part in enumerate(self.parts) if site.name in part.sites]

    def _rows(self, part: Control) -> slice:
        """A part's rows, of those that this control is given."""
        return slice(None) if part.rows == self.rows else part.rows

    def _weighted(self, index: int, change: Tensor, site: Site | None = None) -> Tensor:
        """A part's change at a site, or of a feature map [B,C,h,w]."""
        return change


class Regions(Controls):
    """Each control in its own region of the picture: several people in one.

    Args:
        parts: (control, mask): [h,w] at latent resolution, 0 … 1, or [B,h,w] for rows that differ. Where masks overlap,
            each gets its part. All controls have the same `rows`.

    In an attention, tokens that are no image tokens come out as without a control.
    """

    def __init__(self, parts: Sequence[tuple[Control | None, Tensor]]):
        parts = [(control, mask) for control, mask in parts if control is not None]
        super().__init__([control for control, _ in parts])
        if any(part.rows != self.rows for part in self.parts):
            raise ValueError("controls of regions must act on the same rows")
        masks = torch.stack([mask.float() for _, mask in parts])  # [parts, (B,) h, w]
        self.masks = masks / masks.sum(dim=0).clamp(min=1)

    def first(self, count: int) -> "Regions":
        masks = self.masks if self.masks.dim() == 3 else self.masks[:, :count]
        return Regions([(part.first(count), mask) for part, mask in zip(self.parts, masks, strict=True)])

    def _mask(self, index: int, grid: Sequence[int]) -> Tensor:
        """[1,h,w] or [B,h,w] at the resolution of a grid."""
        mask = self.masks[index]
        return F.interpolate(mask.reshape(1, -1, *mask.shape[-2:]), tuple(grid), mode="area")[0]

    def _weighted(self, index: int, change: Tensor, site: Site | None = None) -> Tensor:
        if site is None:
            return change * self._mask(index, change.shape[-2:]).to(change)[:, None]
        mask = self._mask(index, site.grid(self.masks.shape[-2:]))
        return change * mask.flatten(1).to(change)[..., None]

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        plain = op(x, context)
        out = plain.clone()
        start = slice(site.start, None)
        for index, part in self._at(site):
            change = (part.attention(site, op, x, context) - plain)[:, start]
            out[:, start] += self._weighted(index, change, site)
        return out

"""Where in a backbone a control may act."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Site:
    """Where a control may act.

    Attributes:
        name: unique in its backbone, stable: model folders hold it.
        kind: "block": behind a transformer block; "self_attention", "cross_attention": in the place of one;
            "residual": on a feature map [B,C,h,w] that is passed on.
        width: D of the tokens, or channels.
        cells: a token or pixel stands for cells × cells latent cells.
        heads: of the attention, or of the block's.
        context_width: of a cross-attention's keys and values.
        start: index of the first image token among the site's own; of a block, controls are shown image tokens only.
    """

    name: str
    kind: Literal["block", "self_attention", "cross_attention", "residual"]
    width: int
    cells: int
    heads: int = 1
    context_width: int | None = None
    start: int = 0

    def grid(self, latent_size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of its image tokens for a latent of (h, w)."""
        return math.ceil(latent_size[0] / self.cells), math.ceil(latent_size[1] / self.cells)

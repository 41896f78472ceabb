"""Perturbed attention: a prediction whose image tokens do not see each other, for guidance to lead away from.

Ahn et al. 2024, "Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance", section 4: in some
self-attentions the map softmax(QKᵀ) of a picture is replaced by the identity, so that structure is lost and appearance
kept. Tokens that are no image tokens, which the paper's U-Net has not there, are seen as ever.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from feedface.backbones.control import Control, Operator
from feedface.backbones.site import Site


class PerturbedAttention(Control):
    """Self-attentions, `sites` of that kind, in which image tokens do not see each other."""

    def __init__(self, sites: Iterable[str]):
        self.sites = frozenset(sites)

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        sees = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
        sees[: site.start] = True
        sees[:, : site.start] = True
        return op.attend(op.query(x), *op.key_value(x), sees)

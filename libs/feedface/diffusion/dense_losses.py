"""What dense heads' logits say, and how wrong it is: see `dense_heads`.

Shapes: B batch, g side of maps, K landmarks, A attributes.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD_CELLS = 1.0  # of the heat that a landmark is learned as


def annotated(logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the logits say: classes uint8 [B,g,g], depth [B,1,g,g] in 0…1, landmarks [B,K,2] and attributes in 0…1."""
    found: dict[str, Tensor] = {}
    if "parsing" in logits:
        found["parsing"] = logits["parsing"].argmax(dim=1).to(torch.uint8)
    if "depth" in logits:
        found["depth"] = logits["depth"].sigmoid()
    if "landmarks" in logits:
        heat = logits["landmarks"]
        share = heat.flatten(2).softmax(dim=-1)
        found["landmarks"] = share @ cell_centres(*heat.shape[-2:]).to(share)
    if "attributes" in logits:
        found["attributes"] = logits["attributes"].sigmoid()
    return found


def cell_centres(rows: int, columns: int) -> Tensor:
    """x and y of the cells of a map, in shares of its sides: [rows·columns,2]."""
    y, x = torch.meshgrid((torch.arange(rows) + 0.5) / rows, (torch.arange(columns) + 0.5) / columns, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def dense_losses(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By kind, per sample [B]: cross entropies, and of depth the mean absolute error."""
    losses: dict[str, Tensor] = {}
    if "parsing" in logits and "parsing" in labels:
        errors = F.cross_entropy(logits["parsing"].float(), labels["parsing"].long(), reduction="none")
        losses["parsing"] = errors.mean(dim=(1, 2))
    if "depth" in logits and "depth" in labels:
        losses["depth"] = (logits["depth"].float().sigmoid() - labels["depth"]).abs().mean(dim=(1, 2, 3))
    if "landmarks" in logits and "landmarks" in labels:
        rows, columns = logits["landmarks"].shape[-2:]
        cells = cell_centres(rows, columns).to(labels["landmarks"])
        distance = (labels["landmarks"][:, :, None] - cells).square().sum(dim=-1) * (rows * columns)  # [B,K,cells]
        wanted = (-distance / (2 * SPREAD_CELLS**2)).softmax(dim=-1)
        found = logits["landmarks"].float().flatten(2).log_softmax(dim=-1)
        losses["landmarks"] = -(wanted * found).sum(dim=-1).mean(dim=1)
    if "attributes" in logits and "attributes" in labels:
        errors = F.binary_cross_entropy_with_logits(
            logits["attributes"].float(), labels["attributes"], reduction="none"
        )
        losses["attributes"] = errors.mean(dim=1)
    return losses

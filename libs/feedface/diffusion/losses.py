"""The three training losses (paper, section 2), each per sample [B]: means of squares over channels and pixels.

`noise`, `pred`, `frozen_pred` are [B,C,H,W]; `mask` is [B,1,H,W], 1 on the face, already at latent resolution.
"""

from torch import Tensor


def _mean_square(x: Tensor) -> Tensor:
    return x.float().square().flatten(1).mean(dim=1)


def standard_loss(noise: Tensor, pred: Tensor) -> Tensor:
    """|ε − ε_θ|²"""
    return _mean_square(noise - pred)


def mask_loss(noise: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
    """|m(ε − ε_θ)|²: only the face is learned."""
    return _mean_square(mask * (noise - pred))


def regularization_mask_loss(noise: Tensor, pred: Tensor, frozen_pred: Tensor, mask: Tensor) -> Tensor:
    """|m(ε − ε_θ)|² + |(1 − m)(ε_θ̂ − ε_θ)|²: outside the face stay with the frozen model's own prediction.

    The sum of two means, as in the authors' release; the paper writes one norm, which is the same for a binary mask.
    """
    return mask_loss(noise, pred, mask) + _mean_square((1 - mask) * (frozen_pred - pred))

"""The training objective: what is noised, which prediction is wanted where, and what the loss is (paper, section 2).

A method may bring another one, see `Method.objective`. Shapes: B batch, T text tokens.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.losses import mask_loss, regularization_mask_loss, standard_loss
from feedface.diffusion.schedule import add_noise, alphas_cumprod
from feedface.diffusion.state import State, take

if TYPE_CHECKING:
    from ml_collections import ConfigDict

LOSSES = ("regularization", "mask", "standard")

# (state, t, prompt, features or None) -> noise in the state: a `training.controlled.ControlledBackbone`, as it is or
# wrapped for several processes. Without features it is the frozen model.
Model = Callable[..., State]


@dataclass(slots=True)
class LossParts:
    """`loss` is the scalar to minimise. Sums for the log, without gradients: of the loss, of its part on the face and
    off it, with how many samples each counts (the parts only where the loss has them)."""

    loss: Tensor
    sums: Tensor  # [3] loss, face, background
    counts: Tensor  # [3]


class Objective(Protocol):
    """What a method's training minimises."""

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts: ...


class MaskObjective:
    """Noises a batch, predicts, compares, as `config.loss` says.

    `kind`: "regularization" (the paper), "mask" or "standard"; samples drawn as `standard` use the last anyway.
    `mask_margin`: by what share of the picture's width the face mask is widened. Outside it the frozen model's
    prediction is kept, and with it the hair that it draws beside a face: without a margin none can be taken away.
    `min_snr`: gamma of the min-SNR weighting min(SNR, gamma) / SNR (Hang et al. 2023); 0 weighs all timesteps alike.

    Args:
        config: of the training.
        zero_reference: features of a reference of zeros, without a batch's dimension, on the device of training. A
            dropped face has these ("zero_image"), or zeros in their shape ("zero_feature", the paper).
        empty_text: [1,T,Dt], stands in for a dropped text.
    """

    def __init__(self, config: "ConfigDict", zero_reference: Mapping[str, Tensor], empty_text: Tensor):
        loss = config.loss
        self.kind, self.empty_text = loss.kind, empty_text
        zeros = loss.face_dropout_kind == "zero_feature"
        self.mask_margin = loss.get("mask_margin", 0.0)  # configs of before there was one do not say it
        self.dropped = {name: torch.zeros_like(x) if zeros else x for name, x in zero_reference.items()}
        alpha_bar = alphas_cumprod()
        snr = alpha_bar / (1 - alpha_bar)
        weights = (loss.min_snr / snr).clamp(max=1) if loss.min_snr else torch.ones_like(snr)
        self.weights = weights.float().to(empty_text.device)

    def features(self, draws: Draws, batch: Encoded) -> Mapping[str, Tensor]:
        """What the model is shown of the references: nothing where the face is dropped."""
        return {name: replaced(value, draws.drop_face, self.dropped[name]) for name, value in batch.features.items()}

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts:
        device = self.empty_text.device
        draws, batch = draws.to(device), batch.to(device)
        t, mask = draws.t, widened(batch.mask.float(), self.mask_margin)
        state, noise = noised(draws, batch)
        prompt = {"text": replaced(batch.text, draws.drop_text, self.empty_text)}
        features = self.features(draws, batch)

        masked = torch.zeros_like(draws.standard) if self.kind == "standard" else ~draws.standard
        rows = masked.nonzero()[:, 0].to(device, non_blocking=True)
        frozen_pred = None
        if len(rows) and self.kind == "regularization" and batch.frozen is not None:
            frozen_pred = batch.frozen[rows].float()
        elif len(rows) and self.kind == "regularization":
            # Only these samples need the frozen prediction. No gradient passes through it; made first, it leaves
            # nothing in memory when the trained pass begins.
            with torch.no_grad():
                frozen_pred = model(take(state, rows), t[rows], take(prompt, rows))["img"].float()

        pred, noise = model(state, t, prompt, features)["img"].float(), noise["img"]
        loss = standard_loss(noise, pred)
        face = background = loss.new_zeros(0)
        if len(rows):
            face = mask_loss(noise[rows], pred[rows].detach(), mask[rows])
            if frozen_pred is None:
                masked_loss = mask_loss(noise[rows], pred[rows], mask[rows])
            else:
                masked_loss = regularization_mask_loss(noise[rows], pred[rows], frozen_pred, mask[rows])
                background = masked_loss.detach() - face
            loss = loss.index_copy(0, rows, masked_loss)
        sums = torch.stack([loss.detach().sum(), face.sum(), background.sum()])
        counts = torch.tensor([len(loss), len(face), len(background)]).to(device, non_blocking=True)
        return LossParts((loss * self.weights[t - 1]).mean(), sums, counts)


def noised(draws: Draws, batch: Encoded) -> tuple[State, State]:
    """The batch's state at the timesteps drawn, and the noise in it; all on one device."""
    clean = {"img": batch.mean.float() + batch.std.float() * draws.vae_noise}
    clean |= {name: value.float() for name, value in batch.others.items()}
    return {name: add_noise(value, draws.noise[name], draws.t) for name, value in clean.items()}, draws.noise


def widened(mask: Tensor, margin: float) -> Tensor:
    """Mask [B,1,h,w], each cell the largest of those that are up to `margin` times w away, across and down."""
    reach = round(margin * mask.shape[-1])
    return F.max_pool2d(mask, 2 * reach + 1, stride=1, padding=reach) if reach else mask


def replaced(values: Tensor, rows: Tensor, other: Tensor) -> Tensor:
    """`values` [B,…] with `other`, which has their last dimensions, in the `rows` [B] (bool) that are marked."""
    if not rows.any():
        return values
    rows = rows.to(values.device, non_blocking=True).reshape(-1, *[1] * (values.dim() - 1))
    return torch.where(rows, other.to(values.dtype), values)

"""The training objective: what is noised, which prediction is wanted where, and what the loss is (paper, section 2).

Shapes: B batch, C h w latent, F references, n tokens of a face.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feedface.backbones.uvit import Control, UViT
from feedface.data.draws import Draws
from feedface.data.features import Features
from feedface.diffusion.losses import mask_loss, regularization_mask_loss, standard_loss
from feedface.diffusion.schedule import add_noise, alphas_cumprod
from feedface.inference.acceleration import compile_blocks
from feedface.methods.feedface import FaceControlNet

LOSSES = ("regularization", "mask", "standard")


class ControlledUViT(nn.Module):
    """The frozen backbone with the face-controlnet beside it: what is trained, as one module for accelerate."""

    def __init__(self, uvit: UViT, face_controlnet: FaceControlNet, data_type: int):
        super().__init__()
        self.backbone, self.method, self.data_type = uvit, face_controlnet, data_type

    def compile_blocks(self) -> None:
        compile_blocks(self)

    def forward(self, latents: Tensor, clip_img: Tensor, text: Tensor, t: Tensor, faces: Tensor | None) -> Tensor:
        """Noise [B,C,h,w] predicted in `latents`; `text` is clean. `faces` [B,F,n,Df]: None is the frozen model."""
        clean = torch.zeros_like(t)
        data_type = torch.full_like(t, self.data_type)
        # What is frozen is in low precision as a whole, and needs no autocast, which would make its tokens float32.
        with self._autocast(False):
            control = None if faces is None else self._control(faces)
            return self.backbone(latents, clip_img, text, t, clean, data_type, control=control).img

    def _control(self, faces: Tensor) -> Control:
        """The face-controlnet's control: weights are float32, products in the precision of the frozen backbone."""
        net = self.method
        with self._autocast(True):
            control = net.bind(net.join(net.projector(faces.to(net.projector.weight.dtype))))

        def in_low_precision(site: str, tokens_in: Tensor, tokens_out: Tensor) -> Tensor | None:
            with self._autocast(True):
                return control(site, tokens_in, tokens_out)

        return in_low_precision

    def _autocast(self, on: bool) -> AbstractContextManager:
        weight = self.backbone.pos_embed
        if weight.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(weight.device.type, weight.dtype, enabled=on)


@dataclass(slots=True)
class LossParts:
    """`loss` is the scalar to minimise. Sums for the log, without gradients: of the loss, of its part on the face and
    off it, with how many samples each counts (the parts only where the loss has them)."""

    loss: Tensor
    sums: Tensor  # [3] loss, face, background
    counts: Tensor  # [3]


class Objective:
    """Noises a batch, predicts, compares.

    Args:
        kind: "regularization" (the paper), "mask" or "standard"; samples drawn as `standard` use the last anyway.
        dropped_face: [n,Df], what a dropped face's features are (the paper: zeros).
        empty_text: [1,T,Dt], stands in for a dropped text.
        min_snr: gamma of the min-SNR weighting min(SNR, gamma) / SNR (Hang et al. 2023); 0 weighs all timesteps alike.
    """

    def __init__(self, kind: str, dropped_face: Tensor, empty_text: Tensor, min_snr: float = 0.0):
        self.kind, self.dropped_face, self.empty_text = kind, dropped_face, empty_text
        alpha_bar = alphas_cumprod()
        snr = alpha_bar / (1 - alpha_bar)
        self.weights = (min_snr / snr).clamp(max=1).float() if min_snr else torch.ones_like(snr).float()

    def __call__(self, model: nn.Module, draws: Draws, features: Features) -> LossParts:
        """`model` is a `ControlledUViT`, as it is or wrapped for several processes."""
        device = self.dropped_face.device
        t = draws.t.to(device)
        noise = draws.noise.to(device)
        mask = features.mask.to(device).float()
        latents = features.mean.to(device).float() + features.std.to(device).float() * draws.vae_noise.to(device)
        latents = add_noise(latents, noise, t)
        clip_img = add_noise(features.clip_img.to(device).float(), draws.clip_noise.to(device), t)
        text, faces = features.text.to(device), features.faces.to(device)
        if draws.drop_text.any():
            text = torch.where(draws.drop_text.to(device)[:, None, None], self.empty_text.to(text.dtype), text)
        if draws.drop_face.any():
            faces = torch.where(
                draws.drop_face.to(device)[:, None, None, None], self.dropped_face.to(faces.dtype), faces
            )

        masked = torch.zeros_like(draws.standard) if self.kind == "standard" else ~draws.standard
        rows = masked.nonzero()[:, 0].to(device)
        frozen_pred = None
        if len(rows) and self.kind == "regularization":
            # Only these samples need the frozen prediction. No gradient passes through it; made first, it leaves
            # nothing in memory when the trained pass begins.
            with torch.no_grad():
                frozen_pred = model(latents[rows], clip_img[rows], text[rows], t[rows], None).float()

        pred = model(latents, clip_img, text, t, faces).float()
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
        counts = torch.tensor([len(loss), len(face), len(background)], device=device)
        return LossParts((loss * self.weights.to(device)[t - 1]).mean(), sums, counts)

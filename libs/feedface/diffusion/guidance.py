"""Classifier-free guidance, ε = ε_u + g (ε_c − ε_u), with both predictions from one batch.

The paper's and the release's "scale s" adds to the conditional prediction, ε = ε_c + s (ε_c − ε_u): g = 1 + s.

What "unconditional" means (`uncond_mode`):
- "true_uncond" (the release's default): text replaced by Gaussian noise and declared to be so (t_text = 1000), no face;
- "empty_token" (the release's other choice): the empty prompt, no face;
- "paper": the empty prompt and the zero face vector, which still passes through the control blocks.
"""

import torch
from torch import Tensor

from feedface.backbones.uvit import UViT
from feedface.diffusion.schedule import NUM_TIMESTEPS
from feedface.methods.feedface import FaceControlNet

UNCOND_MODES = ("true_uncond", "empty_token", "paper")


class GuidedNoise:
    """Callable `(img [B,C,H,W], clip_img [B,1,Dc], t) -> (noise in img, noise in clip_img)`, float32, under guidance.

    All that stays the same over the steps (tokens of both halves' conditions, the faces' keys and values) is prepared
    once here. Savings at single steps, see `plan.Evaluation`: `guided=False` evaluates the conditional half alone,
    `controlled=False` leaves the face out, `reused=True` goes on with the deep blocks' output of the call before, which
    must have been guided and controlled alike.

    `text` [B,T,Dt]; `uncond_text` of the same shape: noise for "true_uncond", the encoded empty prompt for the other
    modes, unused at `guidance` 1, which skips the unconditional half. `face_tokens` [B,n,D] or [1,n,D]. `latent_size`
    is (H, W), by default the U-ViT's own.
    """

    def __init__(
        self,
        uvit: UViT,
        text: Tensor,
        uncond_text: Tensor | None = None,
        *,
        guidance: float = 1.0,
        uncond_mode: str = "true_uncond",
        face_controlnet: FaceControlNet | None = None,
        face_tokens: Tensor | None = None,
        face_scale: float = 1.0,
        latent_size: tuple[int, int] | None = None,
    ):
        if uncond_mode not in UNCOND_MODES:
            raise ValueError(f"uncond_mode must be one of {', '.join(UNCOND_MODES)}, not {uncond_mode!r}")
        self.uvit, self.guidance = uvit, guidance
        self.guided = guidance != 1
        batch = len(text)
        t_text = torch.zeros(batch, device=text.device)
        rows = None
        if self.guided:
            if uncond_text is None:
                raise ValueError(f"guidance {guidance} with uncond_mode {uncond_mode!r} needs uncond_text")
            text = torch.cat([text, uncond_text.to(text.dtype)])
            t_uncond = NUM_TIMESTEPS if uncond_mode == "true_uncond" else 0
            t_text = torch.cat([t_text, torch.full_like(t_text, t_uncond)])
            if uncond_mode != "paper":
                rows = slice(0, batch)  # no face in the second half, and no work for it
            elif face_tokens is not None:
                faces = face_tokens.expand(batch, -1, -1)
                face_tokens = torch.cat([faces, torch.zeros_like(faces)])
        data_type = torch.ones(len(text), dtype=torch.long, device=text.device)  # the release's at inference
        self.conditions = uvit.conditions(text, t_text, data_type, latent_size)
        self.control = None
        if face_controlnet is not None and face_tokens is not None:
            self.control = face_controlnet.bind(face_tokens, face_scale, rows)
        self._deep: Tensor | None = None

    def __call__(
        self,
        img: Tensor,
        clip_img: Tensor,
        t: float,
        *,
        guided: bool = True,
        controlled: bool = True,
        reused: bool = False,
    ) -> tuple[Tensor, Tensor]:
        batch = len(img)
        guided = guided and self.guided
        conditions, control = self.conditions, self.control if controlled else None
        if guided:
            img, clip_img = torch.cat([img, img]), torch.cat([clip_img, clip_img])
        elif self.guided:
            conditions = conditions[:batch]
            control = control and control.first(batch)
        t_img = torch.full((len(img),), t, dtype=torch.float32, device=img.device)
        deep = self._deep if reused else None
        out = self.uvit(img, clip_img, conditions, t_img, control=control, heads=("img", "clip_img"), deep=deep)
        self._deep = out.deep
        return self._guide(out.img, guided), self._guide(out.clip_img, guided)

    def _guide(self, noise: Tensor, guided: bool) -> Tensor:
        noise = noise.float()
        if not guided:
            return noise
        conditional, unconditional = noise.chunk(2)
        return unconditional + self.guidance * (conditional - unconditional)

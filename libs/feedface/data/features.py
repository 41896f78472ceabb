"""What the frozen encoders make of a batch. Shapes: B batch, F references, n tokens of a face, T text tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from feedface.data.dataset import Pixels
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder
from feedface.methods.feedface import FaceControlNet


@dataclass(slots=True)
class Features:
    """Latent posterior `mean`, `std` [B,C,h,w] (scaled as the backbone wants them), `clip_img` [B,1,Dc], `text`
    [B,T,Dt], `faces` [B,F,n,Df] (the face encoder's states, before the projector), `mask` [B,1,h,w] in 0…1."""

    mean: Tensor
    std: Tensor
    clip_img: Tensor
    text: Tensor
    faces: Tensor
    mask: Tensor


class FrozenEncoders:
    """VAE, CLIP image, CLIP text and face encoder of a training run; all without gradients."""

    def __init__(self, vae: LatentCodec, image: ImageEncoder, text: TextEncoder, face: FaceControlNet):
        self.vae, self.image, self._text, self._face = vae, image, text, face
        self.face_size = face.face_size

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @torch.no_grad()
    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B,3,S,S] in [-1,1] -> latent mean, standard deviation, CLIP-image embedding."""
        pixels = pixels.to(self.device)
        return *self.vae.moments(pixels), self.image.encode(pixels)

    @torch.no_grad()
    def faces(self, pixels: Tensor) -> Tensor:
        """Face crops [B,3,s,s] in [-1,1] -> states [B,n,Df]."""
        return self._face.face_features(pixels.to(self.device))

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> [B,T,Dt]."""
        return self._text.encode(captions)

    def __call__(self, pixels: Pixels) -> Features:
        """Encode a batch."""
        faces = self.faces(pixels.faces.flatten(0, 1)).unflatten(0, pixels.faces.shape[:2])
        mask = pixels.mask.to(self.device)
        mean, std, clip_img = self.images(pixels.image)
        return Features(mean, std, clip_img, self.text(pixels.captions), faces, mask)

    def fingerprint(self) -> str:
        """SHA-256 over all encoder weights, and over what else decides their answers: changes when any of it does."""
        clips = [self.image.clip.config, self._text.clip.config, self._face.face_encoder.config]
        settings = [self.vae.vae.config.scaling_factor]
        settings += [(clip.num_attention_heads, clip.hidden_act, clip.layer_norm_eps) for clip in clips]
        digest = hashlib.sha256(repr(settings).encode())
        modules: list[nn.Module] = [self.vae, self.image, self._text, self._face.face_encoder]
        for module in modules:
            for name, value in sorted(module.state_dict().items()):
                digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

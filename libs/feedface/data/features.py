"""What the frozen encoders make of a batch. Shapes: B batch, F references, n tokens of a face, T text tokens."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.checkpoints.face_encoder import is_face_controlnet, load_face_encoder
from feedface.checkpoints.storage import read_safetensors
from feedface.common.device import DTYPES
from feedface.common.reading import check_folder
from feedface.data.dataset import Pixels
from feedface.encoders import TEXT_PROJECTION, ImageEncoder, LatentCodec, TextEncoder
from feedface.methods.feedface import face_states

if TYPE_CHECKING:  # heavy, and only named here
    from transformers import CLIPVisionModel


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

    def __init__(self, vae: LatentCodec, image: ImageEncoder, text: TextEncoder, face: "CLIPVisionModel"):
        self.vae, self.image, self._text, self._face = vae, image, text, face
        self.face_size: int = face.config.image_size

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @torch.no_grad()
    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures [B,3,S,S] in [-1,1] -> latent mean, standard deviation, CLIP-image embedding."""
        pixels = pixels.to(self.device)
        return *self.vae.moments(pixels), self.image.encode(pixels)

    def faces(self, pixels: Tensor) -> Tensor:
        """Face crops [B,3,s,s] in [-1,1] -> states [B,n,Df]."""
        return face_states(self._face, pixels.to(self.device))

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


@dataclass(frozen=True)
class EncoderSources:
    """Where the frozen encoders of a run lie, and in which `precision` ("fp32", "bf16", "fp16") they are used.

    `bundle` has VAE, image encoder, text encoder and tokenizer. `face_encoder` is a folder of transformers'
    CLIPVisionModel, or one of a face-controlnet, which has such an encoder inside.
    """

    bundle: Path
    face_encoder: Path
    precision: str

    def load(self, device: torch.device) -> FrozenEncoders:
        """Load all four. Raises `UserError` for what is missing or broken."""
        dtype = DTYPES[self.precision]
        # Latents with bfloat16's three digits would be visibly coarse.
        vae_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        parts = load_bundle(self.bundle, device, dtype, ("text_encoder", "image_encoder"))
        vae = load_bundle(self.bundle, device, vae_dtype, ["vae"]).vae
        face = load_face_encoder(self.face_encoder, device, dtype)
        return FrozenEncoders(vae, parts.image_encoder, parts.text_encoder, face)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each encoder's files, without loading any: changes when an encoder's answers may.

        Of the VAE only what encodes counts: another decoder leaves latents as they are. Seconds at full size, once.
        """
        return self._hashes

    @cached_property
    def _hashes(self) -> dict[str, str]:
        folders = {**read_index(self.bundle).components, "face_encoder": self.face_encoder}
        wanted = {
            "vae": ("encoder.", "quant_conv."),
            "image_encoder": None,
            "text_encoder": None,
            "tokenizer": None,
            "face_encoder": ("face_encoder.",) if is_face_controlnet(self.face_encoder) else None,
        }
        return {kind: _hash_folder(folders[kind], prefixes) for kind, prefixes in wanted.items()}


def _hash_folder(folder: Path, prefixes: tuple[str, ...] | None) -> str:
    """Of all JSON and text files and all tensors, or only of tensors whose names begin with one of `prefixes`."""
    digest = hashlib.sha256()
    check_folder(folder)
    for file in sorted(folder.iterdir()):
        if file.name == TEXT_PROJECTION:  # only judges use it
            continue
        if file.suffix == ".safetensors":
            for name, value in sorted(read_safetensors(file, "cpu", None).items()):
                if prefixes is None or name.startswith(prefixes):
                    digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
                    digest.update(value.contiguous().view(-1).view(torch.uint8).numpy())
        elif (prefixes is None and file.suffix in (".json", ".txt")) or file.name == "config.json":
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()

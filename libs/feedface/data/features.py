"""What the frozen encoders make of a batch. Shapes: B batch, F references, T text tokens, C h w latent."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.checkpoints.face_encoder import is_face_controlnet, load_face_encoder
from feedface.checkpoints.parts import is_stable_diffusion
from feedface.checkpoints.storage import read_safetensors
from feedface.common.device import DTYPES
from feedface.common.reading import check_folder
from feedface.data.dataset import Pixels
from feedface.diffusion.batch import Encoded
from feedface.diffusion.state import State
from feedface.encoders import TEXT_PROJECTION, ImageEncoder, LatentCodec, TextEncoder
from feedface.faces.detect import find_pack, resolve_detector
from feedface.faces.embeddings import references_of
from feedface.methods.base import Features, Method

if TYPE_CHECKING:  # heavy, and only named here
    from transformers import CLIPVisionModel

# What encodes the parts of a backbone's `State` besides the latent.
STATE_ENCODERS = {"clip_img": "image_encoder"}


class FrozenEncoders:
    """VAE, CLIP text, and what else state and method of a training run take; all without gradients.

    Args:
        method: makes features of references; with `face_encoder` where that is a module of its own.
        others: encoders of pictures, by the part of the state that they make.
        faces_root: the model's own insightface root, for a method that takes embeddings of faces.
    """

    def __init__(
        self,
        vae: LatentCodec,
        text: TextEncoder,
        method: Method,
        face_encoder: "CLIPVisionModel | None" = None,
        others: Mapping[str, ImageEncoder] | None = None,
        faces_root: Path | None = None,
    ):
        self.faces_root = faces_root
        self.vae, self._text, self.method, self.others = vae, text, method, dict(others or {})
        self._features = partial(method.features, encoder=face_encoder) if face_encoder else method.features

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @torch.no_grad()
    def images(self, pixels: Tensor) -> tuple[Tensor, Tensor, State]:
        """Pictures [B,3,S,S] in [-1,1] -> latent mean, standard deviation, the state's other parts."""
        pixels = pixels.to(self.device, non_blocking=True)
        return *self.vae.moments(pixels), {name: encoder.encode(pixels) for name, encoder in self.others.items()}

    @torch.no_grad()
    def references(self, pixels: Tensor) -> Features:
        """Face crops [B,3,s,s] -> features [B,…]."""
        pixels = pixels.to(self.device, non_blocking=True)
        return self._features(references_of(self.method.reference, pixels, lambda: self.vae, self.faces_root))

    def zero_reference(self) -> Features:
        """Features of a crop of zeros, without the batch's dimension."""
        spec = self.method.reference
        if spec.kind == "embedding":  # a crop of zeros shows nobody either, but has an embedding
            found = self._features(torch.zeros(1, spec.size, device=self.device))
        else:
            found = self.references(torch.zeros(1, 3, spec.size, spec.size))
        return {name: value[0] for name, value in found.items()}

    @torch.no_grad()
    def text(self, captions: Sequence[str]) -> Tensor:
        """Captions -> [B,T,Dt]."""
        return self._text.encode(captions)

    def __call__(self, pixels: Pixels) -> Encoded:
        """Encode a batch."""
        crops = pixels.references
        features = self.references(crops.flatten(0, 1))
        features = {name: value.unflatten(0, crops.shape[:2]) for name, value in features.items()}
        mean, std, others = self.images(pixels.image)
        return Encoded(
            mean, std, others, self.text(pixels.captions), features, pixels.mask.to(self.device, non_blocking=True)
        )


@dataclass(frozen=True)
class EncoderSources:
    """Where the frozen encoders of a run lie, and in which `precision` ("fp32", "bf16", "fp16") they are used.

    Attributes:
        bundle: has VAE, text encoder and tokenizer, and the image encoder where the state asks for it.
        method: makes features of references; it may lack its face encoder.
        face_encoder: of a method that `uses_clip`: a folder of transformers' CLIPVisionModel, or one of a method, which
            has such an encoder inside.
        state: names of what the backbone's `State` holds.
    """

    bundle: Path
    method: Method
    face_encoder: Path | None
    precision: str
    state: tuple[str, ...]

    @property
    def state_encoders(self) -> dict[str, str]:
        """Parts of the bundle that encode pictures, by what of the state they make."""
        return {name: STATE_ENCODERS[name] for name in self.state if name != "img"}

    def load(self, device: torch.device) -> FrozenEncoders:
        """Load them. Raises `UserError` for what is missing or broken."""
        dtype = DTYPES[self.precision]
        # Latents with bfloat16's three digits would be visibly coarse.
        vae_dtype = torch.float32 if dtype == torch.bfloat16 else dtype
        parts = load_bundle(self.bundle, device, dtype, ("text_encoder", *self.state_encoders.values()))
        vae = load_bundle(self.bundle, device, vae_dtype, ["vae"]).vae
        face = load_face_encoder(self.face_encoder, device, dtype) if self.face_encoder else None
        others = {name: getattr(parts, part) for name, part in self.state_encoders.items()}
        return FrozenEncoders(vae, parts.text_encoder, self.method, face, others, parts.faces_root)

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each encoder's files, without loading any: changes when an encoder's answers may.

        Of the VAE only what encodes counts: another decoder leaves latents as they are. Seconds at full size, once.
        """
        return self._hashes

    @cached_property
    def _hashes(self) -> dict[str, str]:
        folders = dict(read_index(self.bundle).components)
        wanted = {"vae": ("encoder.", "quant_conv."), "text_encoder": None, "tokenizer": None}
        wanted |= dict.fromkeys(self.state_encoders.values())
        if self.face_encoder:
            folders["face_encoder"] = self.face_encoder
            wanted["face_encoder"] = ("face_encoder.",) if is_face_controlnet(self.face_encoder) else None
        hashes = {part: _hash_part(part, folders.get(part, self.bundle), prefixes) for part, prefixes in wanted.items()}
        spec = self.method.reference
        if spec.kind == "embedding":
            folder = find_pack(*resolve_detector(spec.recogniser, folders.get("faces")))
            hashes["recogniser"] = "" if folder is None else _hash_files(folder.glob("*.onnx"))
        return hashes


def _hash_part(part: str, folder: Path, prefixes: tuple[str, ...] | None) -> str:
    if folder.is_file():  # a single file of all parts
        with open(folder, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    return _hash_folder(folder / part if is_stable_diffusion(folder) else folder, prefixes)


def _hash_files(files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


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

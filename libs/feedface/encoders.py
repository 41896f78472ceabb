"""Text, image and latent encoders behind transformers and diffusers classes, and the picture preparation they need.

Pictures are RGB. Shapes: B batch, T text tokens, C H W pixels or latent.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import TypedDict

from feedface.common.errors import UserError
from feedface.common.prompt_weights import Span, plain_prompt, token_weights, weighted
from feedface.common.reading import check_folder, foreign
from feedface.common.validation import OPEN, read_json_as

if TYPE_CHECKING:  # heavy, and only named here
    from diffusers import AutoencoderKL
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

# What CLIP was trained with (Radford et al. 2021); the face encoder takes 0.5 and 0.5 instead.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
EMBEDDED_PX = 256  # of a crop that a recogniser sees: it aligns the face to 112 px
TEXT_PROJECTION = "text_projection.safetensors"  # beside a bundle's text encoder, where its two encoders are a CLIP


@dataclass(frozen=True)
class ReferenceSpec:
    """What `Method.features` takes for each reference picture.

    `kind`: "crop", a square face crop [3,size,size]; "aligned", the same turned and scaled to ArcFace's five points;
    "embedding", a face recogniser's vector [size], of length 1; "latent", the VAE's latent [C,h,w] (the mean, scaled)
    of a crop of `size` px; "posterior", mean and standard deviation of that [2,C,h,w]; "several", what each of the
    `parts` takes. Pixels are RGB, (x − mean) / std of values 0 … 1. `recogniser`: of embeddings, which are only good
    for who learned that one's: the insightface pack with it.
    """

    kind: Literal["crop", "aligned", "embedding", "latent", "posterior", "several"]
    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    recogniser: str = ""
    parts: tuple["ReferenceSpec", ...] = ()

    @property
    def crop_px(self) -> int:
        """The side of the pixels that `preprocess_reference` gives."""
        return EMBEDDED_PX if self.kind == "embedding" else self.size


def resize_and_crop(images: Tensor, size: int) -> Tensor:
    """Images [B,3,H,W] in [-1,1] -> [B,3,size,size]: short side resized (bicubic, antialiased), centre cropped."""
    height, width = images.shape[-2:]
    scale = size / min(height, width)
    new = (max(size, round(height * scale)), max(size, round(width * scale)))
    if new != (height, width):
        images = F.interpolate(images, new, mode="bicubic", antialias=True).clamp(-1, 1)
    top, left = (new[0] - size) // 2, (new[1] - size) // 2
    return images[..., top : top + size, left : left + size]


def to_tensor(image: np.ndarray) -> Tensor:
    """uint8 RGB [H,W,3] -> float32 [3,H,W] in [-1,1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return pixels.float().div_(127.5).sub_(1)  # in place: a large crop takes a gigabyte


def to_uint8(pixels: Tensor) -> np.ndarray:
    """float [B,3,H,W] in [-1, 1] -> uint8 [B,H,W,3]."""
    pixels = pixels.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def preprocess_face(image: np.ndarray, size: int = 224) -> Tensor:
    """A square face crop, uint8 RGB [H,W,3] -> [3,size,size] in [-1,1], as CLIP's vision towers take it here."""
    return resize_and_crop(to_tensor(image)[None], size)[0]


def preprocess_reference(spec: ReferenceSpec, crop: np.ndarray) -> Tensor:
    """A square face crop, uint8 RGB [H,W,3], as a method wants its pixels; `UserError` for one that wants no crops.

    What follows, `faces.embeddings.references_of` says.
    """
    if spec.kind in ("latent", "posterior"):
        return to_tensor(np.array(Image.fromarray(crop).resize((spec.size, spec.size), Image.Resampling.LANCZOS)))
    if spec.kind not in ("crop", "embedding", "several"):
        raise UserError(f"this method takes references of kind {spec.kind!r}, and only crops can be made here")
    pixels = preprocess_face(crop, spec.crop_px)
    return normalised(spec, pixels)


def normalised(spec: ReferenceSpec, pixels: Tensor) -> Tensor:
    """Pixels [...,3,H,W] in [-1,1] with the mean and standard deviation that a method wants."""
    if spec.mean == spec.std == (0.5, 0.5, 0.5):
        return pixels
    mean, std = (torch.tensor(values).reshape(3, 1, 1).to(pixels) for values in (spec.mean, spec.std))
    return ((pixels + 1) / 2 - mean) / std


class _TokenizerConfig(TypedDict, total=False):
    """What tokenizers take from their config as it is, to fail on it at some later call."""

    __pydantic_config__ = OPEN
    model_max_length: int | float | None
    padding_side: Literal["left", "right"]
    truncation_side: Literal["left", "right"]
    bos_token: str | dict | None
    eos_token: str | dict | None
    pad_token: str | dict | None
    unk_token: str | dict | None


TOKENIZER_CONFIG, _TOKENIZER = "tokenizer_config.json", TypeAdapter(_TokenizerConfig)


def load_tokenizer(folder: str | os.PathLike) -> "CLIPTokenizer":
    """A CLIP tokenizer from its files (`tokenizer.json`, or `vocab.json` and `merges.txt`)."""
    from transformers import CLIPTokenizer

    folder = Path(folder)
    check_folder(folder)
    # transformers makes a tokenizer of two tokens out of an empty folder, without an error
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise UserError(f"{folder}: holds no CLIP tokenizer (tokenizer.json, or vocab.json and merges.txt)")
    if (folder / TOKENIZER_CONFIG).is_file():
        read_json_as(folder / TOKENIZER_CONFIG, _TOKENIZER, what="does not describe a tokenizer")
    with foreign(f"{folder}: holds no CLIP tokenizer that can be read"):
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        tokenizer(["a"], padding="max_length", truncation=True, max_length=8)  # some faults show in use only
    return tokenizer


def check_vocabulary(tokenizer: "CLIPTokenizer", size: int) -> None:
    """`UserError` unless the tokens are those of a text encoder's embedding of `size` rows, numbered from 0."""
    last = max(tokenizer.get_vocab().values(), default=-1)
    if len(tokenizer) != size or last >= size:
        raise UserError(
            f"tokenizer of {len(tokenizer)} tokens (the last has number {last}) does not belong to a text encoder of "
            f"{size}"
        )


class TextEncoder(nn.Module):
    """CLIP text tower (last hidden states), then the linear prefix of the caption decoder where there is one.

    `clip_skip`: how many of the last layers are left out, before the last norm; models trained so want 1.
    `negative_skip`: the same for negative and empty prompts at inference; None: as for others.
    """

    negative_skip: int | None = None

    def __init__(
        self, clip: "CLIPTextModel", tokenizer: "CLIPTokenizer", prefix: nn.Linear | None = None, clip_skip: int = 0
    ):
        super().__init__()
        check_vocabulary(tokenizer, clip.config.vocab_size)
        self.clip, self.tokenizer, self.prefix, self.clip_skip = clip, tokenizer, prefix, clip_skip
        self.requires_grad_(False).eval()

    @property
    def clip_skip(self) -> int:
        return self._clip_skip

    @clip_skip.setter
    def clip_skip(self, count: int) -> None:
        layers = self.clip.config.num_hidden_layers
        if not 0 <= count < layers:
            raise UserError(f"clip_skip {count}: use 0 to {layers - 1} for this text encoder of {layers} layers")
        self._clip_skip = count

    @property
    def num_tokens(self) -> int:
        """T: every prompt is cut or padded to this many tokens."""
        return self.clip.config.max_position_embeddings

    @property
    def text_dim(self) -> int:
        """Size of one encoded token."""
        return self.prefix.out_features if self.prefix is not None else self.clip.config.hidden_size

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [B,T]; what exceeds T tokens is cut."""
        return self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=self.num_tokens, return_tensors="pt"
        ).input_ids

    def tokens_of(self, text: str) -> list[int]:
        """Its tokens alone, without those that begin, end and fill up a prompt."""
        return self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids if text.strip() else []

    def embedded(self, ids: Sequence[int]) -> Tensor:
        """The token table's rows [L,D]."""
        return self.clip.get_input_embeddings().weight[list(ids)].detach()

    @torch.no_grad()
    def encode(self, texts: Sequence[str], negative: bool = False) -> Tensor:
        """Prompts -> [B,T,text_dim] in the weights' dtype. `negative`: they are what guidance leads away from.

        Words may have weights, see `common.prompt_weights`: their tokens are multiplied by them.
        """
        texts, spans = zip(*map(plain_prompt, texts), strict=True) if texts else ((), ())
        ids = self.tokenize(texts).to(self.clip.device)
        skip = self.negative_skip if negative and self.negative_skip is not None else self.clip_skip
        out = self.clip(input_ids=ids, output_hidden_states=bool(skip))  # CLIP was trained without a mask
        states = out.last_hidden_state
        if skip:
            states = self.clip.final_layer_norm(out.hidden_states[-1 - skip])
        if any(spans):
            states = weighted(states, self.token_weights(texts, spans))
        return self.prefix(states) if self.prefix is not None else states

    def token_weights(self, texts: Sequence[str], spans: Sequence[Sequence[Span]]) -> Tensor:
        """How much each token of `tokenize(texts)` counts, [B,T]; `spans`: of each text."""
        options = {"padding": "max_length", "truncation": True, "max_length": self.num_tokens}
        places = [self.tokenizer(text, return_offsets_mapping=True, **options).offset_mapping for text in texts]
        return torch.tensor([token_weights(*row) for row in zip(places, spans, strict=True)])

    def weighted_tokens(self, text: str) -> tuple[list[int], list[float]]:
        """The tokens of a text that may have weights, without those that begin and end a prompt, and their weights."""
        text, spans = plain_prompt(text)
        if not text.strip():
            return [], []
        found = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return found.input_ids, token_weights(found.offset_mapping, spans)

    def encode_tokens(
        self, ids: Tensor, words: Tensor, layer_weights: Sequence[float] = (), weights: Tensor | None = None
    ) -> Tensor:
        """Token ids [B,T], some of them vectors -> [B,T,text_dim] in the weights' dtype; gradients reach `words`.

        Args:
            words: [B,N,D], D as wide as the token table; an id of its size plus i is vector i of the row's own.
            layer_weights: of the last so many layers, the last one last: the prompt is their weighted mean before the
                final norm. Without them `clip_skip` counts.
            weights: [B,T], how much each token counts.
        """
        table = self.clip.get_input_embeddings()
        known, count = table.num_embeddings, words.shape[1]
        own = torch.arange(len(ids), device=ids.device)[:, None] * count
        used, places = torch.where(ids < known, ids, ids + own).unique(return_inverse=True)  # [U], [B,T]
        # A table of the tokens that occur, not of all: it is differentiated.
        rows = torch.cat(
            [table.weight[used[used < known]], words.to(table.weight).flatten(0, 1)[used[used >= known] - known]]
        )
        name = next(name for name, module in self.clip.named_modules() if module is table)
        inputs = {"input_ids": places, "output_hidden_states": True}
        out = functional_call(self.clip, {f"{name}.weight": rows}, (), inputs)
        if layer_weights:
            layers = torch.tensor(layer_weights).to(rows)
            states = torch.einsum("l,lbtd->btd", layers / layers.sum(), torch.stack(out.hidden_states[-len(layers) :]))
        else:
            states = out.hidden_states[-1 - self.clip_skip]
        states = self.clip.final_layer_norm(states)
        if weights is not None and bool((weights != 1).any()):
            states = weighted(states, weights)
        return self.prefix(states) if self.prefix is not None else states


class ImageEncoder(nn.Module):
    """CLIP image tower: the pooled, projected, unnormalised embedding that UniDiffuser noises beside the latent."""

    def __init__(self, clip: "CLIPVisionModelWithProjection"):
        super().__init__()
        self.clip = clip
        self.requires_grad_(False).eval()
        self._mean_std: tuple[Tensor, Tensor] = (
            torch.tensor(CLIP_MEAN).reshape(3, 1, 1),
            torch.tensor(CLIP_STD).reshape(3, 1, 1),
        )

    @torch.no_grad()
    def encode(self, images: Tensor | Sequence[np.ndarray]) -> Tensor:
        """Images [B,3,H,W] in [-1,1], or uint8 RGB [H,W,3] each of any size -> [B,1,clip_img_dim]."""
        size = self.clip.config.image_size
        if isinstance(images, Tensor):
            pixels = resize_and_crop(images.to(self.clip.device).float(), size)
        else:
            pixels = torch.cat([resize_and_crop(to_tensor(image)[None], size) for image in images])
        mean, std = (value.to(self.clip.device) for value in self._mean_std)
        pixels = ((pixels.to(self.clip.device) + 1) / 2 - mean) / std
        return self.clip(pixel_values=pixels.to(self.clip.dtype)).image_embeds[:, None]


def pixel_stack(vae_config: Mapping[str, Any]) -> int:
    """The f of an autoencoder whose input is f×f pixels stacked into channels (space to depth)."""
    return round((vae_config["in_channels"] / 3) ** 0.5)


def latent_factor(vae_config: Mapping[str, Any]) -> int:
    """Pixels along one side of a latent cell, out of an `AutoencoderKL`'s config."""
    return pixel_stack(vae_config) * 2 ** (len(vae_config["block_out_channels"]) - 1)


class LatentCodec(nn.Module):
    """diffusers' `AutoencoderKL` with its scaling factor: pixels in [-1,1] to latents of about unit variance.

    An autoencoder of 3·f² input channels takes f×f pixels stacked into channels (space to depth): convolutions at full
    resolution are what a small model on a CPU cannot afford.
    """

    def __init__(self, vae: "AutoencoderKL"):
        super().__init__()
        self.vae = vae
        self._stack = pixel_stack(vae.config)
        if 3 * self._stack**2 != vae.config.in_channels or vae.config.out_channels != vae.config.in_channels:
            raise ValueError(
                f"autoencoder with {vae.config.in_channels} -> {vae.config.out_channels} channels, not 3·f²"
            )

    @property
    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        return latent_factor(self.vae.config)

    def save_memory(self) -> None:
        """Decode one picture at a time, and what is larger than the training pictures in tiles whose seams blend."""
        self.vae.enable_slicing()
        self.vae.enable_tiling()

    def encode(self, images: Tensor, sample: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """Images [B,3,H,W] in [-1,1] -> latents [B,C,H/factor,W/factor]: a sample of the posterior, or its mode."""
        posterior = self._posterior(images)
        return (posterior.sample(generator) if sample else posterior.mode()) * self.vae.config.scaling_factor

    def moments(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents that `encode` samples: mean + std * noise is such a sample."""
        posterior = self._posterior(images)
        return posterior.mean * self.vae.config.scaling_factor, posterior.std * self.vae.config.scaling_factor

    def _posterior(self, images: Tensor):
        pixels = F.pixel_unshuffle(images.to(self.vae.device, self.vae.dtype), self._stack)
        return self.vae.encode(pixels).latent_dist

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B,C,h,w] -> images [B,3,h*factor,w*factor], float32, clamped to [-1,1]; NaN where not finite."""
        latents = latents.to(self.vae.device, self.vae.dtype) / self.vae.config.scaling_factor
        pixels = F.pixel_shuffle(self.vae.decode(latents).sample, self._stack).float()
        return pixels.where(pixels.isfinite(), torch.nan).clamp(-1, 1)  # infinity must not pass for white

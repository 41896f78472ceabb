"""Models and data for `training.py`: the real structures at three sizes, with random weights and no files.

Shapes: B batch, C h w latent, n tokens of a face, T text tokens.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from feedface.training.objective import ControlledUViT
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

from feedface.backbones.uvit import UViT
from feedface.data.dataset import Pixels
from feedface.data.features import Features, FrozenEncoders
from feedface.diffusion.batch import Draws
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder
from feedface.methods.feedface import FaceControlNet

logging.set_verbosity_error()  # it warns of nothing that happens here
FACES = 1  # references of a sample
TEXT_DIM = 64


@dataclass(frozen=True)
class Size:
    """`sites` control blocks in each half of the backbone, at every other block. `vae` are the channels of its levels;
    all of them halve the picture but the last. CLIP towers have `clip_layers` of `clip_width` each."""

    image_px: int
    width: int
    depth: int
    heads: int
    control_heads: int
    sites: int
    vae: tuple[int, ...]
    vae_groups: int
    clip_width: int
    clip_layers: int
    vocabulary: int = 49_408
    text_tokens: int = 77
    face_px: int = 224

    @property
    def latent(self) -> int:
        """Side of a latent."""
        return self.image_px >> len(self.vae) - 1


SIZES = {
    # UniDiffuser v1, SD's KL-f8, CLIP ViT-B/32 and the text tower of ViT-L/14.
    "full": Size(512, 1536, 30, 24, 64, 7, (128, 256, 512, 512), 32, 768, 12),
    # A tenth of the work and as many tokens: half the width (heads as wide as before), 13 of 31 blocks, 6 of 14 sites.
    "middle": Size(512, 768, 12, 12, 32, 3, (40, 80, 160, 160), 8, 256, 12),
    # For a look whether all of it runs.
    "tiny": Size(64, 64, 4, 2, 4, 1, (8, 8, 16, 16), 4, 32, 2, vocabulary=100, text_tokens=8, face_px=64),
}


class _Tokenizer:
    """Stands in for CLIP's: any text is one and the same row of tokens."""

    def __init__(self, vocabulary: int):
        self._vocabulary = vocabulary

    def __len__(self) -> int:
        return self._vocabulary

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(self._vocabulary)}

    def __call__(self, texts: list[str], max_length: int, **_) -> SimpleNamespace:
        ids = torch.arange(max_length) % self._vocabulary
        return SimpleNamespace(input_ids=ids.expand(len(texts), -1))


def _vision_config(size: Size) -> dict:
    return {
        "hidden_size": size.clip_width,
        "intermediate_size": 4 * size.clip_width,
        "num_hidden_layers": size.clip_layers,
        "num_attention_heads": size.clip_width // 64 or 1,
        "image_size": size.face_px,
        "patch_size": 32,
        "projection_dim": 512,
    }


def build_encoders(size: Size, device: torch.device, dtype: torch.dtype) -> FrozenEncoders:
    """VAE, CLIP image, CLIP text and face encoder in the formats that training holds them in."""
    vision = CLIPVisionConfig(**_vision_config(size))
    text = CLIPTextConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.clip_width,
        intermediate_size=4 * size.clip_width,
        num_hidden_layers=size.clip_layers,
        num_attention_heads=size.clip_width // 64 or 1,
        max_position_embeddings=size.text_tokens,
        bos_token_id=0,
        eos_token_id=1,
    )
    levels = len(size.vae)
    with torch.device(device):
        vae = AutoencoderKL(
            block_out_channels=size.vae,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=2,
            norm_num_groups=size.vae_groups,
            latent_channels=4,
        )
        prefix = nn.Linear(size.clip_width, TEXT_DIM)
        clip_text, clip_image, face = (
            CLIPTextModel(text),
            CLIPVisionModelWithProjection(vision),
            CLIPVisionModel(vision),
        )
    # As `EncoderSources.load` does: the VAE stays in float32 beside bfloat16.
    vae = LatentCodec(vae.to(torch.float32 if dtype == torch.bfloat16 else dtype)).eval().requires_grad_(False)
    return FrozenEncoders(
        vae,
        ImageEncoder(clip_image.to(dtype)),
        TextEncoder(clip_text.to(dtype), _Tokenizer(size.vocabulary), prefix.to(dtype)),
        face.to(dtype).eval().requires_grad_(False),
    )


def build_trained(size: Size, device: torch.device, dtype: torch.dtype) -> ControlledUViT:
    """The frozen backbone in `dtype` and the face-controlnet in float32, as training holds them."""
    sites = [f"{half}.{2 * i}" for half in ("in_blocks", "out_blocks") for i in range(size.sites)]
    with torch.device(device):
        uvit = UViT(
            img_size=size.latent,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            text_dim=TEXT_DIM,
            num_text_tokens=size.text_tokens,
        )
        uvit = uvit.to(dtype).eval().requires_grad_(False)
        net = FaceControlNet(size.width, size.control_heads, sites, _vision_config(size), with_encoder=False)
    for block in net.blocks:
        nn.init.normal_(block.zero_linear.weight, std=0.02)  # past the start, where all but these gradients are zero
    return ControlledUViT(uvit, net.eval(), data_type=0)


def random_pixels(size: Size, batch_size: int) -> Pixels:
    """What reading pictures gives, on the CPU."""
    return Pixels(
        image=torch.rand(batch_size, 3, size.image_px, size.image_px) * 2 - 1,
        faces=torch.rand(batch_size, FACES, 3, size.face_px, size.face_px) * 2 - 1,
        mask=_masks(size, batch_size),
        captions=["a photo of a person"] * batch_size,
    )


def random_features(size: Size, batch_size: int) -> Features:
    """What the cache gives, on the CPU."""
    latent = (batch_size, 4, size.latent, size.latent)
    tokens = (size.face_px // 32) ** 2 + 1
    return Features(
        mean=torch.randn(latent),
        std=torch.rand(latent) / 10,
        clip_img=torch.randn(batch_size, 1, 512),
        text=torch.randn(batch_size, size.text_tokens, TEXT_DIM),
        faces=torch.randn(batch_size, FACES, tokens, size.clip_width),
        mask=_masks(size, batch_size),
    )


def random_draws(size: Size, batch_size: int, first: int = 0, standard_share: float = 0.1) -> Draws:
    """Draws of samples number `first` and on, with exactly every tenth (`standard_share`) drawn as standard."""
    numbers = torch.arange(first, first + batch_size)
    every = round(1 / standard_share) if standard_share else 0
    latent = (batch_size, 4, size.latent, size.latent)
    off = torch.zeros(batch_size, dtype=torch.bool)
    return Draws(
        rows=numbers,
        flip=off,
        hair=off,
        standard=(numbers + 1) % every == 0 if every else off,
        drop_face=off,
        drop_text=off,
        t=(numbers * 389) % 1000 + 1,
        vae_noise=torch.randn(latent),
        noise=torch.randn(latent),
        clip_noise=torch.randn(batch_size, 1, 512),
    )


def _masks(size: Size, batch_size: int) -> Tensor:
    return (torch.rand(batch_size, 1, size.latent, size.latent) < 0.3).float()

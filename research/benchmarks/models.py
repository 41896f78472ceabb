"""Models of real structures at three sizes with random weights: time and memory do not depend on them.

    python -m research.benchmarks.models FOLDER [--size full]

writes a model folder. Full size: UniDiffuser v1's U-ViT, the paper's face-controlnet, SD's KL-f8, CLIP ViT-L/14's text
tower and ViT-B/32's image towers, in half precision 4.0 GB.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.utils import logging
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from feedface.backbones.base import Backbone, backbone_class
from feedface.checkpoints.bundle import save_component, write_index
from feedface.common.errors import UserError, run_cli
from feedface.common.files import atomic_folder
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder
from feedface.methods.base import Method, method_class

logging.set_verbosity_error()  # it warns of nothing that happens here
TEXT_DIM = 64
STD = 0.02
META = torch.device("meta")


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

    @property
    def tower(self) -> dict[str, int]:
        """Of a CLIP."""
        return {
            "hidden_size": self.clip_width,
            "intermediate_size": 4 * self.clip_width,
            "num_hidden_layers": self.clip_layers,
            "num_attention_heads": self.clip_width // 64 or 1,
        }

    @property
    def vision(self) -> dict[str, int]:
        """Of CLIP's image tower, which the face encoder is too."""
        return {**self.tower, "image_size": self.face_px, "patch_size": 32, "projection_dim": 512}


SIZES = {
    # UniDiffuser v1, SD's KL-f8, CLIP ViT-B/32 and the text tower of ViT-L/14.
    "full": Size(512, 1536, 30, 24, 64, 7, (128, 256, 512, 512), 32, 768, 12),
    # A tenth of the work and as many tokens: half the width (heads as wide as before), 13 of 31 blocks, 6 of 14 sites.
    "middle": Size(512, 768, 12, 12, 32, 3, (40, 80, 160, 160), 8, 256, 12),
    # For a look whether all of it runs.
    "tiny": Size(64, 64, 4, 2, 4, 1, (8, 8, 16, 16), 4, 32, 2, vocabulary=600, text_tokens=8, face_px=64),
}


def build_networks(size: Size, with_encoder: bool = True) -> tuple[Backbone, Method]:
    """Backbone and method as they are made; `with_encoder`: its face encoder in the method. Where `torch.device` says.

    The method's last linears are not zero, as they would be at the start of a training, where all gradients but theirs
    are.
    """
    backbone = backbone_class("uvit")(
        img_size=size.latent,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        text_dim=TEXT_DIM,
        num_text_tokens=size.text_tokens,
    )
    sites = [f"{half}.{2 * i}" for half in ("in_blocks", "out_blocks") for i in range(size.sites)]
    method = method_class("feedface")(
        sites, size.width, size.control_heads, size.vision, size.width, with_encoder=with_encoder
    )
    for block in method.step_blocks():
        nn.init.normal_(block.zero_linear.weight, std=STD)
    return backbone.eval(), method.eval()


def build_vae(size: Size) -> LatentCodec:
    levels = len(size.vae)
    vae = AutoencoderKL(
        block_out_channels=size.vae,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        norm_num_groups=size.vae_groups,
        latent_channels=4,
    )
    return LatentCodec(vae).eval().requires_grad_(False)


def build_image_encoder(size: Size) -> ImageEncoder:
    return ImageEncoder(CLIPVisionModelWithProjection(CLIPVisionConfig(**size.vision)).eval())


def build_text_encoder(size: Size) -> TextEncoder:
    """With a tokenizer of byte-level letters, and of words that nobody writes up to the size of the vocabulary."""
    letters = [chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<{number}>" for number in range(size.vocabulary - len(words) - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(words),
        max_position_embeddings=size.text_tokens,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        **size.tower,
    )
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    return TextEncoder(CLIPTextModel(config).eval(), tokenizer, nn.Linear(size.clip_width, TEXT_DIM))


def write_random_bundle(folder: Path, size: Size, name: str) -> Path:
    """Write a model of `size` in half precision, whole or not at all; returns `folder`. No part of it is ever whole in
    single precision."""
    torch.manual_seed(0)
    with META:
        text = build_text_encoder(size)
        backbone, method = build_networks(size)
        vae, image = build_vae(size), build_image_encoder(size)
    parts = {"backbone": backbone, "method": method, "vae": vae, "text_encoder": text, "image_encoder": image}
    with atomic_folder(folder) as temporary:
        for part, module in parts.items():
            save_component(part, fill_randomly(module), temporary / part)
            module.to(META)
        save_component("tokenizer", text.tokenizer, temporary / "tokenizer")
        folders = {part: part for part in (*parts, "tokenizer")}
        write_index(temporary, name=name, image_size=size.image_px, components=folders)
    return folder


def random_weights(key: str, like: Tensor) -> Tensor:
    """In half precision, what a fresh network has: matrices normal, biases 0, factors of norms 1."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.dim() > 1:
        return torch.empty(like.shape, dtype=torch.float16).normal_(std=STD)
    return torch.full(like.shape, 1.0 if key.endswith("weight") else 0.0, dtype=torch.float16)


def fill_randomly(module: nn.Module) -> nn.Module:
    """Give a module without memory random weights."""
    state = {key: random_weights(key, value) for key, value in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to write; must not exist")
    parser.add_argument("--size", choices=SIZES, default="full", help="(default full)")
    args = parser.parse_args(argv)
    if args.folder.exists():
        raise UserError(f"{args.folder}: exists already; remove it, or name another folder")
    write_random_bundle(args.folder, SIZES[args.size], f"random-{args.size}")
    print(f"written: {args.folder}")


if __name__ == "__main__":
    run_cli(main)

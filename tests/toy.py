"""A tiny model with random weights: all of a bundle's parts, in milliseconds, for tests of what is built on them."""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import save_component, write_index
from feedface.checkpoints.storage import quiet_transformers
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder, load_tokenizer
from feedface.methods.feedface import FeedFace

IMAGE_SIZE = 64
FOLDERS = {"backbone": "uvit", "method": "face_controlnet"}  # of the toy bundle, where not the part's name
CLIP_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def toy_tokenizer(folder: Path):
    """A CLIP tokenizer of single letters (byte-level, without merges), written to `folder` and read back."""
    from transformers import CLIPTokenizer

    letters = [chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
    vocabulary = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: i for i, token in enumerate(vocabulary)}
    CLIPTokenizer(vocab=vocab, merges=[]).save_pretrained(folder)
    return load_tokenizer(folder)


def toy_uvit() -> UViT:
    """Width 32, 1 + 1 + 1 blocks, latents 4x8x8, 16 text tokens of 8 numbers, CLIP image of 16."""
    return UViT((8, 8), 4, 2, 32, 2, 4, 2, text_dim=8, num_text_tokens=16, clip_img_dim=16)


def attentive(backbone: Backbone) -> Backbone:
    """With weights at which attention matters; fresh ones are too small for that."""
    for name, weight in backbone.named_parameters():
        if ".attn" in name and weight.ndim == 2:
            weight.data.normal_(std=weight.shape[1] ** -0.5)
    return backbone


def toy_face_controlnet(uvit: UViT | None = None, control_input: str = "output") -> FeedFace:
    """Not freshly initialised: its last linears are random, so that a face changes something."""
    uvit = uvit or toy_uvit()
    width = uvit.embed_dim
    net = FeedFace(["in_blocks.0", "out_blocks.0"], width, 4, CLIP_CONFIG, width, control_input, mlp_ratio=2)
    for block in net.blocks:
        nn.init.normal_(block.zero_linear.weight, std=0.1)
    return net


def face_tokens(net: FeedFace, crops: Tensor, pool: str = "concat") -> Tensor:
    """Tokens [B,n,E] of crops [B,3,S,S], a person each, or of [B,F,3,S,S], F references of each."""
    crops = crops if crops.dim() == 5 else crops[:, None]
    features = net.features(crops.flatten(0, 1))
    return net.identity({name: x.unflatten(0, crops.shape[:2]) for name, x in features.items()}, pool)["tokens"]


def toy_clips(tokenizer, layers: int = 1):
    """A CLIP text tower (16 tokens of 16 numbers) and an image tower (32 px to 16 numbers)."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        projection_dim=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(text), CLIPVisionModelWithProjection(CLIPVisionConfig(**CLIP_CONFIG))


def toy_text_encoder(text_dim: int = 8) -> TextEncoder:
    """16 tokens of 16 numbers, then of `text_dim`; three layers."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = toy_tokenizer(folder)
    return TextEncoder(toy_clips(tokenizer, layers=3)[0], tokenizer, nn.Linear(16, text_dim))


def save_toy_clips(text_folder: Path, image_folder: Path) -> None:
    """Both as a download from the hub has them, the tokenizer beside the text tower."""
    text, image = toy_clips(toy_tokenizer(text_folder))
    with quiet_transformers():
        text.save_pretrained(text_folder)
        image.save_pretrained(image_folder)


def make_toy_bundle(folder: str | Path, seed: int = 0) -> Path:
    """Write the tiny bundle into `folder` and return it. Images of 64 px; no detector, so pass faces as crops."""
    from diffusers import AutoencoderKL

    folder = Path(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        uvit = toy_uvit()
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[8] * 4,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=IMAGE_SIZE,
            scaling_factor=1.0,
        )
        tokenizer = toy_tokenizer(folder / "tokenizer")
        text, image = toy_clips(tokenizer)
        parts = {
            "backbone": uvit,
            "method": toy_face_controlnet(uvit),
            "vae": LatentCodec(vae),
            "text_encoder": TextEncoder(text, tokenizer, nn.Linear(16, uvit.text_dim)),
            "image_encoder": ImageEncoder(image),
        }
    folders = {name: FOLDERS.get(name, name) for name in (*parts, "tokenizer")}
    for name, module in parts.items():
        save_component(name, module, folder / folders[name])
    write_index(
        folder,
        name="toy",
        image_size=IMAGE_SIZE,
        components=folders,
        defaults={"steps": 3, "guidance": 2.0, "face_scale": 1.0},
    )
    return folder


def toy_unet(prediction: str = "epsilon", **config):
    """Stable Diffusion 1's U-Net in small: two levels of widths 16 and 32, latents 4x8x8, text of 8 numbers a token."""
    from diffusers import UNet2DConditionModel

    from feedface.backbones.unet import UNet

    levels = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
    }
    small = {"sample_size": 8, "norm_num_groups": 8, "cross_attention_dim": 8, "attention_head_dim": 4}
    return UNet(UNet2DConditionModel(**{**levels, **small, **config}), prediction)

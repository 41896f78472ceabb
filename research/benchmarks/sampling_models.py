"""A model folder with the real structures and random weights, for `sampling.py`: time and memory do not depend on them.

    python research/benchmarks/sampling_models.py FOLDER [--size full]

Full size: UniDiffuser v1's U-ViT, the paper's face-controlnet, SD's KL-f8, CLIP ViT-L/14's text tower and ViT-B/32's
image towers, in half precision 4.0 GB. `sampling.py --size full` writes it by itself where there is none.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn
from training_models import SIZES, TEXT_DIM, Size, build_encoders, build_trained

from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import read_index, save_component, save_network, write_index
from feedface.checkpoints.parts import part_class, part_config
from feedface.checkpoints.storage import read_json
from feedface.common.errors import UserError, run_cli
from feedface.common.files import atomic_folder
from feedface.encoders import LatentCodec, TextEncoder, load_tokenizer
from feedface.methods.feedface import FaceControlNet

STD = 0.02


def write_random_bundle(folder: Path, size: Size, name: str) -> Path:
    """Write a model of `size` in half precision, whole or not at all; returns `folder`. No part of it is ever whole in
    single precision."""
    torch.manual_seed(0)
    meta = torch.device("meta")
    trained = build_trained(size, meta, torch.float16)
    encoders = build_encoders(size, meta, torch.float16)
    with meta:
        with_encoder = FaceControlNet(**trained.method.config)
    with atomic_folder(folder) as temporary:
        for kind, network in (("uvit", trained.backbone), ("face_controlnet", with_encoder)):
            state = {key: random_weights(key, value) for key, value in network.state_dict().items()}
            save_network(temporary / kind, network.config, state, None)
        save_component("vae", fill_randomly(encoders.vae), temporary / "vae")
        save_component("image_encoder", fill_randomly(encoders.image), temporary / "image_encoder")
        _write_text_encoder(temporary, size)
        components = ("uvit", "face_controlnet", "vae", "text_encoder", "image_encoder", "tokenizer")
        folders = {"backbone": "uvit", "method": "face_controlnet"} | {kind: kind for kind in components[2:]}
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


def _write_text_encoder(folder: Path, size: Size) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    # Byte-level letters, and words that nobody writes up to the size of the vocabulary.
    letters = [chr(i) for i in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100), *range(0x100, 0x144))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [f"<{number}>" for number in range(size.vocabulary - len(words) - 2)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "tokenizer").mkdir()
    CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[]).save_pretrained(
        folder / "tokenizer"
    )
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=size.clip_width,
        intermediate_size=4 * size.clip_width,
        num_hidden_layers=size.clip_layers,
        num_attention_heads=size.clip_width // 64 or 1,
        max_position_embeddings=size.text_tokens,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    with torch.device("meta"):
        clip, prefix = CLIPTextModel(config), nn.Linear(size.clip_width, TEXT_DIM)
    encoder = TextEncoder(fill_randomly(clip), load_tokenizer(folder / "tokenizer"), fill_randomly(prefix))
    save_component("text_encoder", encoder, folder / "text_encoder")


def networks_without_weights(model: Path) -> tuple[UViT, FaceControlNet, LatentCodec]:
    """What draws, as a model folder describes it, on the device "meta": FLOPs can be counted, nothing is computed."""
    from diffusers import AutoencoderKL

    parts = read_index(model).components
    with torch.device("meta"):
        uvit, net = (
            part_class(name, parts[name]).from_config(part_config(name, parts[name])) for name in ("backbone", "method")
        )
        vae = AutoencoderKL.from_config(read_json(parts["vae"] / "config.json"))
    return uvit.eval(), net.eval(), LatentCodec(vae).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to write; must not exist")
    parser.add_argument("--size", choices=SIZES, default="full", help="(default full)")
    args = parser.parse_args()
    if args.folder.exists():
        raise UserError(f"{args.folder}: exists already; remove it, or name another folder")
    write_random_bundle(args.folder, SIZES[args.size], f"random-{args.size}")
    print(f"written: {args.folder}")


if __name__ == "__main__":
    run_cli(main)

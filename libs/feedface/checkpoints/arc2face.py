"""AdaFace's teacher on disk: a model of this project with the method arc2face, or Arc2Face as its authors give it.

encoder/   config.json, model.safetensors or pytorch_model.bin: a CLIP text model that reads faces
arc2face/  config.json, diffusion_pytorch_model.safetensors: diffusers' U-Net
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.checkpoints.bundle import load_bundle
from feedface.checkpoints.clip_tokenizer import clip_tokenizer
from feedface.checkpoints.foreign import read_weights
from feedface.checkpoints.index import INDEX
from feedface.common.errors import UserError
from feedface.common.files import follow
from feedface.common.reading import foreign
from feedface.methods.arc2face import Arc2Face

ENCODER, NETWORK = "encoder", "arc2face"
TABLE = "embeddings.token_embedding.weight"
TEMPLATE, VECTORS, FACE_DIM, RECOGNISER = "photo of a", 16, 512, "antelopev2"
HEAD_WIDTH = 64  # of CLIP's attention heads


def read_teacher(path: str | os.PathLike) -> Arc2Face:
    """What reads faces, in float32; `UserError` for a folder that has none."""
    path = follow(path)
    if not (path / INDEX).is_file():
        tokenizer = clip_tokenizer()
        state = {key.removeprefix("text_model."): value for key, value in read_weights(encoder_file(path)).items()}
        ids = tokenizer(f"{TEMPLATE} id person", padding="max_length", max_length=22).input_ids
        start = 1 + len(tokenizer(TEMPLATE, add_special_tokens=False).input_ids)
        return arc2face_of(state, ids, start, VECTORS, FACE_DIM, recogniser=RECOGNISER)
    method = load_bundle(path, "cpu", torch.float32, ["method"]).method
    if not isinstance(method, Arc2Face):
        raise UserError(f"{path}: has the method {method.kind}; a teacher has arc2face")
    return method


def read_teacher_network(path: str | os.PathLike, device: torch.device) -> tuple[Backbone, nn.Module | None]:
    """Its backbone, frozen, and the linear that its texts pass before it, if there is one."""
    path = follow(path)
    if (path / INDEX).is_file():
        bundle = load_bundle(path, device, torch.float32, ["backbone", "text_encoder"])
        return bundle.backbone, bundle.text_encoder.prefix
    from diffusers import UNet2DConditionModel

    from feedface.backbones.unet import CONFIG, UNet
    from feedface.checkpoints.libraries import from_pretrained

    folder = path / NETWORK
    unet = from_pretrained(UNet2DConditionModel, folder, described=CONFIG, torch_dtype=torch.float32)
    with foreign(f"{folder}"):
        return UNet(unet).to(device).eval().requires_grad_(False), None


def encoder_file(path: Path) -> Path:
    """The weights of Arc2Face's text encoder: `path` itself, or in this folder or its `encoder/`."""
    if not path.is_dir():
        return path
    for folder in (path, path / ENCODER):
        for name in ("model.safetensors", "pytorch_model.bin"):
            if (folder / name).is_file():
                return folder / name
    raise UserError(f"{path}: has no model.safetensors or pytorch_model.bin of Arc2Face's text encoder (encoder/)")


def arc2face_of(
    state: Mapping[str, Tensor],
    ids: list[int],
    start: int,
    vectors: int,
    face_dim: int,
    heads: int | None = None,
    recogniser: str = RECOGNISER,
    source: object = "Arc2Face's text encoder",
) -> Arc2Face:
    """An `Arc2Face` of a CLIP text model's weights, their names without "text_model.".

    `ids` are the tokens that it reads; at `start` stands the face.
    """
    width, tower = tower_of(state, heads, source)
    with foreign(f"{source}: does not describe an Arc2Face"):
        method = Arc2Face(width, tower, face_dim, start, vectors, recogniser)
    method.reader.tower.load(dict(state), source)
    with torch.no_grad():
        method.reader.template.copy_(state[TABLE][ids[: start + vectors]])
    return method.eval().requires_grad_(False)


def tower_of(state: Mapping[str, Tensor], heads: int | None, source: object) -> tuple[int, dict[str, int]]:
    """Width and shape of the tower that these weights are of; `UserError` if they are none of CLIP's kind."""
    for key in (TABLE, "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.bias"):
        if key not in state:
            raise UserError(f"{source}: has no {key}, so it is no text encoder of CLIP's kind")
    width = state[TABLE].shape[1]
    return width, {
        "layers": sum(key.endswith(".layer_norm1.weight") for key in state),
        "heads": heads or max(1, width // HEAD_WIDTH),
        "mlp": len(state["encoder.layers.0.mlp.fc1.bias"]),
        "positions": len(state["embeddings.position_embedding.weight"]),
    }

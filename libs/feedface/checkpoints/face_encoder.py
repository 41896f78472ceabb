"""The frozen face encoder by itself: out of a CLIP vision folder, a FeedFace method's folder, or a bundle.

Training keeps it apart from what is trained, and from memory altogether once faces are encoded.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from feedface.checkpoints.bundle import INDEX, read_index
from feedface.checkpoints.libraries import from_pretrained, read_library_config
from feedface.checkpoints.parts import part_config
from feedface.checkpoints.storage import empty, fill, read_json, read_safetensors
from feedface.common.errors import UserError
from feedface.common.files import follow
from feedface.common.reading import foreign

if TYPE_CHECKING:  # heavy, and only named here
    from transformers import CLIPVisionModel

# Arguments of `CLIPVisionConfig` that shape the network; the rest of a stored config is bookkeeping.
CLIP_KEYS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps",
)  # fmt: skip
PREFIX = "face_encoder."


def find_face_encoder(path: str | os.PathLike) -> Path:
    """The folder that `load_face_encoder` takes: `path` itself, or the method of the bundle `path`."""
    path = follow(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; it must hold a CLIP vision model, or be a model folder")
    if not (path / INDEX).is_file():
        return path
    components = read_index(path).components
    if "method" not in components:
        raise UserError(f"{path}: has no method, so no face encoder either")
    return components["method"]


def is_face_controlnet(folder: Path) -> bool:
    """Whether `folder` holds a FeedFace method, with its encoder inside, and not a bare CLIP vision model."""
    return "clip_config" in read_json(folder / "config.json")


def clip_config(folder: Path) -> dict[str, Any]:
    """Arguments for `transformers.CLIPVisionConfig`, without loading weights."""
    if is_face_controlnet(folder):
        return part_config("method", folder)["clip_config"]
    from transformers import CLIPVisionConfig, CLIPVisionModel

    read_library_config(CLIPVisionModel, folder)
    with foreign(f"{folder}: no CLIP vision model"):
        config = CLIPVisionConfig.from_pretrained(folder, local_files_only=True)
    return {key: getattr(config, key) for key in CLIP_KEYS}


def load_face_encoder(folder: Path, device: str | torch.device, dtype: torch.dtype) -> "CLIPVisionModel":
    """The frozen encoder, ready to infer. `UserError`: missing, not safetensors, or weights that do not fit."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    if is_face_controlnet(folder):
        file = folder / "model.safetensors"
        state = {
            name.removeprefix(PREFIX): value
            for name, value in read_safetensors(file, device, dtype).items()
            if name.startswith(PREFIX)
        }
        with foreign(f"{folder}: does not describe a CLIPVisionModel"):
            config = CLIPVisionConfig(**clip_config(folder))
        encoder = fill(empty(CLIPVisionModel, {"config": config}, folder), state, file)
    else:  # a whole CLIP will do, too
        encoder = from_pretrained(CLIPVisionModel, folder, whole=False, dtype=dtype)
    return encoder.to(device).eval().requires_grad_(False)

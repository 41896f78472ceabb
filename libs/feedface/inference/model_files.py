"""Which files a model is made of, wherever the user keeps them.

`model` is one of
- a folder of this project, with model_index.json: models/mini, a converted bundle, a training checkpoint;
- a folder with the authors' files: uvit_v1.pth, autoencoder_kl.pth, caption_decoder.pth and feed-4800000.pt. Their text
  encoder, CLIP ViT-L/14, is taken from its clip-vit-large-patch14/ if there is one, else from the model hub.

`ckpt_path` stands for another face-controlnet than the model's own: the authors' adapter file, a face_controlnet
folder, or the one of another folder with model_index.json, such as a training checkpoint.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from feedface.checkpoints.bundle import INDEX, Bundle, check_parts, load_bundle, read_index
from feedface.checkpoints.official import HOME, load_face_controlnet
from feedface.checkpoints.release import FILES, TEXT_ENCODER, is_release, load_release
from feedface.checkpoints.storage import load_network
from feedface.common.errors import UserError
from feedface.common.files import follow
from feedface.encoders import TEXT_PROJECTION
from feedface.inference.acceleration import channels_last
from feedface.methods.feedface import FaceControlNet

# What decides how a picture comes out; a bundle's other parts (faces, inspector, image encoder) do not.
DRAWING_NETWORKS = ("uvit", "face_controlnet", "vae", "text_encoder")
SAMPLE_BYTES = 1 << 20


def own_model(ckpt_path: str | os.PathLike | None) -> Path | None:
    """The model that a `ckpt_path` belongs to: itself (a training checkpoint), or the authors' files beside it."""
    if ckpt_path is None:
        return None
    path = follow(ckpt_path)
    if (path / INDEX).is_file():
        return path
    return path.parent if path.is_file() and is_release(path.parent) else None


def load_model(
    model: str | os.PathLike,
    ckpt_path: str | os.PathLike | None,
    device: torch.device,
    dtype: torch.dtype,
    control: Mapping[str, Any] | None = None,
    low_memory: bool = False,
) -> Bundle:
    """Load what is needed to draw. `components` of the result name the files each part came from.

    Args:
        model, ckpt_path: see above.
        device, dtype: where and in what is computed.
        control: how an adapter file in the authors' naming is built, where it differs from theirs: sites, num_heads,
            control_input, mlp_ratio, as in the `control` section of a training config.
        low_memory: read each part when it is used and drop it after (`low_memory.LowMemoryBundle`): for little memory,
            not for speed.

    Raises:
        UserError: names what is missing, broken, not to be trusted, or does not fit.
    """

    def read(kinds: Sequence[str], device: torch.device, dtype: torch.dtype | None) -> Bundle:
        return _read(follow(model), ckpt_path, kinds, device, dtype, control)

    if not low_memory:
        return read(DRAWING_NETWORKS, device, dtype)
    from feedface.inference.low_memory import LowMemoryBundle

    return LowMemoryBundle(read(DRAWING_NETWORKS, torch.device("meta"), None), read, device, dtype)


def _read(
    model: Path,
    ckpt_path: str | os.PathLike | None,
    kinds: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None,
    control: Mapping[str, Any] | None,
) -> Bundle:
    """Some of the parts of a model; dtype None: as stored."""
    if ckpt_path is None:
        return _load_parts(model, kinds, device, dtype)
    ckpt = follow(ckpt_path)
    if not ckpt.exists():
        raise UserError(f"--ckpt_path {ckpt}: no such file or folder; models/README.md says where weights come from")
    bundle = _load_parts(model, [kind for kind in kinds if kind != "face_controlnet"], device, dtype)
    bundle.components["face_controlnet"] = ckpt
    # The model's few-step adapter was made for its own face-controlnet.
    bundle.components.pop("few_step", None)
    if "face_controlnet" not in kinds:
        return bundle
    if ckpt.is_dir():
        folder = read_index(ckpt).components.get("face_controlnet", ckpt) if (ckpt / INDEX).is_file() else ckpt
        net = load_network(FaceControlNet, folder, device, dtype)
    else:
        net = load_face_controlnet(ckpt, **(control or {})).to(device, dtype)
    bundle.face_controlnet = net.to(device).eval().requires_grad_(False)
    check_parts(bundle)
    return bundle


def _load_parts(path: Path, parts: Sequence[str], device: torch.device, dtype: torch.dtype | None) -> Bundle:
    if path.is_dir() and not (path / INDEX).is_file() and not is_release(path):
        raise UserError(
            f"{path}: holds neither a model of this project ({INDEX}) nor the authors' four files "
            f"({', '.join(FILES.values())}), which come from {HOME}; models/README.md says more"
        )
    if (path / INDEX).is_file() or not is_release(path):
        bundle = load_bundle(path, device, dtype, components=parts)
    else:
        local = path / TEXT_ENCODER.rpartition("/")[2]
        text_encoder = str(local) if local.is_dir() else TEXT_ENCODER
        bundle = load_release(path, text_encoder=text_encoder, components=parts, device=device, dtype=dtype)
    if bundle.vae is not None and device.type == "cuda":
        channels_last(bundle.vae)
    return bundle


def model_digest(bundle: Bundle) -> str:
    """Changes when the weights do: a hash of the size, the first and the last megabyte of each file.

    Not of all bytes, which takes minutes at full size; a trained tensor anywhere changes those anyway.
    """
    digest = hashlib.sha256()
    for kind in (*DRAWING_NETWORKS, "tokenizer"):
        root = bundle.components.get(kind)
        if root is None:  # the authors' files have no tokenizer of their own
            continue
        for path in sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]:
            if path.name == TEXT_PROJECTION:  # only judges use it
                continue
            size = path.stat().st_size
            digest.update(f"{kind}/{path.name}:{size}".encode())
            with open(path, "rb") as file:
                digest.update(file.read(SAMPLE_BYTES))
                file.seek(max(size - SAMPLE_BYTES, 0))
                digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]

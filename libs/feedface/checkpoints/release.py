"""The authors' release as one model: a folder with their four files, read as a bundle, or converted into one."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedface.backbones.base import backbone_class
from feedface.checkpoints import official
from feedface.checkpoints.bundle import Bundle, check_parts, save_component, write_index
from feedface.checkpoints.index import INDEX, Defaults
from feedface.checkpoints.libraries import from_pretrained
from feedface.checkpoints.parts import NETWORKS
from feedface.checkpoints.storage import quiet_transformers
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder, load_tokenizer

FILES = {
    "backbone": "uvit_v1.pth",
    "vae": "autoencoder_kl.pth",
    "text_encoder": "caption_decoder.pth",
    "method": "feed-4800000.pt",
}
TEXT_ENCODER, IMAGE_ENCODER = "openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Architecture:
    """Arguments of the `official.load_…` functions where they differ from the authors' model: for tests."""

    image_size: int = 512
    backbone: Mapping[str, Any] = field(default_factory=dict)
    method: Mapping[str, Any] = field(default_factory=dict)
    vae: Mapping[str, Any] = field(default_factory=dict)
    text_prefix: Mapping[str, Any] = field(default_factory=dict)


RELEASE = Architecture()


def is_release(folder: str | os.PathLike) -> bool:
    """Whether the folder holds any of the authors' files (and so should hold them all)."""
    return any((Path(folder) / file).is_file() for file in FILES.values())


def load_release(
    folder: str | os.PathLike,
    *,
    text_encoder: str = TEXT_ENCODER,
    image_encoder: str = IMAGE_ENCODER,
    components: Iterable[str] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    architecture: Architecture = RELEASE,
) -> Bundle:
    """Load the authors' files in `folder` as a `Bundle`; dtype None keeps what the files hold.

    `components`: some of `NETWORKS`; by default all but the image encoder, which only training needs. `text_encoder`
    and `image_encoder` are folders with CLIP ViT-L/14 and ViT-B/32, or their names on the model hub.
    """
    folder = Path(folder)
    wanted = [name for name in NETWORKS if name != "image_encoder"] if components is None else list(components)
    missing = [FILES[name] for name in wanted if name in FILES and not (folder / FILES[name]).is_file()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)} of the authors' release; get it from {official.HOME}")
    bundle = Bundle(
        folder,
        folder.resolve().name,
        architecture.image_size,
        {**Defaults().model_dump(exclude_none=True), "uncond": backbone_class("uvit").uncond_modes[0]},
        components={name: folder / file for name, file in FILES.items()},
        kinds={"backbone": "uvit", "method": "feedface"},
    )
    clips = {"text_encoder": text_encoder, "image_encoder": image_encoder}
    for name in wanted:
        module = _LOADERS[name](bundle.components, architecture, clips)
        setattr(bundle, name, module.to(device, dtype).eval().requires_grad_(False))
    check_parts(bundle)
    return bundle


def _load_text_encoder(files: dict[str, Path], architecture: Architecture, clips: Mapping[str, str]) -> TextEncoder:
    from transformers import CLIPTextModel

    files["tokenizer"] = _tokenizer_folder(clips["text_encoder"])
    clip = _load_clip(CLIPTextModel, clips["text_encoder"], "--text_encoder")
    prefix = {"in_features": clip.config.hidden_size, **architecture.text_prefix}
    prefix = official.load_text_prefix(files["text_encoder"], **prefix)
    return TextEncoder(clip, load_tokenizer(files["tokenizer"]), prefix)


def _load_image_encoder(files: dict[str, Path], architecture: Architecture, clips: Mapping[str, str]) -> ImageEncoder:
    from transformers import CLIPVisionModelWithProjection

    files["image_encoder"] = Path(clips["image_encoder"])
    return ImageEncoder(_load_clip(CLIPVisionModelWithProjection, clips["image_encoder"], "--image_encoder"))


# (files by part, architecture, the CLIPs' folders or names) -> module; what files it takes besides, it adds
_LOADERS = {
    "backbone": lambda files, shape, _: official.load_uvit(files["backbone"], **shape.backbone),
    "method": lambda files, shape, _: official.load_face_controlnet(files["method"], **shape.method),
    "vae": lambda files, shape, _: LatentCodec(official.load_vae(files["vae"], **shape.vae)),
    "text_encoder": _load_text_encoder,
    "image_encoder": _load_image_encoder,
}


def convert(
    source: str | os.PathLike,
    target: str | os.PathLike,
    *,
    text_encoder: str = TEXT_ENCODER,
    image_encoder: str = IMAGE_ENCODER,
    dtype: torch.dtype | None = None,
    architecture: Architecture = RELEASE,
) -> None:
    """Write the authors' files in `source` as the bundle `target`, in `dtype` (None: as they are); all or nothing."""
    target = Path(target)
    if target.exists() and not (target / INDEX).is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(
            f"{target}: exists and is not a converted model; choose a new folder, such as {target}/feedface-v1"
        )
    bundle = load_release(
        source,
        text_encoder=text_encoder,
        image_encoder=image_encoder,
        components=NETWORKS,
        dtype=None,
        architecture=architecture,
    )
    folders = {name: bundle.kinds.get(name, name) for name in (*NETWORKS, "tokenizer")}
    with atomic_folder(target) as temporary:
        for name in NETWORKS:
            save_component(name, getattr(bundle, name), temporary / folders[name], dtype)
        save_component("tokenizer", bundle.text_encoder.tokenizer, temporary / folders["tokenizer"])
        write_index(temporary, name=target.name, image_size=bundle.image_size, components=folders)


def _tokenizer_folder(source: str) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    # the hub name would do for transformers, but where files are missing it makes a tokenizer of two tokens
    try:
        return Path(snapshot_download(source, allow_patterns=["*.json", "*.txt"]))
    except Exception as error:  # offline, unknown, malformed: an exception of its own for each
        raise _no_clip(source, "--text_encoder", error) from error


def _no_clip(source: str, option: str, error: Exception) -> UserError:
    usual = TEXT_ENCODER if option == "--text_encoder" else IMAGE_ENCODER
    return UserError(
        f"{source}: no CLIP model to be had from it ({type(error).__name__}); download https://huggingface.co/{usual} "
        f"and give its folder with {option}"
    )


def _load_clip(kind: type, source: str, option: str) -> nn.Module:
    """One tower of a CLIP model, from a folder (also of the whole model) or a name on the hub."""
    if Path(source).is_dir():
        return from_pretrained(kind, Path(source), whole=False, dtype="auto")
    try:
        with quiet_transformers():
            clip, info = kind.from_pretrained(source, dtype="auto", output_loading_info=True)
    except Exception as error:  # transformers raises nearly every kind for what it cannot find or read
        raise _no_clip(source, option, error) from error
    lost = [*(info.get("missing_keys") or ()), *(info.get("mismatched_keys") or ())]
    if lost:
        raise UserError(f"{source}: {len(lost)} weights of {kind.__name__} missing or misshapen: {lost[:3]}")
    return clip

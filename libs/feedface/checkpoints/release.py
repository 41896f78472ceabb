"""The authors' release as one model: a folder with their four files, read as a bundle, or converted into one."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedface.checkpoints import official
from feedface.checkpoints.bundle import INDEX, NETWORKS, Bundle, check_parts, save_component, write_index
from feedface.checkpoints.index import Defaults
from feedface.checkpoints.libraries import from_pretrained
from feedface.checkpoints.storage import quiet_transformers
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder, load_tokenizer

UVIT_FILE, VAE_FILE, TEXT_FILE, FACE_FILE = (
    "uvit_v1.pth",
    "autoencoder_kl.pth",
    "caption_decoder.pth",
    "feed-4800000.pt",
)
FILES = {"uvit": UVIT_FILE, "vae": VAE_FILE, "text_encoder": TEXT_FILE, "face_controlnet": FACE_FILE}
TEXT_ENCODER, IMAGE_ENCODER = "openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32"


@dataclass(frozen=True)
class Architecture:
    """Arguments of the `official.load_…` functions where they differ from the authors' model: for tests."""

    image_size: int = 512
    uvit: Mapping[str, Any] = field(default_factory=dict)
    face_controlnet: Mapping[str, Any] = field(default_factory=dict)
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
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection

    folder = Path(folder)
    wanted = [kind for kind in NETWORKS if kind != "image_encoder"] if components is None else list(components)
    missing = [FILES[kind] for kind in wanted if kind in FILES and not (folder / FILES[kind]).is_file()]
    if missing:
        raise UserError(f"{folder}: lacks {', '.join(missing)} of the authors' release; get it from {official.HOME}")
    sources = {kind: folder / file for kind, file in FILES.items()}
    bundle = Bundle(
        folder, folder.resolve().name, architecture.image_size, Defaults().model_dump(exclude_none=True), sources
    )
    for kind in wanted:
        if kind == "uvit":
            module = official.load_uvit(sources[kind], **architecture.uvit)
        elif kind == "face_controlnet":
            module = official.load_face_controlnet(sources[kind], **architecture.face_controlnet)
        elif kind == "vae":
            module = LatentCodec(official.load_vae(sources[kind], **architecture.vae))
        elif kind == "text_encoder":
            sources["tokenizer"] = _tokenizer_folder(text_encoder)
            clip = _load_clip(CLIPTextModel, text_encoder, "--text_encoder")
            prefix = {"in_features": clip.config.hidden_size, **architecture.text_prefix}
            prefix = official.load_text_prefix(sources[kind], **prefix)
            module = TextEncoder(clip, load_tokenizer(sources["tokenizer"]), prefix)
        else:
            sources["image_encoder"] = Path(image_encoder)
            module = ImageEncoder(_load_clip(CLIPVisionModelWithProjection, image_encoder, "--image_encoder"))
        setattr(bundle, kind, module.to(device, dtype).eval().requires_grad_(False))
    check_parts(bundle)
    return bundle


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
    with atomic_folder(target) as temporary:
        for kind in NETWORKS:
            save_component(kind, getattr(bundle, kind), temporary / kind, dtype)
        save_component("tokenizer", bundle.text_encoder.tokenizer, temporary / "tokenizer")
        write_index(
            temporary,
            name=target.name,
            image_size=bundle.image_size,
            components={kind: kind for kind in (*NETWORKS, "tokenizer")},
        )


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

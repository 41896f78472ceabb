"""What models are made of: one table says how each part is read from its folder and written into one.

Backbone and method are networks of ours: their folder's config.json names their kind, which finds their class, so that
a new kind needs nothing here. The other parts are those of transformers and diffusers. In the place of its own folder a
part may have a Stable Diffusion, as a folder or a single file, and is then taken from that (`stable_diffusion.py`).
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from feedface.backbones.base import backbone_class
from feedface.checkpoints.libraries import from_pretrained
from feedface.checkpoints.storage import (
    WEIGHT_FILES,
    cast_state,
    empty,
    fill,
    load_network,
    quiet_transformers,
    read_config,
    read_json,
    read_safetensors,
    write_json,
    write_state,
)
from feedface.common.errors import UserError
from feedface.common.reading import foreign
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder, load_tokenizer
from feedface.methods.base import method_class

SEAM = ("backbone", "method")
SHARED = ("vae", "text_encoder", "tokenizer", "image_encoder")
# Only found, not loaded, here: an adapter for drawing in few steps (`few_step.py`); an insightface root, the recogniser
# in it as a network (`faces/recogniser_net.py`), a face parser (`faces/parse.py`), the judge of the evaluation.
ADAPTERS, EXTRAS = ("few_step",), ("faces", "recogniser", "parser", "inspector")

Folders = Mapping[str, Path]
Dtype = torch.dtype | None  # None: as stored


def is_stable_diffusion(path: str | os.PathLike) -> bool:
    """Whether `open_stable_diffusion` is the one to ask about it: a diffusers folder, or a file of weights."""
    path = Path(path)
    return (path / "unet").is_dir() or (path.is_file() and path.suffix in WEIGHT_FILES)


# ------------------------------------------------------------------------------------------------- backbone and method

V1_KINDS = {"backbone": "uvit", "method": "feedface"}  # of the models of version 1, whose folders do not name it


def part_class(name: str, folder: Path) -> type[nn.Module]:
    """The class of the backbone or method in `folder`; `UserError` for a kind that is not known here."""
    if is_stable_diffusion(folder):
        if name == "method":
            raise UserError(f"{folder}: a Stable Diffusion (a backbone), not a method; give it as the model (--model)")
        return backbone_class("unet")
    if name == "method" and (net := _reference_net(folder)):
        return net
    file, kind = folder / "config.json", V1_KINDS[name]
    if file.is_file():  # else whoever reads it says so
        kind = read_json(file).get("kind", kind)
    return kind_class(name, kind, file)


def kind_class(name: str, kind: object, source: Path) -> type[nn.Module]:
    """The class of a backbone's or method's kind as the file `source` names it; `UserError` for one unknown here."""
    if not isinstance(kind, str):
        raise UserError(f'{source}: "kind" must be a string, not {kind!r:.60}')
    try:
        return {"backbone": backbone_class, "method": method_class}[name](kind)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def part_config(name: str, folder: Path) -> dict[str, Any]:
    """The checked config of the backbone or method in `folder`, without its kind."""
    return read_config(part_class(name, folder), folder)


def _load_seam(name: str, folders: Folders, device: str | torch.device, dtype: Dtype) -> nn.Module:
    folder = folders[name]
    kind = part_class(name, folder)
    if is_stable_diffusion(folder):
        return _stable_diffusion(folder).unet(device, dtype)
    if name == "method" and _reference_net(folder):
        from feedface.checkpoints.flashface import load_reference_net  # brings in diffusers

        return load_reference_net(folder, device, dtype)
    return load_network(kind, folder, device, dtype)


def _reference_net(folder: Path) -> type[nn.Module] | None:
    """FlashFace's class where the folder holds the authors' form of it, a bare U-Net."""
    file = folder / "config.json"
    bare = file.is_file() and read_json(file).get("_class_name") == "UNet2DConditionModel"
    return method_class("flashface") if bare else None


def _save_seam(module: nn.Module, folder: Path, dtype: Dtype) -> None:
    write_json(folder / "config.json", {"kind": module.kind, **module.config})
    write_state(folder / "model.safetensors", module.state_dict(), dtype)


# ------------------------------------------------------------------------------------------------------ the libraries'


def _stable_diffusion(path: Path):
    from feedface.checkpoints.stable_diffusion import open_stable_diffusion  # brings in diffusers

    return open_stable_diffusion(path)


def _load_vae(folders: Folders, device: str | torch.device, dtype: Dtype) -> LatentCodec:
    from diffusers import AutoencoderKL

    folder = folders["vae"]
    if is_stable_diffusion(folder):
        return _stable_diffusion(folder).vae(device, dtype)
    vae = from_pretrained(AutoencoderKL, folder, torch_dtype=dtype)
    with foreign(f"{folder}"):
        return LatentCodec(vae)


def _save_vae(module: nn.Module, folder: Path, dtype: Dtype) -> None:
    vae = module.vae if isinstance(module, LatentCodec) else module
    vae.save_config(folder)
    config = read_json(folder / "config.json")
    config.pop("_name_or_path", None)  # where it was loaded from: nobody else has that folder
    write_json(folder / "config.json", config)
    write_state(folder / "diffusion_pytorch_model.safetensors", vae.state_dict(), dtype)


def _load_text_encoder(folders: Folders, device: str | torch.device, dtype: Dtype) -> TextEncoder:
    from transformers import CLIPTextModel

    folder = folders["text_encoder"]
    if is_stable_diffusion(folder):
        return _stable_diffusion(folder).text_encoder(device, dtype)
    if "tokenizer" not in folders:
        raise UserError(f'{folder}: the text encoder needs a tokenizer, and the index\'s "parts" name none')
    clip = from_pretrained(CLIPTextModel, folder, dtype=dtype)
    return TextEncoder(clip, load_tokenizer(folders["tokenizer"]), _load_prefix(folder, dtype))


def _load_prefix(folder: Path, dtype: Dtype) -> nn.Linear | None:
    file = folder / "prefix.safetensors"
    if not file.is_file():
        return None
    state = read_safetensors(file, "cpu", dtype)
    if "weight" not in state or state["weight"].dim() != 2:
        raise UserError(f'{file}: holds no matrix "weight"')
    text_dim, width = state["weight"].shape
    return fill(empty(nn.Linear, {"in_features": width, "out_features": text_dim}, file), state, file)


def _load_image_encoder(folders: Folders, device: str | torch.device, dtype: Dtype) -> ImageEncoder:
    from transformers import CLIPVisionModelWithProjection

    return ImageEncoder(from_pretrained(CLIPVisionModelWithProjection, folders["image_encoder"], dtype=dtype))


def _save_clip(module: TextEncoder | ImageEncoder, folder: Path, dtype: Dtype) -> None:
    with quiet_transformers():
        module.clip.save_pretrained(folder, state_dict=cast_state(module.clip.state_dict(), dtype))
    if getattr(module, "prefix", None) is not None:
        write_state(folder / "prefix.safetensors", module.prefix.state_dict(), dtype)


# ----------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Part:
    """`load(folders, device, dtype)` gives a module; `save(module, folder, dtype)` writes it into an empty folder."""

    load: Callable[[Folders, str | torch.device, Dtype], nn.Module] | None = None
    save: Callable[[Any, Path, Dtype], None] | None = None


PARTS = {
    "backbone": Part(partial(_load_seam, "backbone"), _save_seam),
    "method": Part(partial(_load_seam, "method"), _save_seam),
    "vae": Part(_load_vae, _save_vae),
    "text_encoder": Part(_load_text_encoder, _save_clip),
    "image_encoder": Part(_load_image_encoder, _save_clip),
    "tokenizer": Part(save=lambda tokenizer, folder, dtype: tokenizer.save_pretrained(folder)),
    **{name: Part() for name in (*ADAPTERS, *EXTRAS)},
}
NETWORKS = tuple(name for name, part in PARTS.items() if part.load)


def load_part(name: str, folders: Folders, device: str | torch.device, dtype: Dtype) -> nn.Module:
    """A network, ready to infer; `UserError` for what is missing, broken or does not fit."""
    return PARTS[name].load(folders, device, dtype).to(device).eval().requires_grad_(False)

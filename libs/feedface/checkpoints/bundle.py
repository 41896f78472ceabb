"""Bundles: a model as a folder of safetensors and JSON, each part in its own folder, named by `model_index.json`.

A part may also lie elsewhere: a training checkpoint holds the face-controlnet it trained and points to the frozen parts
of the bundle it started from. Nothing here reads a pickle.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from feedface.backbones.uvit import UViT
from feedface.checkpoints.few_step import COMPONENT, FewStep, adapted, read_few_step
from feedface.checkpoints.index import DEFAULTS, FORMAT, INDEX, NETWORKS, VERSION, Defaults, read_index_file
from feedface.checkpoints.libraries import from_pretrained, read_library_config
from feedface.checkpoints.storage import (
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
from feedface.common.files import atomic_file, atomic_folder, follow
from feedface.common.reading import foreign
from feedface.common.validation import check_as
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder, latent_factor, load_tokenizer
from feedface.methods.feedface import FaceControlNet


@dataclass
class Bundle:
    """The parts of a model that were asked for; the others are None.

    `image_size` is the side in pixels that the model was trained at. `defaults`: guidance (the g of
    ε_u + g (ε_c − ε_u)), face_scale, uncond; perhaps steps and preset (`settings.Settings`). `faces_root` is an
    insightface root, where the bundle has its own pack. `lock`: held by whoever draws or encodes, so that threads take
    turns: tokenizers keep settings between calls, and memory is for one batch.
    """

    path: Path
    name: str
    image_size: int
    defaults: dict[str, Any]
    components: dict[str, Path]
    uvit: UViT | None = None
    face_controlnet: FaceControlNet | None = None
    vae: LatentCodec | None = None
    text_encoder: TextEncoder | None = None
    image_encoder: ImageEncoder | None = None
    lock: RLock = field(default_factory=RLock, init=False, repr=False, compare=False)
    _adapted: tuple[UViT, FaceControlNet] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def faces_root(self) -> Path | None:
        return self.components.get("faces")

    @property
    def size_multiple(self) -> int:
        """Both sides of a picture must be multiples of so many pixels: a latent cell's times a patch's side.

        Read from the parts' descriptions where they are not loaded.
        """
        if self.vae is not None and self.uvit is not None:
            return self.vae.factor * self.uvit.patch_size
        from diffusers import AutoencoderKL

        vae, uvit = self.components["vae"], read_config(UViT, self.components["uvit"])
        with foreign(f"{vae}: lacks a size"):
            return latent_factor(read_library_config(AutoencoderKL, vae)) * uvit["patch_size"]

    @cached_property
    def few_step(self) -> FewStep | None:
        """The model's few-step adapter; None where it has none."""
        folder = self.components.get(COMPONENT)
        return None if folder is None else read_few_step(folder)

    def networks(self, few_step: bool = False) -> tuple[UViT, FaceControlNet]:
        """U-ViT and face-controlnet as they are evaluated at each step; `few_step`: with the adapter in them.

        These are a second pair, made when it is first asked for; it takes the memory of what the adapter changes.
        """
        if not few_step:
            return self.uvit, self.face_controlnet
        with self.lock:
            if self._adapted is None:
                adapter = self._checked_adapter()
                # What is made in inference mode could not be changed outside of it.
                with torch.inference_mode(False), torch.no_grad():
                    pair = (adapted(adapter, kind, getattr(self, kind)) for kind in ("uvit", "face_controlnet"))
                    self._adapted = tuple(pair)
            return self._adapted

    def _checked_adapter(self) -> FewStep:
        if self.few_step is None:
            raise UserError(f"{self.path}: this model has no few-step adapter; docs/few_steps.md says how one is made")
        return self.few_step

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        with self.lock:
            self._adapted = None
            for kind in NETWORKS:
                if (module := getattr(self, kind)) is not None:
                    module.to(device)

    @contextmanager
    def hold(self, *kinds: str) -> Iterator[None]:
        """Inside the `with`, change these parts: a `LowMemoryBundle` will not read them from their files again."""
        yield


# ---------------------------------------------------------------------------------------------------------- reading


def read_index(path: str | os.PathLike) -> Bundle:
    """Read and check `model_index.json` of the bundle `path`, without loading any part."""
    path = follow(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder; see models/README.md for where models come from")
    file = path / INDEX
    if not file.is_file():
        raise UserError(
            f"{path}: no {INDEX} in it, so not a model of this project; the authors' files are made into one by "
            f"`python -m feedface.checkpoints convert`"
        )
    index = read_index_file(file)
    components = {kind: path / folder for kind, folder in index.components.items()}  # absolute ones stay as they are
    return Bundle(path, index.name, index.image_size, index.defaults.model_dump(exclude_none=True), components)


def load_bundle(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    components: Iterable[str] | None = None,
) -> Bundle:
    """Load a bundle's networks to `device` in `dtype`, whatever they are stored in, ready to infer.

    `components` limits it to some of `NETWORKS`; by default all that the bundle has, which must then be enough to
    generate (all but the image encoder). Weights are mapped from disk and cast one tensor at a time, so that memory
    never holds them twice; dtype None keeps what is stored; device "meta" checks the networks' files without reading
    their weights. Raises `UserError` naming the file, key or folder that is missing or does not fit.
    """
    bundle = read_index(path)
    if components is None:
        wanted = [kind for kind in NETWORKS if kind != "image_encoder" or kind in bundle.components]
    else:
        wanted = list(components)
    for kind in wanted:
        if kind not in NETWORKS:
            raise ValueError(f"unknown component {kind!r}; known are {', '.join(NETWORKS)}")
        if kind not in bundle.components:
            raise UserError(f'{bundle.path / INDEX}: "components" has no "{kind}", which is needed here')
        setattr(bundle, kind, _load_component(kind, bundle, device, dtype))
    check_parts(bundle)
    return bundle


def check_parts(bundle: Bundle) -> None:
    """`UserError` unless the loaded parts belong together."""
    uvit = bundle.uvit
    if uvit is None:
        return
    if bundle.face_controlnet is not None:
        check_fit(uvit, bundle.face_controlnet, bundle.components["face_controlnet"])
    sizes = []  # part, what of it, its size, the U-ViT's
    if bundle.text_encoder is not None:
        text = bundle.text_encoder
        sizes += [("text_encoder", "tokens", text.num_tokens, uvit.num_text_tokens)]
        sizes += [("text_encoder", "numbers a token", text.text_dim, uvit.text_dim)]
    if bundle.image_encoder is not None:
        numbers = bundle.image_encoder.clip.config.projection_dim
        sizes += [("image_encoder", "numbers an image", numbers, uvit.clip_img_dim)]
    if bundle.vae is not None:
        sizes += [("vae", "latent channels", bundle.vae.vae.config.latent_channels, uvit.in_chans)]
    for kind, what, size, needed in sizes:
        if size != needed:
            raise UserError(f"{bundle.components[kind]}: gives {size} {what}, but the U-ViT takes {needed}")


def check_fit(uvit: UViT, net: FaceControlNet, source: Path) -> None:
    """`UserError` unless the face-controlnet has the backbone's width and only sites that exist in it."""
    unknown = [site for site in net.sites if site not in uvit.block_names]
    if unknown or net.embed_dim != uvit.embed_dim:
        problem = f"sites {unknown} do not exist" if unknown else f"width {net.embed_dim} is not {uvit.embed_dim}"
        raise UserError(f"{source}: this face-controlnet belongs to another U-ViT: {problem}")


def _load_component(kind: str, bundle: Bundle, device: str | torch.device, dtype: torch.dtype | None) -> nn.Module:
    folder = bundle.components[kind]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder, but {bundle.path / INDEX} names it as its {kind}")
    if kind == "uvit":
        module = load_network(UViT, folder, device, dtype)
    elif kind == "face_controlnet":
        module = load_network(FaceControlNet, folder, device, dtype)
    elif kind == "vae":
        from diffusers import AutoencoderKL

        vae = from_pretrained(AutoencoderKL, folder, torch_dtype=dtype)
        with foreign(f"{folder}"):
            module = LatentCodec(vae)
    elif kind == "text_encoder":
        from transformers import CLIPTextModel

        clip = from_pretrained(CLIPTextModel, folder, dtype=dtype)
        if "tokenizer" not in bundle.components:
            raise UserError(f'{bundle.path / INDEX}: "components" has no "tokenizer", which the text encoder needs')
        module = TextEncoder(clip, load_tokenizer(bundle.components["tokenizer"]), _load_prefix(folder, dtype))
    else:
        from transformers import CLIPVisionModelWithProjection

        module = ImageEncoder(from_pretrained(CLIPVisionModelWithProjection, folder, dtype=dtype))
    return module.to(device).eval().requires_grad_(False)


def _load_prefix(folder: Path, dtype: torch.dtype | None) -> nn.Linear | None:
    file = folder / "prefix.safetensors"
    if not file.is_file():
        return None
    state = read_safetensors(file, "cpu", dtype)
    if "weight" not in state or state["weight"].dim() != 2:
        raise UserError(f'{file}: holds no matrix "weight"')
    text_dim, width = state["weight"].shape
    return fill(empty(nn.Linear, {"in_features": width, "out_features": text_dim}, file), state, file)


# ---------------------------------------------------------------------------------------------------------- writing


def save_component(
    kind: str, module: Any, folder: str | os.PathLike, dtype: torch.dtype | None = torch.float16
) -> None:
    """Write one part into its own `folder`, whole or not at all; dtype None keeps the weights' own.

    `kind` is one of `NETWORKS`, or "tokenizer" (a transformers tokenizer).
    """
    with atomic_folder(folder) as temporary:
        if kind == "tokenizer":
            module.save_pretrained(temporary)
        elif kind in ("uvit", "face_controlnet"):
            write_json(temporary / "config.json", module.config)
            write_state(temporary / "model.safetensors", module.state_dict(), dtype)
        elif kind == "vae":
            vae = module.vae if isinstance(module, LatentCodec) else module
            vae.save_config(temporary)
            config = read_json(temporary / "config.json")
            config.pop("_name_or_path", None)  # where it was loaded from: nobody else has that folder
            write_json(temporary / "config.json", config)
            write_state(temporary / "diffusion_pytorch_model.safetensors", vae.state_dict(), dtype)
        elif kind in ("text_encoder", "image_encoder"):
            with quiet_transformers():
                module.clip.save_pretrained(temporary, state_dict=cast_state(module.clip.state_dict(), dtype))
            if getattr(module, "prefix", None) is not None:
                write_state(temporary / "prefix.safetensors", module.prefix.state_dict(), dtype)
        else:
            raise ValueError(f"unknown component {kind!r}")


def save_network(
    folder: str | os.PathLike, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Write a U-ViT or face-controlnet out of its `config` and `state`, where there is no module that holds both."""
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", config)
        write_state(temporary / "model.safetensors", state, dtype)


def save_half(folder: str | os.PathLike, network: nn.Module) -> None:
    """Write a network with a `config` in half precision; batch statistics stay in single."""
    # A running variance can lie outside what half precision holds; it is a few kilobytes.
    state = {
        key: value.half() if value.is_floating_point() and "running_" not in key else value
        for key, value in network.state_dict().items()
    }
    save_network(folder, network.config, state, None)


def write_index(
    path: str | os.PathLike,
    *,
    name: str,
    image_size: int,
    components: dict[str, str],
    defaults: dict[str, Any] | None = None,
) -> None:
    """Write `model_index.json` of the bundle `path`; `components` maps a part to its folder (relative or absolute)."""
    file = Path(path) / INDEX
    checked = check_as(defaults or {}, DEFAULTS, f"{file}: defaults", lambda: list(Defaults.model_fields))
    index = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "image_size": image_size,
        "defaults": checked.model_dump(exclude_none=True),
        "components": dict(components),
    }
    with atomic_file(file) as temporary:
        write_json(temporary, index)


def write_derived_index(path: str | os.PathLike, base: str | os.PathLike, own: Iterable[str], name: str) -> None:
    """Write an index for `path`, which holds the parts `own` (each in a folder of its name), the rest is `base`'s."""
    bundle = read_index(base)
    # The way up from a folder is the one that the disk knows, not the one in its name: that may pass a link.
    here = os.path.realpath(path)
    components = {kind: os.path.relpath(os.path.realpath(f), here) for kind, f in bundle.components.items()}
    components.pop("few_step", None)  # it was made for the base's weights
    components.update({kind: kind for kind in own})
    write_index(path, name=name, image_size=bundle.image_size, components=components, defaults=bundle.defaults)

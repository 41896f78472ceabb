"""Bundles: a model as a folder of safetensors and JSON, each part in its own folder, named by `model_index.json`.

A part may also lie elsewhere: a training checkpoint holds the method it trained and points to the frozen parts of the
bundle it started from; models may share a VAE. A Stable Diffusion, folder or single file, is read as a bundle without
a method, or, where the folder has a reference net, with FlashFace. Nothing here reads a pickle that could run code.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone, backbone_class
from feedface.checkpoints.few_step import COMPONENT, FewStep, adapted, check_fit, copy_few_step, read_few_step
from feedface.checkpoints.index import DEFAULTS, INDEX, Defaults, index_content, read_index_file
from feedface.checkpoints.libraries import read_library_config
from feedface.checkpoints.parts import (
    NETWORKS,
    PARTS,
    SEAM,
    is_stable_diffusion,
    kind_class,
    load_part,
    part_class,
    part_config,
)
from feedface.checkpoints.storage import read_json, write_json, write_state
from feedface.common.errors import UserError
from feedface.common.files import atomic_file, atomic_folder, follow
from feedface.common.reading import foreign
from feedface.common.validation import check_as
from feedface.diffusion.names import UNCOND_MODES
from feedface.encoders import ImageEncoder, LatentCodec, TextEncoder, latent_factor
from feedface.methods.base import Method, method_class


@dataclass
class Bundle:
    """The parts of a model that were asked for; the others are None.

    `image_size` is the side in pixels that the model was trained at. `defaults`: guidance (the g of
    ε_u + g (ε_c − ε_u)), face_scale, uncond; perhaps steps and preset (`settings.Settings`). `components`: where each
    part lies; `kinds`: which backbone and method they are. `faces_root` is an insightface root, where the bundle has
    its own pack. `variant`: what else changes pictures, such as LoRAs in the weights. `lock`: held by whoever draws or
    encodes, so that threads take turns: tokenizers keep settings between calls, and memory is for one batch.
    """

    path: Path
    name: str
    image_size: int
    defaults: dict[str, Any]
    components: dict[str, Path]
    kinds: dict[str, str]
    backbone: Backbone | None = None
    method: Method | None = None
    vae: LatentCodec | None = None
    text_encoder: TextEncoder | None = None
    image_encoder: ImageEncoder | None = None
    variant: str = ""
    lock: RLock = field(default_factory=RLock, init=False, repr=False, compare=False)
    _adapted: tuple[Backbone, Method] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def faces_root(self) -> Path | None:
        return self.extra("faces")

    def extra(self, name: str) -> Path | None:
        """The folder of one of `EXTRAS`; None where the model names none. `UserError` where that does not exist."""
        folder = self.components.get(name)
        if folder is not None and not folder.exists():
            raise UserError(f"{folder}: no such folder, but {self.path / INDEX} names it as its {name}")
        return folder

    @property
    def backbone_class(self) -> type[Backbone]:
        """Also where it is not loaded."""
        return backbone_class(self.kinds["backbone"])

    @property
    def method_class(self) -> type[Method] | None:
        """Also where it is not loaded; None for a model that shows nobody."""
        return method_class(self.kinds["method"]) if "method" in self.kinds else None

    @property
    def size_multiple(self) -> int:
        """Both sides of a picture must be multiples of so many pixels: a latent cell's times the backbone's multiple.

        Read from the parts' descriptions where they are not loaded.
        """
        if self.vae is not None and self.backbone is not None:
            return self.vae.factor * self.backbone.latent_multiple
        from diffusers import AutoencoderKL

        vae, folder = self.components["vae"], self.components["backbone"]
        if is_stable_diffusion(vae) or is_stable_diffusion(folder):
            return load_bundle(self.path, "meta", None, ["backbone", "vae"]).size_multiple
        config = part_config("backbone", folder)
        with foreign(f"{folder}: does not describe a {self.backbone_class.__name__}"), torch.device("meta"):
            multiple = self.backbone_class.from_config(config).latent_multiple
        with foreign(f"{vae}: lacks a size"):
            return latent_factor(read_library_config(AutoencoderKL, vae)) * multiple

    @cached_property
    def few_step(self) -> FewStep | None:
        """The model's few-step adapter; None where it has none."""
        folder = self.components.get(COMPONENT)
        return None if folder is None else read_few_step(folder)

    def networks(self, few_step: bool = False) -> tuple[Backbone, Method | None]:
        """Backbone and method as they are evaluated at each step; `few_step`: with the adapter in them.

        These are a second pair, made when it is first asked for; it takes the memory of what the adapter changes.
        """
        if not few_step:
            return self.backbone, self.method
        with self.lock:
            if self._adapted is None:
                adapter = self._checked_adapter()
                # What is made in inference mode could not be changed outside of it.
                with torch.inference_mode(False), torch.no_grad():
                    self._adapted = tuple(adapted(adapter, name, getattr(self, name)) for name in SEAM)
            return self._adapted

    def _checked_adapter(self) -> FewStep:
        if self.few_step is None:
            raise UserError(f"{self.path}: this model has no few-step adapter; docs/few_steps.md says how one is made")
        return self.few_step

    def to(self, device: torch.device) -> None:
        """Move the networks."""
        with self.lock:
            self._adapted = None
            for name in NETWORKS:
                if (module := getattr(self, name)) is not None:
                    module.to(device)

    def described(self, kind: str) -> nn.Module | None:
        """A part for what needs none of its weights, such as its tokenizer: they need not be in memory."""
        return getattr(self, kind)

    @contextmanager
    def hold(self, *names: str) -> Iterator[None]:
        """Inside the `with`, change these parts: a `LowMemoryBundle` will not read them from their files again."""
        yield


# ---------------------------------------------------------------------------------------------------------- reading


def read_index(path: str | os.PathLike) -> Bundle:
    """Read and check `model_index.json` of the bundle `path`, without loading any part."""
    path = follow(path)
    if is_stable_diffusion(path) and not _is_bundle(path):
        return _stable_diffusion(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such model folder; see models/README.md for where models come from")
    file = path / INDEX
    if not file.is_file():
        raise UserError(
            f"{path}: no {INDEX} in it, so not a model of this project; the authors' files are made into one by "
            f"`python -m feedface.checkpoints convert`"
        )
    index = read_index_file(file)
    defaults, kinds = index.defaults.model_dump(exclude_none=True), index.kinds
    classes = {name: kind_class(name, kind, file) for name, kind in kinds.items()}
    modes = classes["backbone"].uncond_modes if "backbone" in classes else UNCOND_MODES
    if defaults.setdefault("uncond", modes[0]) not in modes:
        raise UserError(f"{file}: defaults.uncond: this backbone has {', '.join(modes)}, not {defaults['uncond']!r}")
    components = {name: path / folder for name, folder in index.components.items()}  # of version 1 perhaps absolute
    return Bundle(path, index.name, index.image_size, defaults, components, kinds)


def _is_bundle(path: Path) -> bool:
    """Whether it is ours: folders of diffusers have a model_index.json, too."""
    return (path / INDEX).is_file() and "_class_name" not in read_json(path / INDEX)


def _stable_diffusion(path: Path) -> Bundle:
    from feedface.checkpoints.stable_diffusion import open_stable_diffusion

    image_size = open_stable_diffusion(path).image_size
    defaults = Defaults(guidance=7.5).model_dump(exclude_none=True)  # usual there
    defaults["uncond"] = backbone_class("unet").uncond_modes[0]
    components, kinds = dict.fromkeys(("backbone", "vae", "text_encoder"), path), {"backbone": "unet"}
    if (path / "refnet").is_dir():
        from feedface.checkpoints.flashface import GUIDANCE, REFNET, SCALE

        components["method"], kinds["method"] = path / REFNET, "flashface"
        defaults |= {"guidance": GUIDANCE, "face_scale": SCALE}
    return Bundle(path, path.stem if path.is_file() else path.name, image_size, defaults, components, kinds)


def load_bundle(
    path: str | os.PathLike,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = torch.float32,
    components: Iterable[str] | None = None,
) -> Bundle:
    """Load a bundle's networks to `device` in `dtype`, whatever they are stored in, ready to infer.

    `components` limits it to some of `NETWORKS`; by default all that the bundle has, which must then be enough to
    generate (all but method and image encoder). Weights are mapped from disk and cast one tensor at a time, so that
    memory never holds them twice; dtype None keeps what is stored; device "meta" checks the networks' files without
    reading their weights. Raises `UserError` naming the file, key or folder that is missing or does not fit.
    """
    bundle = read_index(path)
    if components is None:
        components = [name for name in NETWORKS if name in bundle.components or name not in ("method", "image_encoder")]
    load_parts(bundle, components, device, dtype)
    return bundle


def load_parts(bundle: Bundle, names: Iterable[str], device: str | torch.device, dtype: torch.dtype | None) -> None:
    """Load some of the networks of a bundle that `read_index` gave; `UserError` unless all parts belong together."""
    for name in names:
        if name not in NETWORKS:
            raise ValueError(f"unknown component {name!r}; known are {', '.join(NETWORKS)}")
        if name not in bundle.components:
            raise UserError(f'{bundle.path / INDEX}: names no "{name}", which is needed here')
        folder = bundle.components[name]
        if not folder.exists():
            raise UserError(f"{folder}: no such folder, but {bundle.path / INDEX} names it as its {name}")
        if name in SEAM and part_class(name, folder).kind != bundle.kinds[name]:
            found = part_class(name, folder).kind
            raise UserError(f"{folder}: is a {found}, but {bundle.path / INDEX} says {bundle.kinds[name]!r}")
        setattr(bundle, name, load_part(name, bundle.components, device, dtype))
    check_parts(bundle)


def check_parts(bundle: Bundle) -> None:
    """`UserError` unless the loaded parts belong together."""
    backbone = bundle.backbone
    if backbone is None:
        return
    if bundle.method is not None:
        bundle.method.check(backbone, bundle.components["method"])
    sizes = []  # part, what of it, its size, the backbone's
    if bundle.text_encoder is not None:
        text = bundle.text_encoder
        sizes += [("text_encoder", "tokens", text.num_tokens, backbone.text_tokens or text.num_tokens)]
        sizes += [("text_encoder", "numbers a token", text.text_dim, backbone.text_dim)]
        if bundle.method is not None and bundle.method.text_width is not None:
            width = text.clip.config.hidden_size
            sizes += [("method", "numbers a token", bundle.method.text_width, width)]
    if bundle.image_encoder is not None and "clip_img" in backbone.state_shapes():
        numbers = bundle.image_encoder.clip.config.projection_dim
        sizes += [("image_encoder", "numbers an image", numbers, backbone.state_shapes()["clip_img"][-1])]
    if bundle.vae is not None:
        sizes += [("vae", "latent channels", bundle.vae.vae.config.latent_channels, backbone.latent_channels)]
    for name, what, size, needed in sizes:
        if size != needed:
            taker = "text encoder" if name == "method" else backbone.kind
            raise UserError(f"{bundle.components[name]}: gives {size} {what}, but the {taker} takes {needed}")


# ---------------------------------------------------------------------------------------------------------- writing


def save_component(
    name: str, module: Any, folder: str | os.PathLike, dtype: torch.dtype | None = torch.float16
) -> None:
    """Write one part into its own `folder`, whole or not at all; dtype None keeps the weights' own.

    `name` is one of `NETWORKS`, or "tokenizer" (a transformers tokenizer).
    """
    save = PARTS[name].save if name in PARTS else None
    if save is None:
        raise ValueError(f"unknown component {name!r}")
    with atomic_folder(folder) as temporary:
        save(module, temporary, dtype)


def save_network(
    folder: str | os.PathLike, config: dict[str, Any], state: dict[str, Tensor], dtype: torch.dtype | None
) -> None:
    """Write a network out of its `config` and `state`, where there is no module that holds both."""
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
    components: Mapping[str, str | os.PathLike],
    defaults: dict[str, Any] | None = None,
) -> None:
    """Write `model_index.json` of the bundle `path`; `components` maps a part to its folder, relative or absolute."""
    if unknown := set(components) - set(PARTS):
        raise ValueError(f"unknown components {sorted(unknown)}; known are {', '.join(PARTS)}")
    # The way up from a folder is the one that the disk knows, not the one in its name: that may pass a link.
    path, here = Path(path), os.path.realpath(path)
    relative = {
        part: os.path.relpath(os.path.realpath(folder), here) if os.path.isabs(folder) else os.fspath(folder)
        for part, folder in components.items()
    }
    kinds = {part: part_class(part, path / relative[part]).kind for part in SEAM if part in relative}
    checked = check_as(defaults or {}, DEFAULTS, f"{path / INDEX}: defaults", lambda: list(Defaults.model_fields))
    with atomic_file(path / INDEX) as temporary:
        write_json(temporary, index_content(name, image_size, relative, kinds, checked))


def write_derived_index(path: str | os.PathLike, base: str | os.PathLike, own: Mapping[str, str], name: str) -> None:
    """Write an index for `path`, which holds the parts `own` in folders of these names; the rest is `base`'s."""
    bundle = read_index(base)
    components = {part: os.path.realpath(folder) for part, folder in bundle.components.items()}
    components.pop(COMPONENT, None)  # it was made for the base's weights
    write_index(
        path, name=name, image_size=bundle.image_size, components={**components, **own}, defaults=bundle.defaults
    )


def add_few_step(model: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copy the adapter in `folder` into the model folder `model`, as its part "few_step".

    `UserError`, and nothing is changed, where that is no model of ours, or the adapter another's.
    """
    model = read_index(model).path
    if not _is_bundle(model):
        raise UserError(f"{model}: an adapter is added to a model folder of this project ({INDEX})")
    index = read_index_file(model / INDEX)
    adapter = read_few_step(folder)
    changed = {name.partition(".")[0] for name in adapter.weights}
    bundle = load_bundle(model, "meta", None, sorted(changed))
    for kind in changed:
        check_fit(adapter, kind, getattr(bundle, kind))
    copy_few_step(folder, model / COMPONENT)
    write_index(
        model,
        name=index.name,
        image_size=index.image_size,
        components={**index.components, COMPONENT: COMPONENT},
        defaults=index.defaults.model_dump(exclude_none=True),
    )

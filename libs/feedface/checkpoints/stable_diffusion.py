"""Stable Diffusion 1.x and 2.x, and fine-tunes of them, as they lie on a user's disk; nothing is fetched.

`open_stable_diffusion(path)` takes a diffusers folder (unet/ vae/ text_encoder/ tokenizer/ scheduler/) or a single
file in the naming of LDM (`ldm.py`), and reads the parts one by one as they are asked for.
"""

import os
import re
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from feedface.backbones.unet import PREDICTIONS, UNet
from feedface.checkpoints.clip_tokenizer import clip_tokenizer
from feedface.checkpoints.ldm import NEEDED, VERSIONS, LdmFile, Version, what_else
from feedface.checkpoints.libraries import from_pretrained
from feedface.checkpoints.storage import WEIGHT_FILES, read_json, read_safetensors
from feedface.common.errors import UserError, one_line
from feedface.diffusion.schedule import BETA_END, BETA_START, NUM_TIMESTEPS
from feedface.encoders import LatentCodec, TextEncoder, load_tokenizer

FACTOR = 8  # pixels along a latent cell, of Stable Diffusion's VAEs
# The schedule that `diffusion.schedule` has, in the words of a scheduler_config.json.
SCHEDULE = {
    "beta_start": BETA_START,
    "beta_end": BETA_END,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": NUM_TIMESTEPS,
    "rescale_betas_zero_snr": False,
    "trained_betas": None,
}


class StableDiffusion(Protocol):
    """A model on disk. Parts come ready to infer, in `dtype` (None: as stored); `UserError` for what does not fit.

    `prediction`: see `UNet`. `image_size`: side in pixels that it was trained at.
    """

    path: Path
    prediction: str
    image_size: int

    def unet(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32) -> UNet: ...

    def vae(self, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32) -> LatentCodec: ...

    def text_encoder(
        self, device: str | torch.device = "cpu", dtype: torch.dtype | None = torch.float32, clip_skip: int = 0
    ) -> TextEncoder: ...


def open_stable_diffusion(
    path: str | os.PathLike, prediction: str | None = None, versions: tuple[Version, ...] = VERSIONS
) -> StableDiffusion:
    """Look at a folder or file, without reading its weights.

    Args:
        prediction: "epsilon" or "v_prediction", where the files do not say it.
        versions: how the versions of single files are built; tests have smaller ones.

    Raises `UserError` for what is no Stable Diffusion 1.x or 2.x, naming what it is and what is needed.
    """
    path = Path(path)
    if prediction not in (None, *PREDICTIONS):
        raise UserError(f"prediction {prediction!r}: use one of {', '.join(PREDICTIONS)}")
    if path.is_dir():
        return _Folder(path, prediction)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder; {NEEDED}")
    if path.suffix not in WEIGHT_FILES:
        raise UserError(f"{path}: not one of {', '.join(WEIGHT_FILES)}; {NEEDED}")
    return _SingleFile(path, prediction, versions)


class _SingleFile:
    def __init__(self, path: Path, prediction: str | None, versions: tuple[Version, ...]):
        self.path, self._file = path, LdmFile(path, versions)
        self.prediction = prediction or _prediction_of(self._file)
        # Of the second version, the models for 768 px are those that predict v.
        large = self._file.version.open_clip and self.prediction == "v_prediction"
        self.image_size = _size_of(self._file) or (768 if large else 512)

    def unet(self, device="cpu", dtype=torch.float32) -> UNet:
        return _ready(UNet(self._file.unet(self.image_size // FACTOR, dtype), self.prediction), device)

    def vae(self, device="cpu", dtype=torch.float32) -> LatentCodec:
        return _ready(LatentCodec(self._file.vae(dtype)), device)

    def text_encoder(self, device="cpu", dtype=torch.float32, clip_skip=0) -> TextEncoder:
        clip, version = self._file.text_encoder(dtype), self._file.version
        tokenizer = version.tokenizer or clip_tokenizer(version.pad_token)
        return _ready(TextEncoder(clip, tokenizer, clip_skip=clip_skip), device)


def _prediction_of(file: LdmFile) -> str:
    """What the file says of itself, or the .yaml beside it, or what all files of its version predict."""
    said = file.metadata.get("modelspec.prediction_type", "").lower()
    if not said and file.path.with_suffix(".yaml").is_file():
        said = str(_model_params(file.path.with_suffix(".yaml")).get("parameterization", "eps"))
    if said:
        return "v_prediction" if said.startswith("v") else "epsilon"
    if not file.version.open_clip:
        return "epsilon"
    # Of Stability's own files, the base model of 2.0 and the one for 768 px of 2.1.
    known = {875_000: "epsilon", 110_000: "v_prediction"}
    if file.step in known:
        return known[file.step]
    raise UserError(
        f"{file.path}: a Stable Diffusion 2.x that does not say what it predicts; put its .yaml beside it, or say "
        f"prediction {' or '.join(PREDICTIONS)} (models for 768 px: v_prediction, for 512 px: epsilon)"
    )


def _model_params(path: Path) -> dict[str, Any]:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["params"]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}: not the description of a Stable Diffusion model (model: params: …): {error}"
        ) from None


def _size_of(file: LdmFile) -> int | None:
    size = file.metadata.get("modelspec.resolution", "").split("x")[0]
    return int(size) if size.isdigit() and int(size) % FACTOR == 0 else None


class _Folder:
    def __init__(self, path: Path, prediction: str | None):
        self.path = path
        for part in ("unet", "vae", "text_encoder", "tokenizer"):
            if not (path / part).is_dir():
                raise UserError(f"{path}: has no {part}/; {NEEDED}")
        config = read_json(path / "unet" / "config.json")
        if (path / "text_encoder_2").is_dir() or config.get("addition_embed_type"):
            raise UserError(f"{path}: this is Stable Diffusion XL; {NEEDED}")
        if config.get("in_channels", 4) != config.get("out_channels", 4):
            raise UserError(f"{path}: this is a model of {config['in_channels']} input channels; {NEEDED}")
        scheduler = path / "scheduler" / "scheduler_config.json"
        settings = read_json(scheduler) if scheduler.is_file() else {}
        for key, value in SCHEDULE.items():
            if settings.get(key, value) != value:
                raise UserError(f'{scheduler}: "{key}" is {settings[key]!r}; only {value!r} is supported')
        self.prediction = prediction or settings.get("prediction_type", "epsilon")
        if self.prediction not in PREDICTIONS:
            raise UserError(f'{scheduler}: "prediction_type" is {self.prediction!r}; use {", ".join(PREDICTIONS)}')
        size = config.get("sample_size", 64)
        sides = size if isinstance(size, list) else [size]
        if not sides or not all(type(side) is int and side > 0 for side in sides):
            raise UserError(f'{path / "unet" / "config.json"}: "sample_size" must be a whole number, not {size!r:.60}')
        self.image_size = FACTOR * sides[0]

    def unet(self, device="cpu", dtype=torch.float32) -> UNet:
        from diffusers import UNet2DConditionModel

        try:
            unet = self._read("unet", UNet2DConditionModel, described=UNet.config_type(), torch_dtype=dtype)
            return _ready(UNet(unet, self.prediction), device)
        except ValueError as error:
            raise UserError(f"{self.path / 'unet'}: {error}") from None

    def vae(self, device="cpu", dtype=torch.float32) -> LatentCodec:
        from diffusers import AutoencoderKL

        return _ready(LatentCodec(self._read("vae", AutoencoderKL, torch_dtype=dtype)), device)

    def text_encoder(self, device="cpu", dtype=torch.float32, clip_skip=0) -> TextEncoder:
        from transformers import CLIPTextModel

        tokenizer = load_tokenizer(self.path / "tokenizer")
        clip = self._read("text_encoder", CLIPTextModel, dtype=dtype)
        encoder = _ready(TextEncoder(clip, tokenizer, clip_skip=clip_skip), device)
        if not clip_skip and (self.path / "refnet").is_dir():
            from feedface.checkpoints.flashface import CLIP_SKIP, NEGATIVE_SKIP

            encoder.clip_skip, encoder.negative_skip = CLIP_SKIP, NEGATIVE_SKIP
        return encoder

    def _read(self, part: str, kind: type, **options: Any) -> nn.Module:
        folder = self.path / part
        # A download of the half-precision files alone.
        if not list(folder.glob("*model.safetensors")) and list(folder.glob("*model.fp16.safetensors")):
            options["variant"] = "fp16"
        return from_pretrained(kind, folder, **options)


def _ready(module: nn.Module, device: str | torch.device) -> Any:
    return module.to(device).eval().requires_grad_(False)


def merge_lora(
    file: str | os.PathLike, unet: UNet | None, text_encoder: TextEncoder | None = None, scale: float = 1.0
) -> None:
    """Add a LoRA to the weights of a model, in place, through diffusers' loader (its own, kohya's and peft's naming).

    Its part for a network that is not given is left out. Raises `UserError` for a file that is none, or belongs to
    another model.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader
    from diffusers.loaders.lora_base import fuse_text_encoder_lora
    from diffusers.utils import logging, recurse_remove_peft_layers

    file = Path(file)
    if file.suffix != ".safetensors":
        raise UserError(f"{file}: a LoRA must be a .safetensors file (a pickle can run code)")
    state = read_safetensors(file, "cpu", None)
    what = what_else({key: tuple(value.shape) for key, value in state.items()})
    if what is None or not what.startswith("a LoRA"):
        raise UserError(f"{file}: this is {what or 'no LoRA'}; needed is a LoRA of Stable Diffusion 1.x or 2.x")
    _check_pairs(file, state)
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it logs is said below, in a line
    try:
        weights, alphas, *_ = Loader.lora_state_dict(state, unet_config=unet and unet.unet.config)
        if not any(key.startswith(("unet.", "text_encoder.")) for key in weights):
            weights = {f"unet.{key}": value for key, value in weights.items()}  # as peft names a network's own
        parts = {key.split(".")[0] for key in weights}
        if unet is not None:
            _check_modules(file, weights, unet)
        if unet is not None and "unet" in parts:
            Loader.load_lora_into_unet(weights, alphas, unet.unet)
            unet.unet.fuse_lora(scale)
            unet.unet.unload_lora()
        if "text_encoder" in parts and text_encoder is not None:
            clip = text_encoder.clip
            Loader.load_lora_into_text_encoder(weights, alphas, clip, prefix="text_encoder")
            fuse_text_encoder_lora(clip, scale)
            recurse_remove_peft_layers(clip)
    except (ValueError, LookupError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: a LoRA that does not belong to this model: {one_line(error)}") from None
    finally:
        logging.set_verbosity(level)


def _check_pairs(file: Path, state: dict[str, Tensor]) -> None:
    """`UserError` for half a pair of matrices, and for numbers that are none."""
    sides: dict[str, set[str]] = {}
    for key, value in state.items():
        if not value.isfinite().all():
            raise UserError(f"{file}: {key} holds NaN or infinity; fetch or make the LoRA anew")
        if found := re.search(r"lora[._]?(A|B|down|up)\b", key):
            sides.setdefault(key[: found.start()], set()).add({"down": "A", "up": "B"}.get(found[1], found[1]))
    half = next((name for name, there in sides.items() if len(there) < 2), None)
    if half is not None:
        raise UserError(f"{file}: {half.rstrip('._')} has one of its two matrices alone; fetch or make the LoRA anew")


def _check_modules(file: Path, weights: dict[str, Tensor], unet: UNet) -> None:
    """`UserError` if the LoRA changes what the U-Net has not: diffusers would leave that out."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    own = convert_unet_state_dict_to_peft({key: value for key, value in weights.items() if key.startswith("unet.")})
    there = dict(unet.unet.named_modules())
    for key in own:
        module = key.removeprefix("unet.").partition(".lora_")[0]
        if ".lora_" in key and module not in there:
            raise UserError(f"{file}: a LoRA that does not belong to this model: its U-Net has no {module}")

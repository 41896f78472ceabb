"""Stable Diffusion 1.x and 2.x as single files, in the naming of latent-diffusion (LDM): `.safetensors` or `.ckpt`.

Renaming is diffusers'; what is read is checked here, key by key and shape by shape. A `.ckpt` is a pickle: only its
tensors are read (`weights_only`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from feedface.checkpoints.foreign import check_state, read_checkpoint
from feedface.checkpoints.official import load_vae
from feedface.checkpoints.storage import empty, fill, read_safetensors
from feedface.common.errors import UserError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
NEEDED = "needed is a whole Stable Diffusion 1.x or 2.x: a diffusers folder, or one file with U-Net, VAE, text encoder"
FIRST_CONV = f"{UNET}input_blocks.0.0.weight"
FIRST_TEXT_KEY = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"


@dataclass(frozen=True)
class Version:
    """How a version is built: arguments of diffusers' U-Net, transformers' text tower and diffusers' VAE.

    `pad_token` fills up its prompts; `open_clip` says whose naming its text encoder has; `tokenizer`: another than
    CLIP's, for tests.
    """

    name: str
    unet: Mapping[str, Any]
    text: Mapping[str, Any]
    vae: Mapping[str, Any]
    pad_token: str
    open_clip: bool
    tokenizer: Any = None


_TEXT = {"vocab_size": 49408, "max_position_embeddings": 77, "bos_token_id": 49406, "eos_token_id": 49407}
SD1 = Version(
    "1.x",
    {"cross_attention_dim": 768, "attention_head_dim": 8},
    {**_TEXT, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    | {"hidden_act": "quick_gelu", "projection_dim": 768, "pad_token_id": 49407},
    {},
    "<|endoftext|>",
    open_clip=False,
)
SD2 = Version(
    "2.x",
    {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    # 23 of OpenCLIP's 24 layers: the model was trained on the last but one's states.
    {**_TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    | {"hidden_act": "gelu", "projection_dim": 512, "pad_token_id": 0},
    {},
    "!",
    open_clip=True,
)
VERSIONS = (SD1, SD2)


class LdmFile:
    """A single file; its parts are read when they are asked for. `UserError` for what is no Stable Diffusion 1 or 2.

    Attributes:
        version: one of `versions`, told by the width of its texts.
        metadata: what a `.safetensors` says about itself.
        step: the "global_step" of a `.ckpt`, None where it has none.
    """

    def __init__(self, path: Path, versions: tuple[Version, ...] = VERSIONS):
        self.path, self.metadata, self.step = path, {}, None
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            self.shapes = {key: tuple(v.shape) for key, v in read_safetensors(path, "meta", None).items()}
            with safe_open(path, framework="pt") as tensors:
                self.metadata = tensors.metadata() or {}
        else:
            state, self.step = _read_ckpt(path)
            self.shapes = {key: tuple(value.shape) for key, value in state.items()}
        self.version = self._recognised(versions)

    def _recognised(self, versions: tuple[Version, ...]) -> Version:
        what = what_else(self.shapes)
        width = self.shapes.get(FIRST_TEXT_KEY, (0, 0))[1]
        known = [version for version in versions if version.unet["cross_attention_dim"] == width]
        if what is None and not known:
            what = f"a diffusion model for texts of width {width}" if width else "not a model that is known here"
        if what is None:
            parts = {VAE: "VAE", TEXT: "text encoder"}
            missing = [prefix for prefix in parts if not any(key.startswith(prefix) for key in self.shapes)]
            if missing:
                what = f"a model without its {parts[missing[0]]} (no {missing[0]}…)"
        if what is not None:
            raise UserError(f"{self.path}: this is {what}; {NEEDED}")
        return known[0]

    def _tensors(self, prefix: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """Those under a prefix, without it; dtype None: as stored."""
        if self.path.suffix == ".safetensors":
            found = read_safetensors(self.path, "cpu", dtype, prefix)
        else:  # mapped anew each time: what was read of the file counts as memory until it is let go
            state = _read_ckpt(self.path)[0].items()
            found = {key: value for key, value in state if key.startswith(prefix)}
            found = {
                k: value.to(dtype or value.dtype) if value.is_floating_point() else value for k, value in found.items()
            }
        return {key.removeprefix(prefix): value for key, value in found.items()}

    def unet(self, sample_size: int, dtype: torch.dtype | None) -> "UNet2DConditionModel":
        """`sample_size`: side of the latents it was trained at."""
        from diffusers import UNet2DConditionModel
        from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

        unet = empty(UNet2DConditionModel, {"sample_size": sample_size, **self.version.unet}, self.path)
        state = self._tensors(UNET, dtype)
        converted = convert_ldm_unet_checkpoint({UNET + key: value for key, value in state.items()}, unet.config)
        known = {id(value) for value in converted.values()}  # diffusers passes over what it does not know
        unknown = [key for key, value in state.items() if id(value) not in known]
        if unknown:
            raise UserError(f"{self.path}: has {len(unknown)} unknown weights, the first is {UNET}{unknown[0]}")
        return fill(unet, converted, self.path)

    def vae(self, dtype: torch.dtype | None) -> "AutoencoderKL":
        state = self._tensors(VAE, dtype)
        try:
            return load_vae(
                {key: value for key, value in state.items() if not key.startswith(("loss.", "model_ema."))},
                **self.version.vae,
            )
        except UserError as error:
            raise UserError(f"{self.path}, {VAE}…: {error}") from None

    def text_encoder(self, dtype: torch.dtype | None) -> "CLIPTextModel":
        from transformers import CLIPTextConfig, CLIPTextModel

        clip = empty(CLIPTextModel, {"config": CLIPTextConfig(**self.version.text)}, self.path)
        state = self._tensors(TEXT, dtype)
        rename: Callable[[nn.Module, dict[str, Tensor]], dict[str, Tensor]]
        rename = _from_open_clip if self.version.open_clip else _from_clip
        return fill(clip, rename(clip, state), self.path)


def what_else(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """What a file of these tensors is, where that is something that users mistake for a model; None otherwise."""

    def has(*parts: str) -> bool:
        return any(part in key for key in shapes for part in parts)

    if has("lora_down.", "lora_up.", "lora_A.", "lora_B.", "lora.down.", "lora.up.", ".hada_w1_a", ".lokr_w1"):
        return "a LoRA, which changes a model and is none"
    if has("label_emb.") or any(key.startswith("conditioner.") for key in shapes):
        return "Stable Diffusion XL"
    if has("joint_blocks.", "double_blocks.", "transformer_blocks.0.attn.norm_added_q"):
        return "a diffusion transformer (Stable Diffusion 3, Flux or the like)"
    if has("control_model.", "controlnet_cond_embedding", "zero_convs."):
        return "a ControlNet"
    if FIRST_CONV in shapes:
        channels = shapes[FIRST_CONV][1]
        kinds = {9: "an in-painting model", 8: "an image-editing model (InstructPix2Pix)", 5: "a depth model"}
        return None if channels == 4 else f"{kinds.get(channels, 'another model')} of {channels} input channels"
    if has("down_blocks.0.") and has("up_blocks.0.") and has("time_embedding."):
        return "a U-Net alone, in diffusers' naming"
    if has("decoder.conv_in.", "decoder.up.0."):
        return "a VAE alone"
    if any(key in ("emb_params", "clip_l", "clip_g") for key in shapes) or has("string_to_param"):
        return "a textual-inversion embedding"
    if has("text_model.encoder.layers.0."):
        return "a text encoder alone"
    return None


class _Callback:
    """Stands for the one class of Lightning's that the first Stable Diffusion files name; it holds nothing."""


def _read_ckpt(path: Path) -> tuple[dict[str, Tensor], int | None]:
    lightning = "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint"
    content = read_checkpoint(path, [(_Callback, lightning)])
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not weights by name; {NEEDED}")
    state = content.get("state_dict", content)
    step = content.get("global_step")
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    check_state(tensors, path)
    return tensors, step if isinstance(step, int) else None


def _from_clip(clip: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's names, with or without the levels that versions of it have had."""
    keys = {key.removeprefix("transformer.").removeprefix("text_model."): value for key, value in state.items()}
    keys.pop("embeddings.position_ids", None)  # a buffer that transformers once saved, and now makes itself
    return keys


def _from_open_clip(clip: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's names; without the layers that are not used, and what belongs to the image tower."""
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    prefix = f"{TEXT}model."
    converted = convert_open_clip_checkpoint(clip, {TEXT + key: value for key, value in state.items()}, prefix)
    layers = clip.config.num_hidden_layers
    found = {}
    for key, value in converted.items():
        key = key.removeprefix("text_model.")
        number = key.removeprefix("encoder.layers.").split(".")[0]
        if not (number.isdigit() and int(number) >= layers) and key != "text_projection.weight":
            found[key] = value
    return found

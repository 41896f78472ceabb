"""What a training run is made of, from its config: accelerate, the models, the optimizer; `data` has the rest."""

import os
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import ml_collections
import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import nn

from feedface.backbones.base import Backbone
from feedface.checkpoints.arc2face import read_teacher, read_teacher_network
from feedface.checkpoints.bundle import load_bundle
from feedface.checkpoints.face_encoder import PREFIX, clip_config, find_face_encoder
from feedface.checkpoints.parts import load_part, part_class, part_config
from feedface.checkpoints.storage import empty, fill, read_safetensors
from feedface.common.device import DTYPES, fast_bfloat16
from feedface.common.errors import UserError
from feedface.data.features import EncoderSources
from feedface.methods.base import Method, method_class
from feedface.training.check import PRECISIONS, method_of
from feedface.training.controlled import ControlledBackbone

# Filling a cache takes some processes longer than others; they wait for each other so long.
PATIENCE = timedelta(hours=12)


def make_accelerator(config: ml_collections.ConfigDict, workdir: Path) -> Accelerator:
    """accelerate as it was launched; `config.train.precision` "auto" takes what the launcher was told."""
    precision = None if config.train.precision == "auto" else config.train.precision
    if _with_deepspeed():  # in its own low precision it would round the trained weights
        precision = "no"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(config.log.trackers) or None,
            project_config=ProjectConfiguration(str(workdir), logging_dir=str(workdir / "logs")),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    except ValueError as error:
        raise UserError(f"config.train.precision={config.train.precision}: {error}") from None
    if config.train.get("tf32"):  # configs of before there was a choice do not say it
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    precision = precision_of(config, accelerator)
    if precision not in PRECISIONS:
        raise UserError(f"mixed precision {precision} is unknown; use {', '.join(PRECISIONS)}")
    if precision == "fp16" and (accelerator.device.type == "cpu" or _with_deepspeed()):
        why = "does not go with DeepSpeed here" if _with_deepspeed() else "needs a GPU"
        raise UserError(f"mixed precision fp16 {why}; use --config.train.precision=bf16 or no")
    if precision == "bf16" and not fast_bfloat16(accelerator.device):
        accelerator.print("bf16 is many times slower than float32 on this CPU; --config.train.precision=no is faster")
    return accelerator


def precision_of(config: ml_collections.ConfigDict, accelerator: Accelerator) -> str:
    """What is computed in: "no" (float32), "fp16" or "bf16"."""
    if not _with_deepspeed():
        return accelerator.mixed_precision
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    return launched if config.train.precision == "auto" else config.train.precision


def _with_deepspeed() -> bool:
    return os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"


@dataclass
class Models:
    """What is trained, and where the encoders are.

    `trained.method` has no frozen encoder: it works on that encoder's features. `state_shapes` are those of one row,
    for pictures of the bundle's image size; sides of other sizes are multiples of `size_multiple`. `notices`: a line
    for whatever the config says without effect.
    """

    trained: ControlledBackbone
    sources: EncoderSources
    base: Path
    image_size: int
    size_multiple: int
    state_shapes: dict[str, tuple[int, ...]]
    notices: list[str] = field(default_factory=list)


def build_models(config: ml_collections.ConfigDict, device: torch.device, precision: str) -> Models:
    """The bundle's backbone, frozen and in low precision unless the method changes it, and the method in float32.

    With `config.face_encoder` (a folder of transformers' CLIPVisionModel, or a model folder whose face encoder is
    meant) the method is a fresh one, made as `config.control` says; without, training goes on from the bundle's own.
    A method that needs no such encoder is fresh where the bundle has none of its kind. No encoder is loaded here.
    """
    kind = method_of(config)
    whole = method_class(kind).changes_backbone(config.control)  # what is trained is float32
    dtype = DTYPES[PRECISIONS[precision]]
    bundle = load_bundle(config.model, device, torch.float32 if whole else dtype, ["backbone"])
    backbone = bundle.backbone
    texts, frozen = _text_networks(config, device) if method_class(kind).changes_prompt else ({}, {})
    own = bundle.components["method"] if bundle.kinds.get("method") == kind else None
    notices: list[str] = []
    if config.face_encoder:
        try:
            encoder = find_face_encoder(config.face_encoder)
            parts = {"clip_config": clip_config(encoder), "with_encoder": False}
        except UserError as error:
            raise UserError(f"config.face_encoder: {error}") from None
        method = _fresh_method(config, backbone, parts)
    elif own is not None:
        encoder, method = own if method_class(kind).uses_clip else None, own_method(own)
        method.check(backbone, own)
        if method.changes_backbone(method.config) != whole:  # then it would be read in another precision
            raise UserError(
                f"config.control: {config.model}'s own {kind} was trained with the backbone "
                f"{'frozen' if whole else 'trained too'}; say the same"
            )
        notices = _without_effect(config, backbone, method, texts)
    elif not method_class(kind).uses_clip:
        encoder, method = None, _fresh_method(config, backbone, texts)
    else:
        raise UserError(
            f"{config.model}: has no method {kind} to go on from; name a folder with a CLIP vision model as "
            f"config.face_encoder to train a fresh one"
        )
    if "vae" not in bundle.components:
        raise UserError(f"{config.model}: has no VAE, which training needs")
    side, left_over = divmod(bundle.image_size, bundle.size_multiple)
    if left_over:
        raise UserError(f"{config.model}: image_size {bundle.image_size} does not fit its VAE and {backbone.kind}")
    side *= backbone.latent_multiple
    if method.reference.kind in ("latent", "posterior") and method.reference.size % bundle.size_multiple:
        raise UserError(
            f"config.control.reference_px={method.reference.size}: must be a multiple of {bundle.size_multiple} for "
            f"{config.model}"
        )
    method.to(device).eval().requires_grad_(False)
    for network in (backbone, *(part for part in method.children() if isinstance(part, Backbone))):
        network.requires_grad_(False).gradient_checkpointing = config.train.gradient_checkpointing
    trained = ControlledBackbone(backbone, method, {"data_type": config.data_type}, frozen, dtype)
    for parameter in trained.trained().values():
        parameter.requires_grad_(True)
    shapes = backbone.state_shapes((side, side))
    return Models(
        trained=trained,
        sources=EncoderSources(Path(config.model), method, encoder, PRECISIONS[precision], tuple(shapes)),
        base=Path(config.model),
        image_size=bundle.image_size,
        size_multiple=bundle.size_multiple,
        state_shapes=shapes,
        notices=notices,
    )


def _fresh_method(config: ml_collections.ConfigDict, backbone: Backbone, parts: dict[str, Any]) -> Method:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return method_class(method_of(config)).fresh(config, backbone, **parts)


def _text_networks(config: ml_collections.ConfigDict, device: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """For a method that changes the text: parts that a fresh one begins with, and what its objective asks.

    Both have the model's text encoder, and where `config.control.teacher` names one, the teacher's reader or backbone.
    """
    text = load_bundle(config.model, device, torch.float32, ["text_encoder"]).text_encoder
    parts, frozen = {"text": text}, {"text": text}
    if teacher := config.control.get("teacher"):
        try:
            parts["teacher"] = read_teacher(teacher)
            frozen["teacher"], frozen["prefix"] = read_teacher_network(teacher, device)
        except UserError as error:
            raise UserError(f"config.control.teacher: {error}") from None
    return parts, frozen


def _without_effect(
    config: ml_collections.ConfigDict, backbone: Backbone, method: Method, texts: dict[str, Any]
) -> list[str]:
    """A line where `config.control` describes another method than the model's own, which training goes on from."""
    parts = {"clip_config": method.config["clip_config"], "with_encoder": False} if method.uses_clip else texts
    try:
        with torch.device("meta"):
            wanted = _fresh_method(config, type(backbone).from_config(backbone.config), parts).config
    except UserError as error:
        return [f"without effect, as training goes on from {config.model}'s own {method.kind}: {error}"]
    other = [f"{key} {wanted[key]} (it has {value})" for key, value in method.config.items() if wanted[key] != value]
    if not other:
        return []
    fresh = "; a config.face_encoder is named to train a fresh one" if method.uses_clip else ""
    return [
        f"config.control: without effect, as training goes on from {config.model}'s own {method.kind}: "
        f"{', '.join(other)}{fresh}"
    ]


def described_method(folder: Path) -> Method:
    """The method in `folder` without its weights, and without its frozen encoder."""
    kind = part_class("method", folder)
    without = {"with_encoder": False} if kind.uses_clip else {}
    return empty(kind, {**part_config("method", folder), **without}, folder / "config.json")


def own_method(folder: Path) -> Method:
    """The same with its weights, in float32."""
    if not part_class("method", folder).uses_clip:
        return load_part("method", {"method": folder}, "cpu", torch.float32)
    file = folder / "model.safetensors"
    state = read_safetensors(file, "cpu", torch.float32)
    return fill(described_method(folder), {name: x for name, x in state.items() if not name.startswith(PREFIX)}, file)


def make_optimizer(config: ml_collections.ConfigDict, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, fused; with "adamw8bit" bitsandbytes' one, whose state takes a quarter of the memory.

    "prodigy" finds its own step size, which `lr` multiplies: 1 is usual (Mishchenko & Defazio 2023, "Prodigy").
    """
    train = config.train
    options = {"lr": train.lr, "betas": tuple(train.betas), "weight_decay": train.weight_decay}
    if train.optimizer == "adamw8bit":
        import bitsandbytes

        return bitsandbytes.optim.AdamW8bit(parameters, **options)
    if train.optimizer == "prodigy":
        from prodigyopt import Prodigy

        return Prodigy(parameters, d_coef=train.get("d_coef", 1.0), use_bias_correction=True, **options)
    return torch.optim.AdamW(parameters, fused=True, **options)

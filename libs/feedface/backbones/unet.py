"""Stable Diffusion's U-Net behind the seam: diffusers' `UNet2DConditionModel`, as it is.

A control is passed with each call, by diffusers' own `cross_attention_kwargs`, which reach every transformer block and
every attention processor. Hooks on the blocks and one kind of stateless processor find it there: no module of diffusers
is replaced, and none is told anything, so state-dict keys stay and threads do not meet.

Shapes: B batch, L tokens, D width, T text tokens, C h w latent.
Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models".
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
import torch.nn.functional as F
from annotated_types import Len
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from pydantic import Field, TypeAdapter
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.backbones import base
from feedface.backbones.base import Backbone, Prompt, Site
from feedface.backbones.control import (
    Control,
    acts,
    controlled_attention,
    controlled_block,
    controlled_residuals,
)
from feedface.common.sizes import Layers, SidePx, Width
from feedface.common.validation import OPEN
from feedface.diffusion.schedule import signal_and_noise
from feedface.diffusion.state import State

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention

PREDICTIONS = ("epsilon", "v_prediction")
MID = "mid_block"  # its residual's name; those of the skips are "skips.0", …, in the order of evaluation
# Where a block's positional arguments have these: gradient checkpointing passes all arguments so.
KWARGS = list(inspect.signature(BasicTransformerBlock.forward).parameters).index("cross_attention_kwargs") - 1


class UNetConfig(TypedDict, total=False):
    """diffusers' `UNet2DConditionModel`; what is wrong in it otherwise, that class says."""

    __pydantic_config__ = OPEN
    kind: Literal["unet"]
    prediction: Literal[PREDICTIONS]
    mask_channels: Annotated[int, Field(ge=0, le=16)]
    in_channels: Width
    out_channels: Width
    block_out_channels: Annotated[list[Width], Len(1, 16)]
    layers_per_block: Layers | Annotated[list[Layers], Len(1, 16)]
    cross_attention_dim: Width | Annotated[list[Width], Len(1, 16)]
    attention_head_dim: Width | Annotated[list[Width], Len(1, 16)]
    sample_size: SidePx | Annotated[list[SidePx], Len(2, 2)] | None
    quantization_config: None


CONFIG = TypeAdapter(UNetConfig)


@dataclass(frozen=True)
class Conditions(base.Conditions):
    """Encoded text [B,T,Dt], in the weights' dtype, the latent's (h, w), and perhaps a mask [B,M,h,w]."""

    text: Tensor
    latent_size: tuple[int, int]
    mask: Tensor | None = None

    def __getitem__(self, rows: slice) -> "Conditions":
        return Conditions(self.text[rows], self.latent_size, None if self.mask is None else self.mask[rows])


class AttentionOperator:
    """A diffusers attention's parts, for a control that stands in for it: see `backbones.control.Operator`."""

    def __init__(self, attention: "Attention"):
        self.attention = attention

    def query(self, x: Tensor) -> Tensor:
        return self.attention.to_q(x)

    def key_value(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.to_k(context), self.attention.to_v(context)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.attention.heads, -1)).transpose(1, 2) for x in (query, key, value))
        x = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)
        for layer in self.attention.to_out:
            x = layer(x)
        return x

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        return AttnProcessor2_0()(self.attention, x, None if context is x else context)


@dataclass(frozen=True)
class Processor:
    """diffusers' attention, unless this call's control stands in for it at its site."""

    site: Site

    def __call__(
        self,
        attention: "Attention",
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        control: Control | None = None,  # named, so that diffusers passes it
    ) -> Tensor:
        if not acts(control, self.site.name):
            return AttnProcessor2_0()(attention, hidden_states, encoder_hidden_states, attention_mask, temb)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        return controlled_attention(control, self.site, AttentionOperator(attention), hidden_states, context)


def _after_block(site: Site, block: nn.Module, args: tuple, kwargs: dict[str, Any], out: Tensor) -> Tensor:
    """A forward hook: a block's output with what this call's control adds to it."""
    passed = args[KWARGS] if len(args) > KWARGS else kwargs.get("cross_attention_kwargs")
    control = (passed or {}).get("control")
    if not acts(control, site.name):
        return out
    return controlled_block(control, site, args[0] if args else kwargs["hidden_states"], out)


class UNet(Backbone):
    """Predicts noise with a `UNet2DConditionModel`, whatever that was trained to predict.

    Sites, in the order of evaluation, for each transformer block, such as "down_blocks.0.attentions.0": its attentions
    (".attn1" over itself, ".attn2" to the text) and the block. Of kind "residual": "skips.0", … (the maps that the way
    down leaves for the way up) and "mid_block".

    Args:
        unet: diffusers' model, of Stable Diffusion 1.x or 2.x's kind.
        prediction: what it was trained to predict, "epsilon" or "v_prediction".
        mask_channels: M of its input's channels are no latent's, but a prompt's "mask", behind it; zeros without one.

    Raises `ValueError` for a model of another kind.
    """

    kind = "unet"
    uncond_modes = ("empty_token", "paper")

    def __init__(self, unet: UNet2DConditionModel, prediction: str = "epsilon", mask_channels: int = 0):
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {prediction!r}")
        if unet.config.in_channels - mask_channels != unet.config.out_channels or unet.config.addition_embed_type:
            raise ValueError(
                f"a U-Net of {unet.config.in_channels} -> {unet.config.out_channels} channels, additional embeddings "
                f"{unet.config.addition_embed_type}, is none of Stable Diffusion 1.x or 2.x"
            )
        self.unet, self.prediction, self.mask_channels = unet, prediction, mask_channels
        own = {key: value for key, value in unet.config.items() if not key.startswith("_")}  # not the library's version
        self.config = {**own, "prediction": prediction} | ({"mask_channels": mask_channels} if mask_channels else {})
        self.latent_channels = unet.config.out_channels
        size = unet.config.sample_size
        self.latent_size = (size, size) if isinstance(size, int) else tuple(size)
        self.text_dim = unet.config.cross_attention_dim
        self.sites: dict[str, Site] = {}
        self._blocks: dict[str, nn.Module] = {}
        self._find_sites()

    @classmethod
    def config_type(cls) -> TypeAdapter:
        return CONFIG

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """`config` is that of diffusers' model, perhaps with "prediction" and "mask_channels" beside."""
        own = dict(config)
        prediction, mask_channels = own.pop("prediction", "epsilon"), own.pop("mask_channels", 0)
        return cls(UNet2DConditionModel.from_config(own), prediction, mask_channels)

    def _find_sites(self) -> None:
        processors = {}
        for name, block, cells in _in_order(self.unet):
            self._blocks[name] = block
            if isinstance(block, BasicTransformerBlock):
                width, heads = block.attn1.to_q.in_features, block.attn1.heads
                place = {"width": width, "cells": cells, "heads": heads}
                path = name.removesuffix(".transformer_blocks.0")
                texts = {"context_width": block.attn2.to_k.in_features}
                for number, kind, more in ((1, "self_attention", {}), (2, "cross_attention", texts)):
                    site = Site(f"{path}.attn{number}", kind, **place, **more)
                    self.sites[site.name] = site
                    processors[f"{name}.attn{number}.processor"] = Processor(site)
                self.sites[path] = site = Site(path, "block", **place)
                block.register_forward_hook(partial(_after_block, site), with_kwargs=True)
        self.unet.set_attn_processor(processors)
        for name, width, cells in _residuals(self.unet):
            self.sites[name] = Site(name, "residual", width, cells)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype

    @property
    def gradient_checkpointing(self) -> bool:
        return self.unet.is_gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        if on:
            self.unet.enable_gradient_checkpointing(_checkpointed)
        else:
            self.unet.disable_gradient_checkpointing()

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """Transformer blocks and residual blocks."""
        return iter(self._blocks.items())

    def operator(self, site: str) -> AttentionOperator:
        path, _, attention = site.rpartition(".")
        return AttentionOperator(getattr(self._blocks[f"{path}.transformer_blocks.0"], attention))

    def conditions(self, prompt: Prompt, latent_size: tuple[int, int] | None = None) -> Conditions:
        text, size = prompt["text"].to(self.dtype), tuple(latent_size or self.latent_size)
        mask = None
        if self.mask_channels:
            mask = prompt.get("mask", text.new_zeros(len(text), self.mask_channels, *size))
        return Conditions(text, size, mask)

    def forward(
        self,
        state: State,
        t: Tensor,
        conditions: Conditions,
        control: Control | None = None,
        memory: dict[str, Tensor] | None = None,
    ) -> State:
        x = state["img"]
        if tuple(x.shape[-2:]) != conditions.latent_size:
            raise ValueError(f"latent of {[*x.shape[-2:]]} with conditions for {[*conditions.latent_size]}")
        seen = x if conditions.mask is None else torch.cat([x, conditions.mask.to(x)], dim=1)
        out = self.unet(
            seen.to(self.dtype),
            t - 1,  # 0 … 999 there
            conditions.text,
            cross_attention_kwargs=None if control is None else {"control": control},
            **self._residuals(state, t, control),
            return_dict=False,
        )[0]
        return {"img": out if self.prediction == "epsilon" else _noise_of(x, out, t)}

    def _residuals(self, state: State, t: Tensor, control: Control | None) -> dict[str, Any]:
        """What the control adds to skips and middle, as diffusers takes it: none of it, or all of it."""
        added = controlled_residuals(control, state, t)
        if not added:
            return {}
        grid = state["img"].shape[-2:]

        def residual(name: str) -> Tensor:
            site = self.sites[name]
            zeros = state["img"].new_zeros(len(t), site.width, *site.grid(grid))
            return added.get(name, zeros).to(self.dtype)

        skips = [name for name, site in self.sites.items() if site.kind == "residual" and name != MID]
        return {
            "down_block_additional_residuals": tuple(residual(name) for name in skips),
            "mid_block_additional_residual": residual(MID),
        }


def _checkpointed(module: nn.Module, *args: Any) -> Any:
    """As diffusers does it, without the state of random numbers: in evaluation nothing here is random."""
    return checkpoint(module.__call__, *args, use_reentrant=False, preserve_rng_state=False)


def _noise_of(x: Tensor, v: Tensor, t: Tensor) -> Tensor:
    """ε = √ᾱ v + √(1 − ᾱ) x (Salimans & Ho 2022, "Progressive Distillation", appendix D), float32."""
    signal, noise = (scale[:, None, None, None] for scale in signal_and_noise(t))
    return signal * v.float() + noise * x.float()


def _in_order(unet: UNet2DConditionModel) -> Iterator[tuple[str, nn.Module, int]]:
    """Residual and transformer blocks, level by level as evaluated: name, module, latent cells along a pixel there."""
    levels = len(unet.down_blocks)
    parts = [(f"down_blocks.{i}", 2**i) for i in range(levels)]
    parts += [("mid_block", 2 ** (levels - 1))]
    parts += [(f"up_blocks.{i}", 2 ** (levels - 1 - i)) for i in range(levels)]
    for part, cells in parts:
        for name, module in unet.get_submodule(part).named_modules(prefix=part):
            if isinstance(module, ResnetBlock2D | BasicTransformerBlock):
                yield name, module, cells


def _residuals(unet: UNet2DConditionModel) -> Iterator[tuple[str, int, int]]:
    """Name, channels and cells of the maps to which residuals may be added, in diffusers' order."""
    widths = unet.config.block_out_channels
    maps = [(widths[0], 1)]
    for level, block in enumerate(unet.down_blocks):
        maps += [(widths[level], 2**level)] * len(block.resnets)
        maps += [(widths[level], 2 ** (level + 1))] * len(block.downsamplers or ())
    for index, (width, cells) in enumerate(maps):
        yield f"skips.{index}", width, cells
    yield MID, widths[-1], 2 ** (len(widths) - 1)

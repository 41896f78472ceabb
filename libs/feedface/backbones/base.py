"""The seam: what a backbone offers to methods, samplers and training. A new backbone is one file beside this one.

A file `backbones/KIND.py` holds one class of `Backbone` with that `kind`; `backbone_class(KIND)` finds it.

Shapes: B batch, L tokens, D width, C h w latent.
"""

import math
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from feedface.backbones.control import Control, Operator
from feedface.backbones.perturbed_attention import PerturbedAttention
from feedface.backbones.site import Site
from feedface.common.errors import UserError
from feedface.common.validation import arguments_of
from feedface.diffusion.state import State, expand, join, length

# Encoded prompts, rows by name: {"text": [B,T,Dt]}, and what else a backbone wants to know of a text.
Prompt = Mapping[str, Tensor]


class Conditions:
    """What stays the same over the steps of a generation, embedded. `conditions[rows]` are those of some rows."""

    def __getitem__(self, rows: slice) -> Self:
        raise NotImplementedError


class Backbone(nn.Module):
    """A noise predictor.

    Attributes:
        kind: its name, as files have it.
        config: what makes the same network again (`from_config`), JSON.
        sites: where a control may act, by name, in the order of evaluation.
        latent_channels, latent_size: C and (h, w) that it was trained at.
        latent_multiple: both sides of a latent must be multiples of it.
        text_tokens: T of its prompts, None where any number will do; text_dim: Dt.
        uncond_modes: what "unconditional" may mean, see `diffusion.guidance`; the first is the default.
        reusable: whether calls may go on with the deep blocks' output of an earlier one (`forward`'s `memory`).
        gradient_checkpointing: less memory for more time in training; may be set.
    """

    kind: ClassVar[str]
    config: dict[str, Any]
    sites: dict[str, Site]
    latent_channels: int
    latent_size: tuple[int, int]
    latent_multiple: int = 1
    text_tokens: int | None = None
    text_dim: int
    uncond_modes: tuple[str, ...]
    reusable = False
    gradient_checkpointing: bool

    @classmethod
    def config_type(cls) -> TypeAdapter:
        """A description of `config` as files hold it: by default what the constructor's annotations allow."""
        return arguments_of(cls)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """The network that `config` describes, with fresh weights."""
        return cls(**config)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights; `State`s may have another."""
        raise NotImplementedError

    def state_shapes(self, latent_size: tuple[int, int] | None = None) -> dict[str, tuple[int, ...]]:
        """The shapes of one row of its `State`, by name."""
        return {"img": (self.latent_channels, *(latent_size or self.latent_size))}

    def conditions(self, prompt: Prompt, latent_size: tuple[int, int] | None = None) -> Conditions:
        """Embed what stays the same over the steps. Raises `ValueError` for a size that is not to be had."""
        raise NotImplementedError

    def guided_prompt(self, prompt: Prompt, mode: str, empty_prompt: Prompt | None, noise: Tensor | None) -> Prompt:
        """The prompts of both halves: `prompt`, then as many rows of what "unconditional" means here.

        `mode` is one of `uncond_modes`, the rest as in `diffusion.guidance.GuidedModel`. Raises `ValueError` where what
        the mode needs is missing.
        """
        if empty_prompt is None:
            raise ValueError(f"uncond_mode {mode!r} needs empty_prompt, the encoded empty or negative prompt")
        return join(*_as_long(prompt, expand(empty_prompt, length(prompt))))

    def forward(
        self,
        state: State,
        t: Tensor,
        conditions: Conditions,
        control: Control | None = None,
        memory: dict[str, Tensor] | None = None,
    ) -> State:
        """Predict the noise in `state` at timesteps `t` [B], 1 (clean) … 1000 (noise), also fractional ones.

        `memory`, where the backbone is `reusable`: empty, it is filled with what the deep blocks gave; filled by an
        earlier call, that stands in for them.
        """
        raise NotImplementedError

    def operator(self, site: str) -> Operator:
        """The attention at a site, as controls are handed it: for what they compute once, before any step."""
        raise NotImplementedError

    @property
    def deep_attentions(self) -> Sequence[str]:
        """Self-attentions that decide a picture's structure: their sites. By default those of the coarsest maps."""
        sites = [site for site in self.sites.values() if site.kind == "self_attention"]
        coarsest = max((site.cells for site in sites), default=0)
        return [site.name for site in sites if site.cells == coarsest]

    def perturbed(self) -> Control:
        """A control that perturbs the deep attentions, for a prediction that guidance leads away from."""
        return PerturbedAttention(self.deep_attentions)

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        """The parts with nearly all weights and work, by name: for compiling, int8, offloading, adapters."""
        raise NotImplementedError


def _as_long(prompt: Prompt, other: Prompt) -> tuple[Prompt, Prompt]:
    """Both with texts of one length: repeated, since attention to some copies of all tokens is that to the tokens."""
    lengths = [texts["text"].shape[1] for texts in (prompt, other)]
    if lengths[0] == lengths[1]:
        return prompt, other
    common = math.lcm(*lengths)
    pairs = zip((prompt, other), lengths, strict=True)
    first, second = ({**texts, "text": texts["text"].repeat(1, common // own, 1)} for texts, own in pairs)
    return first, second


Class = TypeVar("Class", bound=type)


def find_class(package: str, base: Class, kind: str, what: str) -> Class:
    """The class of `base` with `kind`, in the file of that name; `UserError` with the kinds there are."""
    folder = import_module(package).__path__
    files = [module.name for module in pkgutil.iter_modules(folder)]
    if kind in files:
        # A kind comes from a model folder: only a file of this package is ever imported for it.
        for value in vars(import_module(f"{package}.{kind}")).values():
            if isinstance(value, type) and issubclass(value, base) and vars(value).get("kind") == kind:
                return value
    known = [name for name in files if name not in ("base", "composition", "control", "perturbed_attention", "site")]
    raise UserError(f"{kind!r} is no {what} of this version; known are {', '.join(known)}")


def backbone_class(kind: str) -> type[Backbone]:
    """The `Backbone` called `kind`; `UserError` for an unknown one."""
    return find_class(__package__, Backbone, kind, "backbone")

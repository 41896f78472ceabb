"""FlashFace, the open variant: a second network reads the references, and its tokens join the picture's in attention.

The reference net, a copy of the backbone, sees each reference as a clean latent. What goes into its self-attentions at
the sites is kept, and the backbone's own attentions there read it beside the picture's tokens. There is no encoder of
faces and, on a U-Net, no new parameter. The authors train both networks; here the backbone may also stay frozen, and be
its own reference net, with small adapters for how references are read.

Shapes: B people or rows, F references of one person, L tokens of one, D width of a site, C h w latent.
Source: IntellectGen's FlashFace, after Zhang et al. 2024, "FlashFace: Human Image Personalization with High-fidelity
Identity Preservation", from which it differs: keys and values are joined in the attention that is there, and the face
has no position of its own.
"""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Len
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor, nn

from feedface.backbones.base import Backbone, Prompt, backbone_class
from feedface.common.errors import UserError
from feedface.common.sizes import SidePx, Width
from feedface.common.validation import CLOSED, Text, check_as
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.objective import MaskObjective
from feedface.diffusion.state import expand, length
from feedface.methods.base import Features, Identity, Method, ReferenceSpec
from feedface.shared_attention import ReferenceControl, Writer

if TYPE_CHECKING:
    from ml_collections import ConfigDict

POOLS = ("concat", "first")
WAY_DOWN = ("down_blocks.", "in_blocks.")  # parts of a backbone that its default sites leave out
CLEAN = 1.0  # the reference net's timestep, the first of 1 … 1000


class Adapter(nn.Module):
    """What is added to a reference's keys and values at one site: of low rank, and nothing at first."""

    def __init__(self, width: int, rank: int):
        super().__init__()
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, 2 * width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.up(self.down(tokens)).chunk(2, dim=-1)


class ReferenceObjective(MaskObjective):
    """The loss that `config.loss` says; each sample shows as many of its references as were drawn, or none."""

    def features(self, draws: Draws, batch: Encoded) -> Features:
        latents = batch.features["latent"]
        slots = torch.arange(latents.shape[1])
        weights = (slots < draws.shown[:, None]) & ~draws.drop_face[:, None]
        features = dict(batch.features)
        if (std := features.pop("std", None)) is not None:
            noise = reference_noise(draws, std.shape[1:]).to(std.device, non_blocking=True)
            features["latent"] = latents + std * noise
        return {**features, "weights": weights.float().to(latents.device, non_blocking=True)}


def reference_noise(draws: Draws, shape: Sequence[int]) -> Tensor:
    """Standard normal [B,*shape], each row from its sample's own seed: in whatever batch, it is the same."""
    rngs = [np.random.default_rng(seed) for seed in draws.seeds.tolist()]
    return torch.from_numpy(np.stack([rng.standard_normal(tuple(shape), np.float32) for rng in rngs]))


class Settings(BaseModel):
    """`config.control` of a training config; configs/flashface.py says what the keys mean."""

    model_config = CLOSED
    sites: Sequence[str]
    reference_px: SidePx
    reference_latent: Literal["mode", "sample"] = "mode"
    writer: Literal["copy", "backbone"]
    backbone: Literal["all", "attention", "frozen"]
    rank: Annotated[int, Field(ge=0)]


class FlashFace(Method):
    """A reference net beside a backbone, and adapters for how its tokens are read; either may be missing.

    A fresh one is a copy of the backbone, which does change pictures: references are read from the first step on, as
    the authors' weights want it. Features: "latent" [B,F,C,h,w], the mean; perhaps its "std", which training alone
    reads, and "weights" [B,F], see `ReferenceControl`. Identity: the same; `prompted`, the reference net's tokens
    [B,F,L,D] by site, as it reads the text as well.

    Args:
        sites: names of self-attentions, in the order of evaluation.
        reference_px: side of a face crop, whose latent the reference net sees.
        reference_latent: in training a "sample" of the VAE's posterior, or its "mode", which drawing always takes.
        refnet: config of the reference net, with its kind; None: the backbone itself is that.
        widths, rank: D of each site and the adapters' rank; rank 0: there are none.
        backbone: what training changes of the backbone: "all", its "attention" at the sites, or nothing ("frozen").
    """

    kind, settings, reads_prompt = "flashface", TypeAdapter(Settings), True
    encodes_references = False  # they are latents

    def __init__(
        self,
        sites: Annotated[list[Text], Len(1, 1024)],
        reference_px: SidePx = 256,
        refnet: dict[str, Any] | None = None,
        widths: Annotated[list[Width], Len(0, 1024)] = (),
        rank: Annotated[int, Field(ge=0, le=1 << 16)] = 0,
        backbone: Literal["all", "attention", "frozen"] = "all",
        reference_latent: Literal["mode", "sample"] = "mode",
    ):
        super().__init__()
        self.config = {
            "sites": list(sites),
            "reference_px": reference_px,
            "refnet": None,
            "widths": list(widths),
            "rank": rank,
            "backbone": backbone,
            "reference_latent": reference_latent,
        }
        self.sites = list(sites)
        self.reference = ReferenceSpec("posterior" if reference_latent == "sample" else "latent", reference_px)
        self.refnet: Backbone | None = None
        if refnet is not None:
            own = dict(refnet)
            kind = backbone_class(own.pop("kind", None))
            self._take(kind.from_config(check_as(own, kind.config_type(), "refnet")))
        if rank and len(widths) != len(self.sites):
            raise ValueError(f"{len(self.sites)} sites with {len(widths)} widths")
        self.adapters = nn.ModuleDict(
            {slot(site): Adapter(width, rank) for site, width in zip(sites, widths, strict=True)} if rank else {}
        )

    @classmethod
    def fresh(cls, config: "ConfigDict", backbone: Backbone, **parts: Any) -> "FlashFace":
        """`config.control`: see `Settings`."""
        control = config.control
        sites = chosen_sites(control.sites, backbone)
        if control.writer == "backbone" and (control.backbone != "frozen" or not control.rank):
            raise UserError(
                "config.control: with writer 'backbone' it is its own reference net, which stays as it is, and "
                "adapters are what is trained: use backbone 'frozen' and a rank of 1 or more"
            )
        if control.writer == "copy" and backbone.kind != "unet":
            raise UserError(f"config.control.writer: 'copy' is for a U-Net; with a {backbone.kind} use 'backbone'")
        method = cls(
            sites,
            control.reference_px,
            widths=[backbone.sites[site].width for site in sites] if control.rank else [],
            rank=control.rank,
            backbone=control.backbone,
            reference_latent=control.get("reference_latent", "mode"),
        )
        if control.writer == "copy":
            method.adopt(backbone)
        return method

    @classmethod
    def around(cls, net: Backbone, reference_px: int) -> "FlashFace":
        """With `net` itself as the reference net, at the default sites."""
        method = cls(chosen_sites((), net), reference_px)
        method._take(net)
        return method

    def adopt(self, net: Backbone) -> None:
        """Take a copy of `net`, in float32, as the reference net."""
        self._take(copy.deepcopy(net).float())

    def _take(self, net: Backbone) -> None:
        self.refnet = net
        self.config["refnet"] = json.loads(json.dumps({"kind": net.kind, **net.config}))  # as files have it: lists
        for part in _frozen(self.sites):
            for name, parameter in net.named_parameters():
                if name.startswith(f"unet.{part}."):
                    parameter.requires_grad_(False)

    def check(self, backbone: Backbone, source: object) -> None:
        for name in self.sites:
            site, own = backbone.sites.get(name), self.refnet and self.refnet.sites.get(name)
            width = own.width if own else dict(zip(self.sites, self.config["widths"], strict=False)).get(name)
            if site is None or site.kind != "self_attention":
                problem = f"has no site {name}"
            elif width not in (None, site.width):
                problem = f"has width {site.width} at {name}, not {width}"
            elif self.refnet is not None and own is None:
                raise UserError(f"{source}: its reference net has no site {name}")
            else:
                continue
            raise UserError(f"{source}: this {self.kind} belongs to another backbone: the {backbone.kind} {problem}")

    def features(self, references: Tensor) -> Features:
        """`references` are latents already, or their posteriors."""
        if self.reference.kind == "latent":
            return {"latent": references}
        mean, std = references.unbind(dim=1)
        return {"latent": mean, "std": std}

    def identity(self, features: Features, pool: str = "concat") -> Identity:
        """`pool`: "concat" shows all references, "first" the first alone."""
        if pool not in POOLS:
            raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")
        latent = features["latent"]  # [B,F,C,h,w]
        weights = features.get("weights", latent.new_ones(latent.shape[:2]))
        count = 1 if pool == "first" else latent.shape[1]
        return {"latent": latent[:, :count], "weights": weights[:, :count]}

    def blended(self, first: Identity, second: Identity, weight: float) -> Identity:
        """All references of both. Each person has its share of the attention, however many references show it."""
        people, shares = (first, second), (1 - weight, weight)
        counts = [one["weights"].sum(dim=1, keepdim=True) for one in people]  # [B,1]
        total = shares[0] * counts[0] + shares[1] * counts[1]
        weights = [
            one["weights"] * share * total / count for one, share, count in zip(people, shares, counts, strict=True)
        ]
        latents = [one["latent"] for one in people]
        return {"latent": torch.cat(latents, dim=1), "weights": torch.cat(weights, dim=1)}

    def unconditional(self, identity: Identity, mode: str) -> None:
        """Nobody, whatever the mode: there the authors' attention is the backbone's own."""

    def prompted(self, identity: Identity, prompt: Prompt) -> Identity:
        """The reference net reads the text that the picture is drawn for, as the authors' does."""
        if "latent" not in identity or "text" in identity:
            return identity
        rows = max(length(identity), length(prompt))
        known = expand({**identity, "text": prompt["text"]}, rows)
        return known if self.refnet is None else self.read(self.refnet, known)

    def read(self, net: Backbone, known: Identity, t: Tensor | None = None) -> Identity:
        """What `net` makes of latents and text at the sites: tokens [B,F,L,D], and the weights. `t` [B]: else clean."""
        latent, text = known["latent"], known["text"]
        rows, size = latent.shape[:2], tuple(latent.shape[-2:])
        flat = latent.flatten(0, 1)  # [B·F,C,h,w], one person after the other
        state = {name: flat.new_zeros(len(flat), *shape) for name, shape in net.state_shapes(size).items()}
        conditions = net.conditions({"text": text.repeat_interleave(rows[1], dim=0)}, size)
        writer = Writer(self.sites)
        times = flat.new_full((len(flat),), CLEAN) if t is None else t.repeat_interleave(rows[1])
        net({**state, "img": flat}, times, conditions, writer)
        return {"weights": known["weights"], **{n: tokens.unflatten(0, rows) for n, tokens in writer.tokens.items()}}

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> ReferenceControl | None:
        """`identity` must be `prompted`. Keys and values are computed here, once."""
        if scale <= 0:
            return None
        known = self.read(backbone, identity) if self.refnet is None else identity
        sites = {}
        for name in self.sites:
            tokens = known[name].flatten(1, 2).to(backbone.dtype)  # [B,F·L,D]
            key, value = backbone.operator(name).key_value(tokens)
            if self.adapters:
                more = self.adapters[slot(name)](tokens)
                key, value = key + more[0], value + more[1]
            sites[name] = key, value
        return ReferenceControl(sites, known["weights"].float(), scale, rows)

    def objective(self, config: "ConfigDict", zero_reference: Features, empty_text: Tensor) -> ReferenceObjective:
        return ReferenceObjective(config, zero_reference, empty_text)

    def step_blocks(self) -> Iterable[nn.Module]:
        return self.adapters.values()

    def encoders(self) -> Iterable[nn.Module]:
        return () if self.refnet is None else (block for _, block in self.refnet.blocks())

    @property
    def done_when_prompted(self) -> bool:
        return self.refnet is not None and not self.adapters

    @classmethod
    def changes_backbone(cls, control: Mapping[str, Any]) -> bool:
        return control.get("backbone") != "frozen"

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        found: dict[str, nn.Module] = {}
        if self.config["backbone"] == "all":
            found["backbone"] = backbone
        elif self.config["backbone"] == "attention":
            found |= {f"backbone.{site}": backbone.operator(site).attention for site in self.sites}
        if self.refnet is not None:
            found["refnet"] = self.refnet
        return found | ({"adapters": self.adapters} if self.adapters else {})

    def trained_parameters(self, backbone: Backbone) -> Iterator[tuple[str, nn.Parameter]]:
        """Not the reference net's from the part of its last site on, where the authors freeze it: see `_frozen`."""
        frozen = () if self.refnet is None else tuple(f"refnet.unet.{part}." for part in _frozen(self.sites))
        for name, parameter in super().trained_parameters(backbone):
            if not name.startswith(frozen):
                yield name, parameter


def slot(site: str) -> str:
    """A site's name as that of a module, which has no dots."""
    return site.replace(".", "/")


def _frozen(sites: Sequence[str]) -> list[str]:
    """Parts of a U-Net from that of its last site on, in the order of evaluation. No gradient reaches what is behind
    the last site; of the part around it little would be reached."""
    parts = ["down_blocks", "mid_block", "up_blocks"]
    part, number, *_ = sites[-1].split(".")
    later = [f"{part}.{index}" for index in range(int(number), 16)] if part != "mid_block" else [part]
    return [*later, *parts[parts.index(part) + 1 :], "conv_norm_out", "conv_out"]


def chosen_sites(wanted: Sequence[str], backbone: Backbone) -> list[str]:
    """Names of sites in the order of evaluation: () is all self-attentions but those on the way down, "all" is all."""
    known = [name for name, site in backbone.sites.items() if site.kind == "self_attention"]
    if list(wanted) == ["all"]:
        return known
    if not wanted:
        return [name for name in known if not name.startswith(WAY_DOWN)]
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"config.control.sites: the backbone {backbone.kind} has no self-attention {unknown[0]}")
    return [name for name in known if name in wanted]

"""FeedFace: a face-controlnet beside a frozen backbone, driven by the tokens of a frozen CLIP image encoder.

Shapes: B batch, F faces of one person, n tokens of one face, E their width, N image tokens, D width of a site, S face
crop side.
Source: Xiang et al., "FeedFace: Efficient Inference-based Face Personalization via Diffusion Models" (ICLR 2024
Tiny Papers), Fig. 1; defaults are those of the released weights. On a U-Net, whose sites have widths of their own: the
same blocks, each of its site's width, with keys and values straight from the encoder's tokens.
"""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.backbones.base import Backbone, Site
from feedface.backbones.control import Control
from feedface.common.errors import UserError
from feedface.common.sizes import Layers, Ratio, SidePx, Width
from feedface.common.validation import CLOSED, IN_CODE, Finite, Text
from feedface.methods.base import Features, Identity, Method, ReferenceSpec

if TYPE_CHECKING:
    from ml_collections import ConfigDict

POOLS = ("concat", "mean", "first")


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, tokens, D] -> [B, heads, tokens, D/heads]


class MultiHeadAttention(nn.Module):
    """Attention whose keys and values can be computed apart, once, and reused."""

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_v = nn.Linear(context_dim or dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """`context` [B, tokens, E] -> keys and values, each [B, heads, tokens, D/heads]."""
        return _split_heads(self.to_k(context), self.num_heads), _split_heads(self.to_v(context), self.num_heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        queries = _split_heads(self.to_q(x), self.num_heads)
        size = (len(x), -1, -1, -1)  # one set of face tokens may serve the whole batch
        x = F.scaled_dot_product_attention(queries, keys.expand(size), values.expand(size))
        return self.to_out(x.transpose(1, 2).flatten(2))


class GegluMlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(value * F.gelu(gate))


class ControlBlock(nn.Module):
    """Image tokens attend to themselves and to the face; what comes out passes a linear that starts at zero.

    Without `self_attention` they attend to the face alone: it is half of a block's work where there are many tokens.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, context_dim: int, self_attention: bool = True):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim) if self_attention else None
        self.self_attn = MultiHeadAttention(dim, num_heads) if self_attention else None
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = MultiHeadAttention(dim, num_heads, context_dim)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = GegluMlp(dim, int(dim * mlp_ratio))
        self.zero_linear = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.zero_linear.weight)

    def forward(self, x: Tensor, face_keys: Tensor, face_values: Tensor) -> Tensor:
        if self.self_attn is not None:
            normed = self.norm1(x)
            x = x + self.self_attn(normed, *self.self_attn.keys_values(normed))
        x = x + self.cross_attn(self.norm2(x), face_keys, face_values)
        x = x + self.mlp(self.norm3(x))
        return self.zero_linear(x)


class FaceControl(Control):
    """A control bound to given faces; made by `FeedFace.bind`."""

    def __init__(self, net: "FeedFace", tokens: Tensor, scale: float, rows: slice | None):
        self.rows = rows
        self._scale = scale
        self._on_input = net.control_input == "input"
        self.sites = {
            site: (block, *block.cross_attn.keys_values(tokens))
            for site, block in zip(net.sites, net.blocks, strict=True)
        }

    def block(self, site: Site, x: Tensor, out: Tensor) -> Tensor:
        block, keys, values = self.sites[site.name]
        change = block(x if self._on_input else out, keys, values)
        return change if self._scale == 1 else self._scale * change

    def first(self, count: int) -> "FaceControl":
        control = copy.copy(self)
        control.rows = None
        control.sites = {
            site: (block, keys[:count], values[:count]) for site, (block, keys, values) in self.sites.items()
        }
        return control

    # SHIM until phase two (issue 13): training's wrapper and tests call a control as a function.
    def __call__(self, site: str, tokens_in: Tensor, tokens_out: Tensor) -> Tensor | None:
        return self.block(Site(site, "block", 0, 1), tokens_in, tokens_out) if site in self.sites else None


class FaceEncoderConfig(TypedDict, total=False):
    """Arguments of `transformers.CLIPVisionConfig` that shape the face encoder."""

    __pydantic_config__ = CLOSED
    hidden_size: Width
    intermediate_size: Width
    projection_dim: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    num_channels: Literal[3]
    image_size: SidePx
    patch_size: SidePx
    hidden_act: Text
    layer_norm_eps: Finite


class FeedFaceConfig(TypedDict, total=False):
    """`FeedFace`'s arguments as files hold them. Model folders of version 1 have one `embed_dim`, see `from_config`."""

    __pydantic_config__ = CLOSED
    kind: Literal["feedface"]
    sites: Required[Annotated[list[Text], Len(1, 1024)]]
    widths: Width | Annotated[list[Width], Len(1, 1024)]
    num_heads: Required[Width]
    clip_config: Required[FaceEncoderConfig]
    context_dim: Width | None
    control_input: Literal["output", "input"]
    mlp_ratio: Ratio
    self_attention: bool | Annotated[list[Text], Len(0, 1024)]
    embed_dim: Width


CONFIG = TypeAdapter(FeedFaceConfig)


@torch.no_grad()
def face_states(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Frozen features [B,n,Dv] of face crops [B,3,S,S] in [-1,1], RGB: a CLIP vision model's penultimate states."""
    return encoder(pixels.to(encoder.dtype), output_hidden_states=True).hidden_states[-2]


class Settings(BaseModel):
    """`config.control` of a training config; configs/train_config.py says what the keys mean."""

    model_config = CLOSED
    sites: Sequence[str]
    num_heads: Annotated[int, Field(ge=1)]
    mlp_ratio: Annotated[float, Field(gt=0)]
    control_input: Literal["output", "input"]
    self_attention: bool = True


class FeedFace(Method):
    """Face encoder, projector and one control block for each site of the backbone.

    A fresh one changes nothing: its last linears are zero. Features: "faces" [B,n,Dv], the encoder's states. Identity:
    "tokens" [B,n,E].

    Args:
        sites: names of sites of kind "block"; widths: D of each, or one for all.
        num_heads: of each attention.
        clip_config: arguments of `transformers.CLIPVisionConfig`.
        context_dim: E, the width that a projector brings the encoder's tokens to; None: they are taken as they are,
            without a projector.
        control_input: what a control block sees of its site's block: "output" (the released weights) or "input" (Fig. 1
            of the paper).
        mlp_ratio: hidden width of a block's MLP, as a multiple of D.
        self_attention: which control blocks have one: all, or those at these sites.
        with_encoder: without its encoder it is what training changes, on features that were made elsewhere.
    """

    kind, settings, uses_clip = "feedface", TypeAdapter(Settings), True

    def __init__(
        self,
        sites: Sequence[str],
        widths: int | Sequence[int],
        num_heads: int,
        clip_config: Mapping[str, Any],
        context_dim: int | None = None,
        control_input: str = "output",
        mlp_ratio: float = 4,
        self_attention: bool | Collection[str] = True,
        with_encoder: bool = True,
    ):
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        self.sites = list(sites)
        self.widths = [widths] * len(self.sites) if isinstance(widths, int) else list(widths)
        if control_input not in ("output", "input"):
            raise ValueError(f'control_input must be "output" or "input", not {control_input!r}')
        for width in self.widths:
            if width % num_heads:
                raise ValueError(f"width {width} is not divisible by num_heads {num_heads}")
        attending = self.sites if self_attention is True else list(self_attention or ())
        if unknown := set(attending) - set(self.sites):
            raise ValueError(f"self_attention names {sorted(unknown)[0]}, which is not among the sites")
        self.config = {
            "sites": self.sites,
            "widths": self.widths,
            "num_heads": num_heads,
            "clip_config": dict(clip_config),
            "context_dim": context_dim,
            "control_input": control_input,
            "mlp_ratio": mlp_ratio,
            "self_attention": True if attending == self.sites else attending,
        }
        self.control_input = control_input
        clip = CLIPVisionConfig(**clip_config)
        self.face_encoder = CLIPVisionModel(clip).requires_grad_(False) if with_encoder else None
        self.reference = ReferenceSpec("crop", clip.image_size)
        width = context_dim or clip.hidden_size
        self.projector = nn.Linear(clip.hidden_size, width, bias=False) if context_dim else nn.Identity()
        self.blocks = nn.ModuleList(
            ControlBlock(dim, num_heads, mlp_ratio, width, site in attending)
            for site, dim in zip(self.sites, self.widths, strict=True)
        )

    @classmethod
    def config_type(cls) -> TypeAdapter:
        return CONFIG

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FeedFace":
        """`config`: arguments; an `embed_dim` stands for the width of all sites, and of the tokens."""
        own = dict(config)
        width = own.pop("embed_dim", None)
        return cls(**own) if width is None else cls(**own, widths=width, context_dim=width)

    @classmethod
    def fresh(cls, config: "ConfigDict", backbone: Backbone, **parts: Any) -> "FeedFace":
        """`parts`: `clip_config`, of the face encoder, and perhaps `with_encoder`.

        `config.control`: see `Settings`. Sites of one width share a projector of the encoder's tokens; where widths
        differ, keys and values come straight from these.
        """
        control = config.control
        known = {name: site for name, site in backbone.sites.items() if site.kind == "block"}
        sites = list(control.sites) or list(known)[::2]
        if unknown := [site for site in sites if site not in known]:
            raise UserError(f"config.control.sites: the backbone {backbone.kind} has no {', '.join(unknown)}")
        widths = [known[site].width for site in sites]
        finest = min(known[site].cells for site in sites)
        coarse = [site for site in sites if known[site].cells > finest]
        try:
            return cls(
                sites,
                widths,
                control.num_heads,
                context_dim=widths[0] if len(set(widths)) == 1 else None,
                control_input=control.control_input,
                mlp_ratio=control.mlp_ratio,
                self_attention=True if control.get("self_attention", True) else coarse,
                **parts,
            )
        except ValueError as error:
            raise UserError(f"config.control: {error}") from None

    def check(self, backbone: Backbone, source: object) -> None:
        for name, width in zip(self.sites, self.widths, strict=True):
            site = backbone.sites.get(name)
            if site is None or site.kind != "block":
                problem = f"has no site {name}"
            elif site.width != width:
                problem = f"has width {site.width} at {name}, not {width}"
            else:
                continue
            raise UserError(f"{source}: this {self.kind} belongs to another backbone: the {backbone.kind} {problem}")

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in. Weights of linears may be in less (`low_memory`, `acceleration`)."""
        return self.blocks[0].norm2.weight.dtype

    def features(self, references: Tensor, encoder: nn.Module | None = None) -> Features:
        """`encoder` stands in for its own, where that was left out."""
        return {"faces": face_states(encoder or self.face_encoder, references)}

    def identity(self, features: Features, pool: str = "concat") -> Identity:
        """`pool`: "concat" shows all faces, [B,F*n,E]; "mean" over the faces or "first" face: [B,n,E]."""
        tokens = self.projector(features["faces"].to(self.dtype))  # [B,F,n,E]
        if pool == "concat":
            return {"tokens": tokens.flatten(1, 2)}
        if pool == "mean":
            return {"tokens": tokens.mean(dim=1)}
        if pool == "first":
            return {"tokens": tokens[:, 0]}
        raise ValueError(f"pool must be one of {', '.join(POOLS)}, not {pool!r}")

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> FaceControl | None:
        return None if scale == 0 else FaceControl(self, identity["tokens"].to(self.dtype), scale, rows)

    def step_blocks(self) -> Iterable[nn.Module]:
        return self.blocks

    def encoders(self) -> Iterable[nn.Module]:
        return () if self.face_encoder is None else (self.face_encoder,)

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        return {"projector": self.projector, "blocks": self.blocks}

    # SHIM until phase two (issue 13): what callers of the old face-controlnet know.
    @property
    def embed_dim(self) -> int:
        return self.widths[0]

    @property
    def face_size(self) -> int:
        return self.reference.size

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        return (parameter for name, parameter in self.named_parameters() if not name.startswith("face_encoder."))

    def trainable_state_dict(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.state_dict().items() if not name.startswith("face_encoder.")}

    def encode(self, pixels: Tensor) -> Tensor:
        return self.projector(face_states(self.face_encoder, pixels).to(self.projector.weight.dtype))

    @staticmethod
    def join(tokens: Tensor | Sequence[Tensor], pool: str = "concat") -> Tensor:
        tokens = tokens if isinstance(tokens, Tensor) else torch.stack(tuple(tokens), dim=1)
        if pool == "concat":
            return tokens.flatten(1, 2)
        if pool == "mean":
            return tokens.mean(dim=1)
        if pool == "first":
            return tokens[:, 0]
        raise ValueError(f'pool must be "concat", "mean" or "first", not {pool!r}')


# SHIM until phase two (issue 13): the class as callers and the config.json of model folders of version 1 know it.
class FaceControlNet(FeedFace):
    def __init__(
        self,
        embed_dim: Width,
        num_heads: Width,
        sites: Annotated[Sequence[Text], Len(1, 1024)],
        clip_config: FaceEncoderConfig,
        control_input: Literal["output", "input"] = "output",
        mlp_ratio: Ratio = 4,
        with_encoder: Annotated[bool, IN_CODE] = True,
    ):
        super().__init__(
            sites, embed_dim, num_heads, clip_config, embed_dim, control_input, mlp_ratio, with_encoder=with_encoder
        )
        names = ("num_heads", "sites", "clip_config", "control_input", "mlp_ratio")
        self.config = {"embed_dim": embed_dim, **{name: self.config[name] for name in names}}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "FaceControlNet":
        own = {key: value for key, value in config.items() if key not in ("widths", "context_dim", "self_attention")}
        widths = config.get("widths")
        return cls(**own) if widths is None else cls(**own, embed_dim=widths if isinstance(widths, int) else widths[0])

    def bind(self, *given, **options) -> FaceControl | None:
        if isinstance(given[0], Tensor):
            given = (None, {"tokens": given[0]}, *given[1:])
        return super().bind(*given, **options)

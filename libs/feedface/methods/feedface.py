"""FeedFace: a face-controlnet beside a frozen U-ViT, driven by the tokens of a frozen CLIP image encoder.

Shapes: B batch, F faces of one person, n tokens of one face, N image tokens, D width, S face crop side.
Source: Xiang et al., "FeedFace: Efficient Inference-based Face Personalization via Diffusion Models" (ICLR 2024
Tiny Papers), Fig. 1; defaults are those of the released weights.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.sizes import Layers, Ratio, SidePx, Width
from feedface.validation import CLOSED, IN_CODE, Finite, Text

OFFICIAL_SITES = [f"{half}.{i}" for half in ("in_blocks", "out_blocks") for i in range(0, 14, 2)]


def _split_heads(x: Tensor, num_heads: int) -> Tensor:
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)  # [B, tokens, D] -> [B, heads, tokens, D/heads]


class MultiHeadAttention(nn.Module):
    """Attention whose keys and values can be computed apart, once, and reused."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)
        self.to_out = nn.Linear(dim, dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """`context` [B, tokens, D] -> keys and values, each [B, heads, tokens, D/heads]."""
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
    """Image tokens attend to themselves and to the face; what comes out passes a linear that starts at zero."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.self_attn = MultiHeadAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = MultiHeadAttention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = GegluMlp(dim, int(dim * mlp_ratio))
        self.zero_linear = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.zero_linear.weight)

    def forward(self, x: Tensor, face_keys: Tensor, face_values: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.self_attn(normed, *self.self_attn.keys_values(normed))
        x = x + self.cross_attn(self.norm2(x), face_keys, face_values)
        x = x + self.mlp(self.norm3(x))
        return self.zero_linear(x)


class FaceControl:
    """A control (see `backbones.uvit.Control`) bound to given faces; made by `FaceControlNet.bind`."""

    def __init__(self, net: "FaceControlNet", tokens: Tensor, scale: float, rows: slice | None):
        self.rows = rows
        self._scale = scale
        self._on_input = net.control_input == "input"
        self._sites = {
            site: (block, *block.cross_attn.keys_values(tokens))
            for site, block in zip(net.sites, net.blocks, strict=True)
        }

    def __call__(self, site: str, tokens_in: Tensor, tokens_out: Tensor) -> Tensor | None:
        if site not in self._sites:
            return None
        block, keys, values = self._sites[site]
        change = block(tokens_in if self._on_input else tokens_out, keys, values)
        return change if self._scale == 1 else self._scale * change

    def first(self, count: int) -> "FaceControl":
        """The same control for a batch of the first `count` rows alone, all of which it must act on."""
        control = copy.copy(self)
        control.rows = None
        control._sites = {
            site: (block, keys[:count], values[:count]) for site, (block, keys, values) in self._sites.items()
        }
        return control


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


@torch.no_grad()
def face_states(encoder: nn.Module, pixels: Tensor) -> Tensor:
    """Frozen features [B,n,Dv] of face crops [B,3,S,S] in [-1,1], RGB: a CLIP vision model's penultimate states."""
    return encoder(pixels.to(encoder.dtype), output_hidden_states=True).hidden_states[-2]


class FaceControlNet(nn.Module):
    """Face encoder, projector and one control block for each site of the backbone.

    `sites` are names out of the backbone's `block_names`; `embed_dim` is its width. `clip_config` holds arguments of
    `transformers.CLIPVisionConfig`. `control_input` is what a control block sees of its site's block: "output" (the
    released weights) or "input" (Fig. 1 of the paper). A fresh one changes nothing: its last linears are zero. Without
    its encoder it is what training changes; faces are then encoded elsewhere (`face_states`).
    """

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
        from transformers import CLIPVisionConfig, CLIPVisionModel

        super().__init__()
        if control_input not in ("output", "input"):
            raise ValueError(f'control_input must be "output" or "input", not {control_input!r}')
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.config: dict[str, Any] = {
            "embed_dim": embed_dim,
            "num_heads": num_heads,
            "sites": list(sites),
            "clip_config": dict(clip_config),
            "control_input": control_input,
            "mlp_ratio": mlp_ratio,
        }
        self.embed_dim = embed_dim
        self.sites = list(sites)
        self.control_input = control_input
        clip = CLIPVisionConfig(**clip_config)
        self.face_encoder = CLIPVisionModel(clip).requires_grad_(False) if with_encoder else None
        self.face_size: int = clip.image_size
        self.projector = nn.Linear(clip.hidden_size, embed_dim, bias=False)
        self.blocks = nn.ModuleList(ControlBlock(embed_dim, num_heads, mlp_ratio) for _ in self.sites)

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but those of the frozen face encoder."""
        return (parameter for name, parameter in self.named_parameters() if not name.startswith("face_encoder."))

    def trainable_state_dict(self) -> dict[str, Tensor]:
        """State dict without the frozen face encoder: what training changes."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("face_encoder.")}

    def encode(self, pixels: Tensor) -> Tensor:
        """Face crops [B,3,S,S] in [-1,1], RGB, S = `face_size` (see `encoders.preprocess_face`) -> tokens [B,n,D]."""
        return self.projector(face_states(self.face_encoder, pixels).to(self.projector.weight.dtype))

    @staticmethod
    def join(tokens: Tensor | Sequence[Tensor], pool: str = "concat") -> Tensor:
        """Tokens of several faces of one person, [B,F,n,D] or F times [B,n,D] -> one set for `bind`.

        "concat": [B, F*n, D]; "mean" over the faces or "first" face: [B,n,D].
        """
        tokens = tokens if isinstance(tokens, Tensor) else torch.stack(tuple(tokens), dim=1)
        if pool == "concat":
            return tokens.flatten(1, 2)
        if pool == "mean":
            return tokens.mean(dim=1)
        if pool == "first":
            return tokens[:, 0]
        raise ValueError(f'pool must be "concat", "mean" or "first", not {pool!r}')

    def bind(self, tokens: Tensor, scale: float = 1.0, rows: slice | None = None) -> FaceControl | None:
        """A control for `UViT.forward` that adds `scale` times the faces' influence; None, so no work, at scale 0.

        `tokens` are [B,n,D], a set for each row the control acts on, or [1,n,D], one set for all. `rows` limits it to
        these rows of the batch. Keys and values of the faces are computed here, once for all later steps.
        """
        if scale == 0:
            return None
        return FaceControl(self, tokens.to(self.projector.weight.dtype), scale, rows)

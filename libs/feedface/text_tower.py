"""CLIP's text tower on vectors instead of words, whose attention may have several keys and values for each token.

For networks that speak the language of CLIP's text encoder about something else, such as a face. Keys of its weights
are those of transformers' `CLIPTextModel`, without the table of tokens: what goes in are vectors.

Shapes: B batch, L tokens, D width, H heads, M keys and values of a token.
Source: Radford et al. 2021, "Learning Transferable Visual Models From Natural Language Supervision"; several keys and
values: AdaFace (Feng 2024).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.common.errors import UserError
from feedface.common.gradients import with_gradient_times

LAYER_WEIGHTS = (1.0, 2.0, 4.0)  # of the last three layers, at the start
LAYER_WEIGHTS_GRADIENT = 5.0

if TYPE_CHECKING:
    from transformers import CLIPTextModel


class TextAttention(nn.Module):
    """Causal self-attention. Each token has `copies` (M) keys and values; all of them are seen where the token is."""

    def __init__(self, width: int, heads: int, copies: int = 1):
        super().__init__()
        self.heads, self.copies = heads, copies
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, copies * width)
        self.v_proj = nn.Linear(width, copies * width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        queries = self._split(self.q_proj(x))  # [B,H,L,D/H]
        # A token's M copies follow each other: [B,L,M*D] -> [B,L*M,D] -> [B,H,L*M,D/H]
        keys, values = (
            self._split(linear(x).unflatten(-1, (self.copies, -1)).flatten(1, 2))
            for linear in (self.k_proj, self.v_proj)
        )
        seen = None
        if self.copies > 1:
            tokens = torch.arange(x.shape[1], device=x.device)
            seen = tokens[:, None] >= tokens.repeat_interleave(self.copies)  # [L,L*M]
        x = F.scaled_dot_product_attention(queries, keys, values, seen, is_causal=seen is None)
        return self.out_proj(x.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TextLayer(nn.Module):
    def __init__(self, width: int, heads: int, mlp: int, copies: int):
        super().__init__()
        self.self_attn = TextAttention(width, heads, copies)
        self.layer_norm1 = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, mlp), "act": QuickGelu(), "fc2": nn.Linear(mlp, width)})
        self.layer_norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp["fc2"](self.mlp["act"](self.mlp["fc1"](self.layer_norm2(x))))


class TextTower(nn.Module):
    """Vectors in the place of token embeddings -> the outputs of all layers.

    Args:
        width, layers, heads, mlp: D, how many layers, H, hidden width of an MLP.
        positions: L at most.
        copies: M of each layer; None: 1.
    """

    def __init__(
        self, width: int, layers: int, heads: int, mlp: int, positions: int, copies: Sequence[int] | None = None
    ):
        super().__init__()
        copies = [1] * layers if copies is None else list(copies)
        if width % heads:
            raise ValueError(f"width {width} is not divisible by heads {heads}")
        if len(copies) != layers or min(copies) < 1:
            raise ValueError(f"copies {copies}: must be {layers} numbers from 1, one for each layer")
        self.embeddings = nn.ModuleDict({"position_embedding": nn.Embedding(positions, width)})
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(TextLayer(width, heads, mlp, m) for m in copies)})
        self.final_layer_norm = nn.LayerNorm(width)

    @property
    def layers(self) -> nn.ModuleList:
        return self.encoder["layers"]

    @property
    def positions(self) -> Tensor:
        """Position embeddings [L,D]."""
        return self.embeddings["position_embedding"].weight

    @property
    def copies(self) -> list[int]:
        """M of each layer."""
        return [layer.self_attn.copies for layer in self.layers]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Vectors [B,L,D] -> the output of each layer, before the final norm, [B,L,D] each."""
        x = x + self.positions[: x.shape[1]]
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return outputs

    def load(self, clip: dict[str, Tensor], source: object) -> None:
        """Take the weights of a `CLIPTextModel` of the same widths and M; `UserError` naming what does not fit."""
        state = {key.removeprefix("text_model."): value for key, value in clip.items()}
        for key, own in self.state_dict().items():
            if key not in state:
                raise UserError(f"{source}: has no {key}, so not the weights of a CLIP text encoder of this size")
            if state[key].shape != own.shape:
                raise UserError(f"{source}: {key} has shape {[*state[key].shape]}, needed is {[*own.shape]}")
        self.load_state_dict({key: state[key] for key in self.state_dict()})


class LayerMix(nn.Module):
    """The weighted mean of the last three layers of a tower, which has so many `layers`; the weights learn faster."""

    def __init__(self, layers: int):
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(LAYER_WEIGHTS[-layers:])[:, None])  # [3,1], or [3,D] of channels

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        weights = with_gradient_times(LAYER_WEIGHTS_GRADIENT, self.weights)
        last = torch.stack(list(outputs[-len(weights) :]))  # [layers,B,L,D]
        return (last * (weights / weights.sum(dim=0))[:, None, None]).sum(dim=0)


def tower_config(clip: "CLIPTextModel") -> dict[str, int]:
    """Arguments of a `TextTower` like this one, but for its width; `UserError` for a tower that is built otherwise."""
    config = clip.config
    if config.hidden_act != "quick_gelu":
        raise UserError(f"the model's text encoder has {config.hidden_act}; faces are read and written with quick_gelu")
    return {
        "layers": config.num_hidden_layers,
        "heads": config.num_attention_heads,
        "mlp": config.intermediate_size,
        "positions": config.max_position_embeddings,
    }


class FaceReader(nn.Module):
    """Arc2Face's text encoder: reads "photo of a FACE person", where FACE is a face embedding filled up with zeros.

    Args:
        width: D; tower: the rest of `TextTower`'s arguments.
        face_dim: of the embedding, at most D.
        start: where the face stands, after "photo of a": the first of the `vectors` (N) tokens that come out.
        face_length: of the face among the token embeddings; 1 with the authors'.

    Source: Papantoniou et al. 2024, "Arc2Face: A Foundation Model for ID-Consistent Human Faces".
    """

    def __init__(
        self, width: int, tower: Mapping[str, int], face_dim: int, start: int, vectors: int, face_length: float = 1.0
    ):
        super().__init__()
        if face_dim > width:
            raise ValueError(f"face_dim {face_dim} is above the width {width} of the vectors that hold it")
        self.tower = TextTower(width, **tower)
        self.face_dim, self.persons, self.face_length = face_dim, slice(start, start + vectors), face_length
        check_room(self.tower, self.persons)
        self.template = nn.Buffer(torch.zeros(self.persons.stop, width))  # token embeddings, 0 where the face stands

    def forward(self, face: Tensor) -> Tensor:
        """Embeddings [B,face_dim] of length 1 -> [B,N,D], the text that Arc2Face's U-Net knows of a face."""
        return self.read(face)[:, self.persons]

    def read(self, face: Tensor) -> Tensor:
        """All of the last states, [B,L,D]. Attention is causal: what would stand behind changes nothing."""
        x = self.template.expand(len(face), -1, -1).clone()
        x[:, self.persons.start] = F.pad(self.face_length * face, (0, x.shape[-1] - face.shape[-1]))
        return self.tower.final_layer_norm(self.tower(x)[-1])


def check_room(tower: TextTower, persons: slice) -> None:
    """`ValueError` where a person's vectors do not fit into a tower, with a token after them."""
    if len(tower.positions) <= persons.stop:
        raise ValueError(f"a tower of {len(tower.positions)} positions; a person needs {persons.stop + 1}")


@torch.no_grad()
def extended(tower: TextTower, times: int, noise: float = 0.1, generator: torch.Generator | None = None) -> TextTower:
    """A tower with `times` as many keys and values for each token, which begins as the same function.

    What there was stays as it is, to the bit; the weights (not the biases) of the copies get Gaussian noise of `noise`
    times the mean, over all rows added, of a row's standard deviation. Without noise the outputs are the same.
    """
    first = tower.layers[0]
    made = TextTower(
        len(first.layer_norm1.weight),
        len(tower.layers),
        first.self_attn.heads,
        first.mlp["fc1"].out_features,
        len(tower.positions),
        [times * copies for copies in tower.copies],
    )
    state = tower.state_dict()
    for key, value in state.items():
        if ".k_proj." not in key and ".v_proj." not in key:
            continue
        state[key] = value.repeat(times, *[1] * (value.dim() - 1))
        if noise and times > 1 and key.endswith("weight"):
            added = state[key][len(value) :]
            added += noise * added.std(1).mean() * torch.randn(added.shape, generator=generator)
    made.load_state_dict(state)
    return made

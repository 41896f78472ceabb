"""U-ViT of UniDiffuser: one transformer over image, CLIP-image and text tokens, with long skip connections.

Shapes: B batch, T text tokens, N image tokens, L all tokens, D width, C H W latent, P patch.
State-dict keys and shapes are the authors' (`uvit_v1.pth` loads strictly).
Source: Bao et al. 2023, "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale".
"""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from feedface.backbones import base
from feedface.backbones.base import Backbone, Prompt, Site
from feedface.backbones.control import Control, acts, controlled_attention, controlled_block
from feedface.common.sizes import Layers, Ratio, SidePx, Width
from feedface.diffusion.schedule import NUM_TIMESTEPS
from feedface.diffusion.state import State, length

HEADS = ("img", "clip_img", "text")


@dataclass
class UViTOutput:
    """Predicted noise: `img` [B,C,H,W], `clip_img` [B,1,clip_img_dim], `text` [B,T,text_dim]; None if not asked for.

    `deep` [B,L,D] is what the deep blocks gave, for `UViT.forward(deep=…)` at a later step. `attention` holds, for
    each block asked for, the attention weights [B, heads, L, L].
    """

    img: Tensor | None
    clip_img: Tensor | None
    text: Tensor | None
    deep: Tensor | None = None
    attention: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Conditions(base.Conditions):
    """What the U-ViT sees that stays the same over the steps of a generation; made by `UViT.conditions`.

    `tokens` [B,2+T,D]: t_text, data type and text, embedded and with their positions. `t_img_position` [1,1,D],
    `image_positions` [1,1+N,D]: those of the tokens that change. `frequencies` [D/2]: see `timestep_embedding`.
    """

    grid: tuple[int, int]
    tokens: Tensor
    t_img_position: Tensor
    image_positions: Tensor
    frequencies: Tensor

    def __getitem__(self, rows: slice) -> "Conditions":
        return replace(self, tokens=self.tokens[rows])


def timestep_frequencies(dim: int, device: torch.device, max_period: float = 10_000.0) -> Tensor:
    """The table [dim // 2] (float32) of `timestep_embedding`: from 1 down, geometrically, towards 1 / max_period."""
    half = dim // 2
    return torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=device))


def timestep_embedding(t: Tensor, dim: int, frequencies: Tensor | None = None) -> Tensor:
    """Sinusoidal embedding [B, dim] (float32) of timesteps [B], which may be fractional: cosines, then sines."""
    if frequencies is None:
        frequencies = timestep_frequencies(dim, t.device)
    angles = t.float()[:, None] * frequencies
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


class Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, maps: list[Tensor] | None = None) -> Tensor:
        B, L, D = x.shape
        qkv = self.qkv(x).reshape(B, L, 3, self.num_heads, D // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, L, D/heads]
        if maps is not None:
            maps.append((q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1))
        if x.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
            # Its backward pass on a CPU in bfloat16 is slower than that of plain products, at a few hundred tokens.
            weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            x = weights.softmax(dim=-1) @ v
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))


class AttentionOperator:
    """An `Attention`'s parts, for a control that stands in for it: see `backbones.control.Operator`."""

    def __init__(self, attention: Attention):
        self.attention = attention

    def query(self, x: Tensor) -> Tensor:
        return self.attention.qkv(x).chunk(3, dim=-1)[0]

    def key_value(self, context: Tensor) -> tuple[Tensor, Tensor]:
        return self.attention.qkv(context).chunk(3, dim=-1)[1:]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (x.unflatten(-1, (self.attention.num_heads, -1)).transpose(1, 2) for x in (query, key, value))
        return self.attention.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))

    def __call__(self, x: Tensor, context: Tensor) -> Tensor:
        return self.attention(x)


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Post-norm transformer block; blocks of the second half first merge a skip connection."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, skip: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim) if skip else None
        self.norm2 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm3 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.skip_linear = nn.Linear(2 * dim, dim) if skip else None

    def forward(
        self,
        x: Tensor,
        skip: Tensor | None = None,
        maps: list[Tensor] | None = None,
        attention: Callable[[AttentionOperator, Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """`attention(op, x, x)` stands in for the block's own, where given."""
        if self.skip_linear is not None:
            x = self.norm1(self.skip_linear(torch.cat([x, skip], dim=-1)))
        attended = self.attn(x, maps) if attention is None else attention(AttentionOperator(self.attn), x, x)
        x = self.norm2(x + attended)
        return self.norm3(x + self.mlp(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, img: Tensor) -> Tensor:
        return self.proj(img).flatten(2).transpose(1, 2)  # [B,C,H,W] -> [B,N,D]


class UViT(Backbone):
    """Noise predictor over [t_img, t_text, data_type, text, clip_img, image] tokens.

    `img_size` is the latent size (side, or [height, width]) that the stored positions belong to; any other size
    divisible by the patch is taken too, with positions interpolated. `depth` is odd or even: `depth // 2` blocks,
    one in the middle, `depth // 2` blocks with skips (the authors' 30 means 15 + 1 + 15).
    `forward` is the seam's; `predict` has all inputs and outputs. Sites: all blocks, such as "in_blocks.0", and their
    self-attentions over all tokens, "in_blocks.0.attn".
    """

    kind = "uvit"
    uncond_modes = ("true_uncond", "empty_token", "paper")
    reusable = True

    def __init__(
        self,
        img_size: SidePx | Annotated[Sequence[SidePx], Len(2, 2)] = 64,
        in_chans: Width = 4,
        patch_size: SidePx = 2,
        embed_dim: Width = 1536,
        depth: Layers = 30,
        num_heads: Width = 24,
        mlp_ratio: Ratio = 4,
        text_dim: Width = 64,
        num_text_tokens: Width = 77,
        clip_img_dim: Width = 512,
    ):
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if height % patch_size or width % patch_size:
            raise ValueError(f"img_size {height}x{width} is not divisible by patch_size {patch_size}")
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not divisible by num_heads {num_heads}")
        self.config: dict[str, Any] = {
            "img_size": [height, width],
            "in_chans": in_chans,
            "patch_size": patch_size,
            "embed_dim": embed_dim,
            "depth": depth,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
            "text_dim": text_dim,
            "num_text_tokens": num_text_tokens,
            "clip_img_dim": clip_img_dim,
        }
        self.img_size = self.latent_size = (height, width)
        self.latent_channels, self.latent_multiple, self.text_tokens = in_chans, patch_size, num_text_tokens
        self.in_chans, self.patch_size, self.embed_dim = in_chans, patch_size, embed_dim
        self.text_dim, self.num_text_tokens, self.clip_img_dim = text_dim, num_text_tokens, clip_img_dim
        self.grid = (height // patch_size, width // patch_size)
        self.gradient_checkpointing = False

        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.text_embed = nn.Linear(text_dim, embed_dim)
        self.text_out = nn.Linear(embed_dim, text_dim)
        self.clip_img_embed = nn.Linear(clip_img_dim, embed_dim)
        self.clip_img_out = nn.Linear(embed_dim, clip_img_dim)
        num_positions = 2 + num_text_tokens + 1 + self.grid[0] * self.grid[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, num_positions, embed_dim))
        self.pos_embed_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.token_embedding = nn.Embedding(2, embed_dim)

        half = depth // 2
        self.in_blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, skip=False) for _ in range(half))
        self.mid_block = Block(embed_dim, num_heads, mlp_ratio, skip=False)
        self.out_blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, skip=True) for _ in range(half))
        self.norm = nn.LayerNorm(embed_dim)
        self.decoder_pred = nn.Linear(embed_dim, patch_size**2 * in_chans)
        self._initialise()

        place = {"width": embed_dim, "cells": patch_size, "heads": num_heads, "start": self.image_start}
        self.sites = {}
        for name in self.block_names:
            self.sites[f"{name}.attn"] = Site(f"{name}.attn", "self_attention", **place)
            self.sites[name] = Site(name, "block", **place)

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_token, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @property
    def block_names(self) -> list[str]:
        """All blocks, in the order of the forward pass."""
        half = len(self.in_blocks)
        return [
            *(f"in_blocks.{i}" for i in range(half)),
            "mid_block",
            *(f"out_blocks.{i}" for i in range(half)),
        ]

    @property
    def deep_attentions(self) -> Sequence[str]:
        return ("mid_block.attn",)

    @property
    def shallow_blocks(self) -> int:
        """How many blocks at each end are evaluated at every step, also where the deep ones' output is reused."""
        half = len(self.in_blocks)
        return min(half, max(1, half // 5))

    @property
    def image_start(self) -> int:
        """Index of the first image token: image tokens are `[image_start:]`."""
        return self.clip_img_index + 1

    @property
    def clip_img_index(self) -> int:
        """Index of the CLIP-image token."""
        return self.text_span.stop

    @property
    def text_span(self) -> slice:
        """Where the text tokens stand: after the two timesteps and the data type."""
        return slice(3, 3 + self.num_text_tokens)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """Positions [1,L,D] of all tokens; those of the image are interpolated when `grid` is not the stored one."""
        others = self.image_start - 1  # the data type's position is stored apart
        times, conditions, image = self.pos_embed.split([2, others - 2, self.grid[0] * self.grid[1]], dim=1)
        if grid != self.grid:
            image = image.unflatten(1, self.grid).permute(0, 3, 1, 2)
            image = F.interpolate(image, grid, mode="bilinear").flatten(2).transpose(1, 2)
        return torch.cat([times, self.pos_embed_token, conditions, image], dim=1)

    def _controlled(
        self,
        name: str,
        block: Block,
        x: Tensor,
        skip: Tensor | None,
        maps: list[Tensor] | None,
        control: Control | None,
    ) -> Tensor:
        """Run one block with what the control does in it and behind it."""
        attention = None
        if acts(control, f"{name}.attn"):
            attention = partial(controlled_attention, control, self.sites[f"{name}.attn"])
        out = block(x, skip, maps, attention)
        return controlled_block(control, self.sites[name], x, out) if acts(control, name) else out

    @property
    def dtype(self) -> torch.dtype:
        return self.pos_embed.dtype

    def blocks(self) -> Iterator[tuple[str, nn.Module]]:
        return ((name, self.get_submodule(name)) for name in self.block_names)

    def operator(self, site: str) -> AttentionOperator:
        return AttentionOperator(self.get_submodule(site))

    def state_shapes(self, latent_size: tuple[int, int] | None = None) -> dict[str, tuple[int, ...]]:
        return {**super().state_shapes(latent_size), "clip_img": (1, self.clip_img_dim)}

    def guided_prompt(self, prompt: Prompt, mode: str, empty_prompt: Prompt | None, noise: Tensor | None) -> Prompt:
        if mode == "true_uncond":
            if noise is None:
                raise ValueError(f"uncond_mode {mode!r} needs noise in the shape of the text")
            empty_prompt = {"text": noise}
        halves = super().guided_prompt({"text": prompt["text"]}, mode, empty_prompt, noise)
        t_text = torch.zeros(length(halves), device=prompt["text"].device)
        t_text[length(prompt) :] = NUM_TIMESTEPS * (mode == "true_uncond")
        return {**halves, "t_text": t_text}

    def conditions(self, prompt: Prompt, latent_size: tuple[int, int] | None = None) -> Conditions:
        """`prompt`: "text" [B,T,Dt]; perhaps "t_text" [B], by default 0, and "data_type" [B], by default 1."""
        text = prompt["text"]
        t_text = prompt.get("t_text", torch.zeros(len(text), device=text.device))
        # 1 is the release's at inference
        data_type = prompt.get("data_type", torch.ones(len(text), dtype=torch.long, device=text.device))
        return self.embed(text, t_text, data_type, latent_size)

    def embed(
        self, text: Tensor, t_text: Tensor, data_type: Tensor, latent_size: tuple[int, int] | None = None
    ) -> Conditions:
        """What stays the same over the steps of a generation: pass it to `predict` in place of `text`.

        Args: see `predict`; `latent_size` is the (height, width) of its `img`, by default `img_size`. Raises
        `ValueError` when that is not divisible by the patch.
        """
        P = self.patch_size
        H, W = latent_size or self.img_size
        if H % P or W % P:
            raise ValueError(f"latent of {H}x{W} is not divisible by the patch size {P}")
        grid = (H // P, W // P)
        dtype = self.pos_embed.dtype
        frequencies = timestep_frequencies(self.embed_dim, t_text.device)
        tokens = torch.cat(
            [
                timestep_embedding(t_text, self.embed_dim, frequencies).to(dtype)[:, None],
                self.token_embedding(data_type)[:, None],
                self.text_embed(text.to(dtype)),
            ],
            dim=1,
        )
        t_img, same, image = self._positions(grid).split([1, tokens.shape[1], 1 + grid[0] * grid[1]], dim=1)
        return Conditions(grid, tokens + same, t_img, image, frequencies)

    def forward(
        self,
        state: State,
        t: Tensor,
        conditions: Conditions,
        control: Control | None = None,
        memory: dict[str, Tensor] | None = None,
    ) -> State:
        deep = None if memory is None else memory.get("deep")
        out = self.predict(
            state["img"], state["clip_img"], conditions, t, control=control, heads=("img", "clip_img"), deep=deep
        )
        if memory is not None:
            memory["deep"] = out.deep.clone()  # a CUDA graph would overwrite it in the next evaluation
        return {"img": out.img, "clip_img": out.clip_img}

    def predict(
        self,
        img: Tensor,
        clip_img: Tensor,
        text: Tensor | Conditions,
        t_img: Tensor,
        t_text: Tensor | None = None,
        data_type: Tensor | None = None,
        control: Control | None = None,
        attention_maps: Collection[str] = (),
        heads: Collection[str] = HEADS,
        deep: Tensor | None = None,
    ) -> UViTOutput:
        """Predict the noise in `img` [B,C,H,W], `clip_img` [B,1,Dc] and `text` [B,T,Dt].

        `t_img` [B] is the timestep of image and CLIP image, `t_text` [B] that of the text: 0 is clean, 1000 pure
        noise. `data_type` [B] is 1 in the authors' inference. In place of `text`, `t_text` and `data_type`, `text` may
        be the `conditions` made of them. `heads`: what to predict. `attention_maps` names blocks whose weights to
        return. Tokens have the weights' dtype.

        `deep`: the `UViTOutput.deep` of an earlier step to go on with, so that only `shallow_blocks` at each end are
        evaluated; the long skips bring what is new past the rest (the idea of Ma et al. 2024, DeepCache, on a U-Net).

        Raises `ValueError` when H or W is not divisible by the patch, or not those that was made for.
        """
        P = self.patch_size
        B, _, H, W = img.shape
        same = text if isinstance(text, Conditions) else self.embed(text, t_text, data_type, (H, W))
        grid = same.grid
        if (grid[0] * P, grid[1] * P) != (H, W):
            raise ValueError(f"latent of {H}x{W} with conditions for {grid[0] * P}x{grid[1] * P}")
        dtype = self.pos_embed.dtype
        time = timestep_embedding(t_img, self.embed_dim, same.frequencies).to(dtype)[:, None]
        image = torch.cat([self.clip_img_embed(clip_img.to(dtype)), self.patch_embed(img.to(dtype))], dim=1)
        x = torch.cat([time + same.t_img_position, same.tokens, image + same.image_positions], dim=1)  # [B,L,D]

        maps: dict[str, list[Tensor]] = {name: [] for name in attention_maps}
        run = self._controlled
        if self.gradient_checkpointing and torch.is_grad_enabled() and not maps:
            # Nothing in a block is random: no state to keep, which a GPU would be waited for.
            options = {"use_reentrant": False, "preserve_rng_state": False}
            run = lambda *args: checkpoint(self._controlled, *args, **options)  # noqa: E731
        half = len(self.in_blocks)
        evaluated = half if deep is None else self.shallow_blocks  # at each end
        skips = []
        for i in range(evaluated):
            site = f"in_blocks.{i}"
            x = run(site, self.in_blocks[i], x, None, maps.get(site), control)
            skips.append(x)
        x = run("mid_block", self.mid_block, x, None, maps.get("mid_block"), control) if deep is None else deep
        for i in range(half - evaluated, half):
            if i == half - self.shallow_blocks:
                deep = x
            site = f"out_blocks.{i}"
            x = run(site, self.out_blocks[i], x, skips.pop(), maps.get(site), control)
        x = self.norm(x)

        noise: dict[str, Tensor | None] = dict.fromkeys(HEADS)
        if "img" in heads:
            patches = self.decoder_pred(x[:, self.image_start :])  # [B, N, P*P*C]
            patches = patches.reshape(B, *grid, P, P, self.in_chans)
            noise["img"] = patches.permute(0, 5, 1, 3, 2, 4).reshape(B, self.in_chans, H, W)
        if "clip_img" in heads:
            noise["clip_img"] = self.clip_img_out(x[:, self.clip_img_index : self.image_start])
        if "text" in heads:
            noise["text"] = self.text_out(x[:, self.text_span])
        return UViTOutput(**noise, deep=deep, attention={name: found[0] for name, found in maps.items()})

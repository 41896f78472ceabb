"""U-ViT of UniDiffuser: one transformer over image, CLIP-image and text tokens, with long skip connections.

Shapes: B batch, T text tokens, N image tokens, L all tokens, D width, C H W latent, P patch.
State-dict keys and shapes are the authors' (`uvit_v1.pth` loads strictly).
Source: Bao et al. 2023, "One Transformer Fits All Distributions in Multi-Modal Diffusion at Scale".
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# control(site, tokens_in [B,N,D], tokens_out [B,N,D]) -> [B,N,D] to add to the block's image tokens, or None.
# An attribute `rows` (slice or index) limits it to these rows of the batch; it then gets and returns only them.
Control = Callable[[str, Tensor, Tensor], Tensor | None]


@dataclass
class UViTOutput:
    """Predicted noise: `img` [B,C,H,W], `clip_img` [B,1,clip_img_dim], `text` [B,T,text_dim].

    `attention` holds, for each block asked for, the attention weights [B, heads, L, L].
    """

    img: Tensor
    clip_img: Tensor
    text: Tensor
    attention: dict[str, Tensor] = field(default_factory=dict)


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding [B, dim] (float32) of timesteps [B], which may be fractional: cosines, then sines."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) / half * torch.arange(half, dtype=torch.float32, device=t.device))
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
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))


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

    def forward(self, x: Tensor, skip: Tensor | None = None, maps: list[Tensor] | None = None) -> Tensor:
        if self.skip_linear is not None:
            x = self.norm1(self.skip_linear(torch.cat([x, skip], dim=-1)))
        x = self.norm2(x + self.attn(x, maps))
        return self.norm3(x + self.mlp(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_chans, dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, img: Tensor) -> Tensor:
        return self.proj(img).flatten(2).transpose(1, 2)  # [B,C,H,W] -> [B,N,D]


class UViT(nn.Module):
    """Noise predictor over [t_img, t_text, data_type, text, clip_img, image] tokens.

    `img_size` is the latent size (side, or [height, width]) that the stored positions belong to; any other size
    divisible by the patch is taken too, with positions interpolated. `depth` is odd or even: `depth // 2` blocks,
    one in the middle, `depth // 2` blocks with skips (the authors' 30 means 15 + 1 + 15).
    `gradient_checkpointing = True` trades time for memory in training.
    """

    def __init__(
        self,
        img_size: int | Collection[int] = 64,
        in_chans: int = 4,
        patch_size: int = 2,
        embed_dim: int = 1536,
        depth: int = 30,
        num_heads: int = 24,
        mlp_ratio: float = 4,
        text_dim: int = 64,
        num_text_tokens: int = 77,
        clip_img_dim: int = 512,
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
        self.img_size = (height, width)
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
        """All sites at which a control may act, in the order of the forward pass."""
        half = len(self.in_blocks)
        return [
            *(f"in_blocks.{i}" for i in range(half)),
            "mid_block",
            *(f"out_blocks.{i}" for i in range(half)),
        ]

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

    def _controlled(self, site: str, block: Block, x: Tensor, skip: Tensor | None, maps, control) -> Tensor:
        """Run one block, then add what the control answers to its image tokens."""
        out = block(x, skip, maps)
        if control is None:
            return out
        rows = getattr(control, "rows", None)
        image = (slice(None) if rows is None else rows, slice(self.image_start, None))
        change = control(site, x[image], out[image])
        if change is None:
            return out
        if rows is None:
            return out + F.pad(change, (0, 0, self.image_start, 0))
        out = out.clone()  # the control's backward pass still needs the tokens it read
        out[image] += change
        return out

    def forward(
        self,
        img: Tensor,
        clip_img: Tensor,
        text: Tensor,
        t_img: Tensor,
        t_text: Tensor,
        data_type: Tensor,
        control: Control | None = None,
        attention_maps: Collection[str] = (),
    ) -> UViTOutput:
        """Predict the noise in `img` [B,C,H,W], `clip_img` [B,1,Dc] and `text` [B,T,Dt].

        `t_img` [B] is the timestep of image and CLIP image, `t_text` [B] that of the text: 0 is clean, 1000 pure
        noise. `data_type` [B] is 1 in the authors' inference. `attention_maps` names blocks whose weights to return.
        Tokens have the weights' dtype. Raises `ValueError` when H or W is not divisible by the patch.
        """
        P = self.patch_size
        B, _, H, W = img.shape
        if H % P or W % P:
            raise ValueError(f"latent of {H}x{W} is not divisible by the patch size {P}")
        grid = (H // P, W // P)
        dtype = self.pos_embed.dtype
        x = torch.cat(
            [
                timestep_embedding(t_img, self.embed_dim).to(dtype)[:, None],
                timestep_embedding(t_text, self.embed_dim).to(dtype)[:, None],
                self.token_embedding(data_type)[:, None],
                self.text_embed(text.to(dtype)),
                self.clip_img_embed(clip_img.to(dtype)),
                self.patch_embed(img.to(dtype)),
            ],
            dim=1,
        )
        x = x + self._positions(grid)

        maps: dict[str, list[Tensor]] = {name: [] for name in attention_maps}
        run = self._controlled
        if self.gradient_checkpointing and torch.is_grad_enabled() and not maps:
            run = lambda *args: checkpoint(self._controlled, *args, use_reentrant=False)  # noqa: E731
        skips = []
        for i, block in enumerate(self.in_blocks):
            site = f"in_blocks.{i}"
            x = run(site, block, x, None, maps.get(site), control)
            skips.append(x)
        x = run("mid_block", self.mid_block, x, None, maps.get("mid_block"), control)
        for i, block in enumerate(self.out_blocks):
            site = f"out_blocks.{i}"
            x = run(site, block, x, skips.pop(), maps.get(site), control)
        x = self.norm(x)

        patches = self.decoder_pred(x[:, self.image_start :])  # [B, N, P*P*C]
        patches = patches.reshape(B, *grid, P, P, self.in_chans)
        return UViTOutput(
            img=patches.permute(0, 5, 1, 3, 2, 4).reshape(B, self.in_chans, H, W),
            clip_img=self.clip_img_out(x[:, self.clip_img_index : self.image_start]),
            text=self.text_out(x[:, self.text_span]),
            attention={name: found[0] for name, found in maps.items()},
        )

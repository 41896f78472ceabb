"""Dense-Face's pose branch: a ControlNet without attention, which reads a drawing of the head's pose beside the latent.

Names of its weights are those of diffusers' `ControlNetModel`, but for the middle, which has two residual blocks here.
Shapes: B batch, C h w latent.
Source: Guo et al. 2024, "Dense-Face", after Zhang et al. 2023, "Adding Conditional Control to Text-to-Image
Diffusion Models".
"""

from collections.abc import Mapping, Sequence

import torch
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.unets.unet_2d_blocks import DownBlock2D
from torch import Tensor, nn

NORM_EPS = 1e-5
SILU_GAIN = 1.68  # keeps the spread of what is normal, of spread 1


class PoseBranch(nn.Module):
    """The U-Net's way down, and what is to be added to its skips and middle; nothing at first.

    Args:
        latent_channels: C.
        channels: widths of the levels, the U-Net's; layers: residual blocks a level.
        hint_channels: of the convolutions that read the drawing; each but the first halves it.
        groups: of the norms.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: Sequence[int],
        layers: int = 2,
        hint_channels: Sequence[int] = (16, 32, 96, 256),
        groups: int = 32,
    ):
        super().__init__()
        first, last, times = channels[0], channels[-1], 4 * channels[0]
        self.config = {
            "latent_channels": latent_channels,
            "channels": list(channels),
            "layers": layers,
            "hint_channels": list(hint_channels),
            "groups": groups,
        }
        self.hint_factor = 2 ** (len(hint_channels) - 1)
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, times)
        self.conv_in = nn.Conv2d(latent_channels, first, 3, padding=1)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(first, block_out_channels=tuple(hint_channels))
        # At PyTorch's own scale these convolutions leave a millionth of how two drawings differ: nothing to learn from.
        for conv in (self.controlnet_cond_embedding.conv_in, *self.controlnet_cond_embedding.blocks):
            nn.init.normal_(conv.weight, std=SILU_GAIN * conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(conv.bias)
        self.down_blocks = nn.ModuleList(
            DownBlock2D(
                before,
                width,
                times,
                num_layers=layers,
                resnet_eps=NORM_EPS,
                resnet_groups=groups,
                add_downsample=level < len(channels) - 1,
            )
            for level, (before, width) in enumerate(zip([first, *channels], channels, strict=False))
        )
        middle = {"in_channels": last, "temb_channels": times, "groups": groups, "eps": NORM_EPS}
        self.mid_block = nn.ModuleDict({"resnets": nn.ModuleList(ResnetBlock2D(**middle) for _ in range(2))})
        widths = [first]
        for level, width in enumerate(channels):
            widths += [width] * (layers + (level < len(channels) - 1))
        self.controlnet_down_blocks = nn.ModuleList(_zero_conv(width) for width in widths)
        self.controlnet_mid_block = _zero_conv(last)

    def copy_encoder(self, unet: Mapping[str, Tensor]) -> None:
        """Begin with a U-Net's own weights, a state dict in diffusers' naming, wherever they fit."""
        own = self.state_dict()
        self.load_state_dict({**own, **{k: v for k, v in unet.items() if k in own and v.shape == own[k].shape}})

    def embedded(self, hint: Tensor) -> Tensor:
        """What the drawing [B,3,8h,8w] adds to the first convolution's output; the same at all timesteps."""
        return self.controlnet_cond_embedding(hint.to(self.conv_in.weight))

    def forward(self, x: Tensor, t: Tensor, hint: Tensor) -> list[Tensor]:
        """Latents `x` [B,C,h,w] at times `t` [B] of 0…999, an `embedded` drawing -> what to add to skips and middle."""
        times = self.time_embedding(self.time_proj(t).to(self.conv_in.weight))
        x = self.conv_in(x.to(self.conv_in.weight)) + hint
        maps = [x]
        for block in self.down_blocks:
            x, passed = block(x, times)
            maps += passed
        for block in self.mid_block["resnets"]:
            x = block(x, times)
        added = [conv(value) for conv, value in zip(self.controlnet_down_blocks, maps, strict=True)]
        return [*added, self.controlnet_mid_block(x)]


def _zero_conv(width: int) -> nn.Conv2d:
    conv = nn.Conv2d(width, width, 1)
    for parameter in conv.parameters():
        torch.nn.init.zeros_(parameter)
    return conv

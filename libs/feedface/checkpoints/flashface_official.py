"""`flashface.ckpt`, the released weights of FlashFace's own authors: two U-Nets and second attentions, in their naming.

The denoiser is `ori_encoder`, `ori_middle`, `ori_decoder`; `encoder`, `middle`, `decoder` are the same tensors again.
The reference net is `ref_encoder`, `ref_decoder` and the denoiser's middle: `ref_middle` is there, and never used. Both
have `time_embedding` and `head`. Their norms of convolutions have an eps of 1e-6, Stable Diffusion's 1e-5.
"""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from feedface.backbones.unet import UNet
from feedface.checkpoints.foreign import read_weights
from feedface.checkpoints.storage import empty, fill
from feedface.common.errors import UserError
from feedface.methods.flashface import chosen_sites, slot
from feedface.methods.flashface_official import FlashFaceOfficial

ALIASES = ("encoder.", "middle.", "decoder.", "ref_middle.")
SAMPLE_SIZE = 96  # 768 px
# Inside the parts: theirs -> diffusers'.
RESNET = {
    "layer1.0": "norm1", "layer1.2": "conv1", "embedding.1": "time_emb_proj", "layer2.0": "norm2", "layer2.3": "conv2",
    "shortcut": "conv_shortcut",
}  # fmt: skip
BLOCK = {
    "norm1": "norm1", "norm2": "norm2", "norm3": "norm3", "ffn.0.proj": "ff.net.0.proj", "ffn.2": "ff.net.2",
    **{f"self_attn.{x}": f"attn1.to_{x}" for x in "qkv"}, "self_attn.o": "attn1.to_out.0",
    **{f"cross_attn.{x}": f"attn2.to_{x}" for x in "qkv"}, "cross_attn.o": "attn2.to_out.0",
}  # fmt: skip
STACK = {"norm1": "norm", "conv1": "proj_in", "conv2": "proj_out"} | {
    f"blocks.0.{theirs}": f"transformer_blocks.0.{ours}" for theirs, ours in BLOCK.items()
}
SECOND = re.compile(r"blocks\.0\.self_attn\.self_attn_first\.([qkvo])")
SHARED = {
    "time_embedding.0": "time_embedding.linear_1", "time_embedding.2": "time_embedding.linear_2",
    "head.0": "conv_norm_out", "head.2": "conv_out",
}  # fmt: skip


def load_official(
    source: str | os.PathLike | Mapping[str, Tensor], heads: int = 8, sample_size: int = SAMPLE_SIZE
) -> tuple[UNet, FlashFaceOfficial]:
    """The denoiser and the method, ready to infer, out of a checkpoint; sizes are the tensors' own, but for `heads`.

    `UserError` for what is missing, unknown or of another shape.
    """
    name = "the given weights" if isinstance(source, Mapping) else str(source)
    state = dict(source) if isinstance(source, Mapping) else read_weights(source)
    for key in ("ori_encoder.0.weight", "ref_encoder.0.weight", "ori_middle.1.blocks.0.cross_attn.k.weight"):
        if key not in state:
            raise UserError(f"{name}: has no {key}, so is not FlashFace's released checkpoint (flashface.ckpt)")
    config = _unet_config(state, heads, sample_size)
    backbone = empty(UNet, {**config, "in_channels": 5, "mask_channels": 1}, name)
    sites = chosen_sites((), backbone)
    described = {"sites": sites, "widths": [backbone.sites[site].width for site in sites], "heads": heads}
    described["refnet"] = {"kind": "unet", **config, "in_channels": 4}
    method = empty(FlashFaceOfficial, described, name)
    found: dict[str, dict[str, Tensor]] = {"ori": {}, "ref": {}, "second": {}}
    for key, value in state.items():
        if key.startswith(ALIASES):
            continue
        places = list(_places(key, config["layers_per_block"]))
        if not places:
            raise UserError(f"{name}: {key} has no place in FlashFace's network")
        for part, ours in places:
            found[part][ours] = value
    for part, module in (("ori", backbone.unet), ("ref", method.refnet.unet), ("second", method.second)):
        fill(module, found[part], name)
    return backbone.eval().requires_grad_(False), method.eval().requires_grad_(False)


def convert(file: str | os.PathLike, base: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Write a model folder of ours from `flashface.ckpt`; text encoder and VAE are `base`'s, a Stable Diffusion 1.5."""
    from feedface.checkpoints.bundle import save_component, write_index
    from feedface.common.files import atomic_folder

    target = Path(target)
    if target.exists():
        raise UserError(f"{target}: is there already; name another folder")
    backbone, method = load_official(file)
    with atomic_folder(target) as folder:
        save_component("backbone", backbone, folder / "backbone")
        save_component("method", method, folder / "method")
        where = os.path.relpath(base, target)
        write_index(
            folder,
            name="flashface-official",
            image_size=8 * SAMPLE_SIZE,
            components={"backbone": "backbone", "method": "method", "vae": where, "text_encoder": where},
            defaults={"guidance": 7.5, "face_scale": 1.2, "steps": 35},
        )
    return target


def _unet_config(state: Mapping[str, Tensor], heads: int, sample_size: int) -> dict[str, Any]:
    items = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("ori_encoder."))
    # Plain convolutions: the first one, and those that halve, between the levels.
    levels = sum(f"ori_encoder.{index}.weight" in state for index in range(items))
    layers = (items - levels) // levels
    firsts = [1 + level * (layers + 1) for level in range(levels)]
    return {
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "sample_size": sample_size,
        "out_channels": 4,
        "layers_per_block": layers,
        "block_out_channels": [len(state[f"ori_encoder.{index}.0.layer1.2.bias"]) for index in firsts],
        "cross_attention_dim": state["ori_middle.1.blocks.0.cross_attn.k.weight"].shape[1],
        "attention_head_dim": heads,
        "norm_eps": 1e-6,
    }


def _places(key: str, layers: int) -> Iterator[tuple[str, str]]:
    """(part, name in it) of a tensor: of both nets, where they share it; none for an unknown one."""
    module, _, kind = key.rpartition(".")
    if module in SHARED:
        yield from ((net, f"{SHARED[module]}.{kind}") for net in ("ori", "ref"))
        return
    net, _, rest = key.partition("_")
    tower, _, rest = rest.partition(".")
    if net not in ("ori", "ref") or tower not in ("encoder", "middle", "decoder"):
        return
    at, inner = {"encoder": _down, "middle": _middle, "decoder": _up}[tower](rest.rpartition(".")[0].split("."), layers)
    if found := SECOND.fullmatch(inner):
        yield "second", f"{slot(f'{at}.attn1')}.{'to_out' if found[1] == 'o' else f'to_{found[1]}'}.{kind}"
        return
    names = {"": "", **(RESNET if ".resnets." in at else STACK)}
    if at and inner in names:
        name = ".".join(part for part in (at, names[inner], kind) if part)
        yield from ((part, name) for part in (("ori", "ref") if tower == "middle" else (net,)))


def _down(path: list[str], layers: int) -> tuple[str, str]:
    item, *inner = path
    if item == "0":
        return "conv_in", ".".join(inner)
    level, layer = divmod(int(item) - 1, layers + 1)
    if layer == layers:
        return f"down_blocks.{level}.downsamplers.0.conv", ".".join(inner)
    return _part(f"down_blocks.{level}", layer, inner)


def _middle(path: list[str], layers: int) -> tuple[str, str]:
    index = int(path[0])
    return ("mid_block.attentions.0" if index == 1 else f"mid_block.resnets.{index // 2}"), ".".join(path[1:])


def _up(path: list[str], layers: int) -> tuple[str, str]:
    item, *inner = path
    level, layer = divmod(int(item), layers + 1)
    if layer == layers and inner == (["1", "1"] if level == 0 else ["2", "1"]):
        return f"up_blocks.{level}.upsamplers.0.conv", ""
    return _part(f"up_blocks.{level}", layer, inner)


def _part(block: str, layer: int, inner: list[str]) -> tuple[str, str]:
    number, *names = inner
    return f"{block}.{'resnets' if number == '0' else 'attentions'}.{layer}", ".".join(names)

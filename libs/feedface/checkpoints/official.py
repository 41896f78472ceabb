"""The authors' release: its four files, read into our classes (spec: the authors' names and shapes).

uvit_v1.pth, autoencoder_kl.pth, caption_decoder.pth and feed-4800000.pt are pickled state dicts: only their tensors are
read (`weights_only`), mapped from disk rather than copied. What a file lacks, has besides or has in another shape is a
`UserError` that names the file and the key. The two CLIP models come from their usual places.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone, backbone_class
from feedface.checkpoints.foreign import read_weights
from feedface.checkpoints.storage import empty, fill
from feedface.common.errors import UserError
from feedface.common.reading import foreign
from feedface.methods.base import Method, method_class

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

HOME = "https://huggingface.co/Xiang-cd/FeedFace"
CLIP_VIT_B32 = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}
OFFICIAL_SITES = [f"{half}.{i}" for half in ("in_blocks", "out_blocks") for i in range(0, 14, 2)]
OFFICIAL_HEADS = 64
# The KL-f8 autoencoder of Stable Diffusion 1.
VAE_CONFIG = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}

Source = str | os.PathLike | Mapping[str, Tensor]


def read_state_dict(source: Source) -> tuple[dict[str, Tensor], str]:
    """Tensors by name, of a file (mapped, read-only use) or given, without DataParallel's `module.`; and the name."""
    if isinstance(source, Mapping):
        state, name = source, "state dict"
    else:
        if not os.path.exists(source):
            raise UserError(f"{source}: no such file; the authors' files are at {HOME}")
        state, name = read_weights(source), str(source)
    return {key.removeprefix("module."): value for key, value in state.items()}, name


def _pick(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    theirs: Callable[[str], str],
    name: str,
    ignored: Callable[[str], bool] = lambda key: False,
) -> dict[str, Tensor]:
    """The tensors for our keys `expected`, found under their names; every misfit is an error in their naming."""
    names = {ours: theirs(ours) for ours in expected}
    used = set(names.values())
    missing = [key for key in names.values() if key not in state]
    extra = [key for key in state if key not in used and not ignored(key)]
    for problem, keys in (("lacks", missing), ("has unknown", extra)):
        if keys:
            raise UserError(f"{name}: {problem} {len(keys)} weights, the first is {keys[0]}")
    for ours, key in names.items():
        if state[key].shape != expected[ours].shape:
            raise UserError(f"{name}: {key} has shape {[*state[key].shape]}, needed is {[*expected[ours].shape]}")
    return {ours: state[key] for ours, key in names.items()}


def load_uvit(source: Source, **config: Any) -> Backbone:
    """`uvit_v1.pth`; `config` are arguments of `UViT` that differ from the authors' (which are its defaults)."""
    state, name = read_state_dict(source)
    uvit = empty(backbone_class("uvit"), config, name)
    return fill(uvit, _pick(state, uvit.state_dict(), lambda key: key, name), name).eval()


def load_face_controlnet(
    source: Source,
    *,
    sites: Sequence[str] = OFFICIAL_SITES,
    num_heads: int = OFFICIAL_HEADS,
    clip_config: Mapping[str, Any] | None = None,
    **config: Any,
) -> Method:
    """`feed-4800000.pt`, or any adapter in its naming; `clip_config` is CLIP ViT-B/32's by default.

    `sites` are the blocks it was trained at, in the order of its own `blocks`. The width is read from the projector.
    """
    state, name = read_state_dict(source)
    projector = _their_face_key("projector.weight")
    if projector not in state or state[projector].dim() != 2:
        raise UserError(f"{name}: has no matrix {projector}, so it is not an adapter of FeedFace")
    width = len(state[projector])
    settings = {"embed_dim": width, "num_heads": num_heads, "sites": sites, "clip_config": clip_config or CLIP_VIT_B32}
    net = empty(method_class("feedface"), {**settings, **config}, name)
    # a buffer that transformers once saved, and now makes itself
    position_ids = _their_face_key("face_encoder.embeddings.position_ids")
    picked = _pick(state, net.state_dict(), _their_face_key, name, lambda key: key == position_ids)
    return fill(net, picked, name).eval()


def _their_face_key(ours: str) -> str:
    """Our name of a weight of FeedFace -> the authors' (with transformers' naming of before version 5)."""
    part, rest = ours.split(".", 1)
    if part == "face_encoder":
        return f"preprocess_module.clip_model.vision_model.{rest}"
    if part == "projector":
        return f"preprocess_module.project_layer.{rest}"
    index, rest = rest.split(".", 1)
    if rest.startswith("zero_linear"):
        return f"blocks.{index}.{rest}"
    for mine, their in (
        ("self_attn.", "attn1."),
        ("cross_attn.", "attn2."),
        ("to_out.", "to_out.0."),
        ("mlp.fc1.", "ff.net.0.proj."),
        ("mlp.fc2.", "ff.net.2."),
    ):
        rest = rest.replace(mine, their)
    return f"blocks.{index}.blocks.0.{rest}"


def load_vae(source: Source, **config: Any) -> "AutoencoderKL":
    """`autoencoder_kl.pth` (LDM naming) as diffusers' class; `config` are its arguments, where not the authors'."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    state, name = read_state_dict(source)
    vae = empty(AutoencoderKL, {**VAE_CONFIG, **config}, name)
    # diffusers' conversion drops what it does not know; run on numbered dummies it tells which key became which.
    keys = list(state)
    with foreign(f"{name}: not the weights of an autoencoder in LDM's naming"):
        dummies = {key: torch.full((1, 1, 1, 1), i) for i, key in enumerate(keys)}
        numbered = convert_ldm_vae_checkpoint(dummies, vae.config)
        theirs = {ours: keys[int(number)] for ours, number in numbered.items() if number is not None}
        converted = convert_ldm_vae_checkpoint(state, vae.config)
    unknown = [key for key in keys if key not in set(theirs.values())]
    if unknown:
        raise UserError(f"{name}: has unknown {len(unknown)} weights, the first is {unknown[0]}")
    renamed = {theirs[ours]: value for ours, value in converted.items() if value is not None}
    return fill(vae, _pick(renamed, vae.state_dict(), lambda key: theirs.get(key, key), name), name).eval()


def load_text_prefix(source: Source, in_features: int = 768, out_features: int = 64) -> nn.Linear:
    """The linear of `caption_decoder.pth` that CLIP's text states pass through; its captioning part is left alone."""
    state, name = read_state_dict(source)
    prefix = empty(nn.Linear, {"in_features": in_features, "out_features": out_features}, name)
    captioning = ("gpt.", "decode_prefix.", "clip")
    picked = _pick(
        state, prefix.state_dict(), lambda key: f"encode_prefix.{key}", name, lambda key: key.startswith(captioning)
    )
    return fill(prefix, picked, name).eval()

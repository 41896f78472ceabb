"""Dense-Face in its authors' files: `epoch=….ckpt` and `DenseFace_ini.ckpt`, of Lightning, in LDM's naming.

Each holds a whole Stable Diffusion 1.5, what Dense-Face adds, and a face recogniser that is left aside. Only tensors
are read (`weights_only`). Left aside, too: `feat_to_q` where the authors' program never reads it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from feedface.backbones.unet import UNet
from feedface.checkpoints.ldm import UNET, VERSIONS, LdmFile, Version
from feedface.checkpoints.storage import empty, fill
from feedface.common.errors import UserError
from feedface.methods.denseface import DenseFace, slot
from feedface.methods.denseface_config import described_sites, pose_config

POSE, TOKEN, WORD = "control_model.", "embedding_manager.", "*"
PROJECTOR, NORM = f"{TOKEN}projector.weight", f"{TOKEN}projector_norm."
STORED_WORD = f"{TOKEN}string_to_param_dict.{WORD}"
LEFT_ASIDE = ("id_loss_func.", f"{TOKEN}initial_embeddings.")
SAMPLE_SIZE = 32  # of 256 px
LAYERS = 2  # residual blocks a level, of Stable Diffusion 1
ADAPTER = re.compile(r"(.+)\.1\.transformer_blocks\.0\.(attn[12])\.(per_q|per_k|per_v|feat_to_q)\.weight")
OURS = {"per_q": "query", "per_k": "key", "per_v": "value", "feat_to_q": "face"}
RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip
PLAIN = {
    "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in",
    "middle_block_out.0": "controlnet_mid_block",
}  # fmt: skip


class DenseFaceFile(LdmFile):
    """A checkpoint of theirs; its parts are read when they are asked for."""

    def __init__(self, path: Path, versions: tuple[Version, ...] = VERSIONS[:1]):
        super().__init__(path, versions)

    def _recognised(self, versions: tuple[Version, ...]) -> Version:
        for key in (PROJECTOR, STORED_WORD, f"{POSE}middle_block_out.0.weight"):
            if key not in self.shapes:
                raise UserError(f"{self.path}: has no {key}, so is none of Dense-Face's checkpoints (epoch=….ckpt)")
        [version] = versions
        return version

    def _tensors(self, prefix: str, dtype: torch.dtype | None) -> dict[str, Tensor]:
        found = super()._tensors(prefix, dtype)
        return {key: value for key, value in found.items() if prefix != UNET or not ADAPTER.fullmatch(key)}

    def method(self, backbone: UNet, dtype: torch.dtype | None, delta: float = 0.01) -> DenseFace:
        """What Dense-Face adds."""
        parts = {prefix: LdmFile._tensors(self, prefix, dtype) for prefix in (UNET, POSE, TOKEN)}
        state = {prefix + key: value for prefix, part in parts.items() for key, value in part.items()}
        return method_of(state, backbone, self.path, delta)


def method_of(
    state: Mapping[str, Tensor], backbone: UNet, source: object, delta: float = 0.01, recogniser: str = "ir_se50"
) -> DenseFace:
    """The method out of tensors in the authors' naming, ready to infer; others are passed over.

    `delta`: their `feature_delta` and `reference_delta`, one number. `UserError` for what is missing, unknown or of
    another shape.
    """
    for key in (PROJECTOR, f"{NORM}weight", STORED_WORD):
        if key not in state:
            raise UserError(f"{source}: has no {key}, so is none of Dense-Face's checkpoints")
    hints = sorted(_hint_number(key) for key in state if key.startswith(f"{POSE}input_hint_block.") and "weight" in key)
    pose = pose_config(backbone, [len(state[f"{POSE}input_hint_block.{n}.bias"]) for n in (hints[0], *hints[2:-1:2])])
    width, face_dim = state[PROJECTOR].shape
    described = {
        "sites": described_sites(backbone),
        "token_width": width,
        "face_dim": face_dim,
        "recogniser": recogniser,
        "delta": delta,
        "token_delta": delta,
        "norm": "batch",
        "pose": pose,
        "subject_word": WORD,
    }
    method = empty(DenseFace, described, source)
    found = {"token.word": state[STORED_WORD].flatten(), "token.projector.weight": state[PROJECTOR]}
    found["token.norm.num_batches_tracked"] = torch.tensor(0)  # a counter; theirs, where the file has it
    for key, value in state.items():
        if key.startswith(NORM):
            found[f"token.norm.{key.removeprefix(NORM)}"] = value
        elif key.startswith(POSE):
            found[f"pose.{pose_place(key.removeprefix(POSE), hints[-1], source)}"] = value
        elif match := ADAPTER.fullmatch(key.removeprefix(UNET)):
            block, attention, kind = match.groups()
            site = f"{_attention(block)}.{attention}"
            if site not in method.sites:
                raise UserError(f"{source}: {key} has no place in this U-Net")
            if kind != "feat_to_q" or method.sites[site]["reads"]:
                found[f"adapters.{slot(site)}.{OURS[kind]}.weight"] = value
        elif key.startswith(TOKEN) and not key.startswith(LEFT_ASIDE) and key not in (PROJECTOR, STORED_WORD):
            raise UserError(f"{source}: has an unknown weight, {key}")
    return fill(method, found, source).eval().requires_grad_(False)


def _attention(block: str) -> str:
    """`input_blocks.4` -> `down_blocks.1.attentions.0`."""
    kind, _, number = block.partition(".")
    if kind == "middle_block":
        return "mid_block.attentions.0"
    part, first, each = ("down_blocks", 1, LAYERS + 1) if kind == "input_blocks" else ("up_blocks", 0, LAYERS + 1)
    level, index = divmod(int(number or 0) - first, each)
    return f"{part}.{level}.attentions.{index}"


def _hint_number(key: str) -> int:
    return int(key.removeprefix(f"{POSE}input_hint_block.").split(".")[0])


def pose_place(key: str, last_hint: int, source: object) -> str:
    """The name of a `PoseBranch`'s weight, out of theirs."""
    name, _, kind = key.rpartition(".")
    if name in PLAIN:
        return f"{PLAIN[name]}.{kind}"
    block, number, *inner = name.split(".")
    if block == "input_hint_block":
        at = int(number)
        place = {0: "conv_in", last_hint: "conv_out"}.get(at, f"blocks.{at // 2 - 1}")
        return f"controlnet_cond_embedding.{place}.{kind}"
    if block == "zero_convs":
        return f"controlnet_down_blocks.{number}.{kind}"
    if block == "middle_block" and ".".join(inner) in RESNET:
        return f"mid_block.resnets.{number}.{RESNET['.'.join(inner)]}.{kind}"
    if block == "input_blocks":
        level, index = divmod(int(number) - 1, LAYERS + 1)
        if inner == ["0", "op"]:
            return f"down_blocks.{level}.downsamplers.0.conv.{kind}"
        if ".".join(inner[1:]) in RESNET:
            return f"down_blocks.{level}.resnets.{index}.{RESNET['.'.join(inner[1:])]}.{kind}"
    raise UserError(f"{source}: {POSE}{key} has no place in Dense-Face's pose branch")


def convert(file: str | os.PathLike, target: str | os.PathLike, dtype: torch.dtype | None = None) -> Path:
    """Write a model folder of ours, whole or not at all, from a checkpoint of the authors."""
    from feedface.backbones.unet import UNet
    from feedface.checkpoints.bundle import save_component, write_index
    from feedface.checkpoints.clip_tokenizer import clip_tokenizer
    from feedface.common.files import atomic_folder
    from feedface.encoders import LatentCodec, TextEncoder

    target = Path(target)
    if target.exists():
        raise UserError(f"{target}: is there already; name another folder")
    source = DenseFaceFile(Path(file))
    backbone = UNet(source.unet(SAMPLE_SIZE, dtype))
    parts = {"backbone": backbone, "method": source.method(backbone, dtype), "vae": LatentCodec(source.vae(dtype))}
    parts["text_encoder"] = TextEncoder(source.text_encoder(dtype), clip_tokenizer())
    with atomic_folder(target) as folder:
        for name, part in parts.items():
            save_component(name, part, folder / name)
        save_component("tokenizer", parts["text_encoder"].tokenizer, folder / "tokenizer")
        write_index(
            folder,
            name="dense-face",
            image_size=8 * SAMPLE_SIZE,
            components={name: name for name in (*parts, "tokenizer")},
            defaults={"guidance": 4.0, "face_scale": 1.0, "steps": 50},
        )
    return target

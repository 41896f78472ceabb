"""Networks of transformers and diffusers out of a folder: checked first, strict, and free of pickles.

A folder's `config.json` may name any size, and these libraries make what it names before they look at the weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Len
from pydantic import Field, TypeAdapter
from torch import nn
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.checkpoints.storage import quiet_transformers, stored_shapes
from feedface.common.errors import UserError
from feedface.common.reading import check_folder, foreign
from feedface.common.sizes import Layers, Ratio, SidePx, Vocabulary, Width
from feedface.common.validation import OPEN, Finite, Text, read_json_as

Token = Annotated[int, Field(ge=0, le=1 << 20)]


class ClipTower(TypedDict, total=False):
    """What shapes a text or vision tower of a CLIP (`CLIPTextConfig`, `CLIPVisionConfig`); there is more in them."""

    __pydantic_config__ = OPEN
    hidden_size: Width
    intermediate_size: Width
    projection_dim: Width
    num_hidden_layers: Layers
    num_attention_heads: Width
    num_channels: Width
    image_size: SidePx
    patch_size: SidePx
    vocab_size: Vocabulary
    max_position_embeddings: Width
    bos_token_id: Token | None
    eos_token_id: Token
    pad_token_id: Token | None
    hidden_act: Text
    layer_norm_eps: Finite
    # These two can name code and weights from elsewhere.
    attn_implementation: Literal["eager", "sdpa"] | None
    quantization_config: None


class Clip(ClipTower, total=False):
    """A tower by itself, or a whole CLIP."""

    text_config: ClipTower | None
    vision_config: ClipTower | None


class Autoencoder(TypedDict, total=False):
    """diffusers' `AutoencoderKL`."""

    __pydantic_config__ = OPEN
    in_channels: Width
    out_channels: Width
    latent_channels: Width
    block_out_channels: Annotated[list[Width], Len(1, 16)]
    down_block_types: Annotated[list[Text], Len(1, 16)]
    up_block_types: Annotated[list[Text], Len(1, 16)]
    layers_per_block: Annotated[int, Field(ge=1, le=64)]
    norm_num_groups: Width
    sample_size: SidePx
    scaling_factor: Ratio
    act_fn: Text
    quantization_config: None


CLIP = TypeAdapter(Clip)
DIFFUSERS = {"AutoencoderKL": TypeAdapter(Autoencoder)}


def read_library_config(kind: type, folder: Path, described: TypeAdapter | None = None) -> dict[str, Any]:
    """`config.json` of a part, checked against `described`, or what this module knows of the class.

    `UserError` names file, line and key.
    """
    check_folder(folder)
    described = described or DIFFUSERS.get(kind.__name__, CLIP)
    return read_json_as(folder / "config.json", described, what=f"does not describe a {kind.__name__}")


def from_pretrained(
    kind: type, folder: Path, whole: bool = True, described: TypeAdapter | None = None, **options: Any
) -> nn.Module:
    """The libraries' own loading from a folder, made strict and free of pickles.

    `whole`: the folder holds this network and nothing else; else, as a tower of a CLIP, it may be a part. `described`:
    see `read_library_config`.
    """
    config = read_library_config(kind, folder, described)
    # The names by which the libraries look, for one file or several.
    files = sorted(
        file for name in ("model", "diffusion_pytorch_model") for file in folder.glob(f"{name}*.safetensors")
    )
    if not files:
        raise UserError(f"{folder}: cannot be read as {kind.__name__}: it holds no safetensors")
    with foreign(f"{folder}: cannot be read as {kind.__name__}"), _quiet(kind):
        _check_sizes(kind, folder, files, config)
        module, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    parts = ("missing_keys", "mismatched_keys", "unexpected_keys") if whole else ("missing_keys", "mismatched_keys")
    wrong = [key for part in parts for key in info.get(part) or ()]
    if wrong:
        problem = "missing, extra or misshapen" if whole else "missing or misshapen"
        raise UserError(f"{folder}: {len(wrong)} weights {problem} for {kind.__name__}: {wrong[:3]}")
    return module


def _check_sizes(kind: type, folder: Path, files: list[Path], config: dict[str, Any]) -> None:
    """`UserError` where far more weights are described than stored: the libraries would make them, if they could."""
    with torch.device("meta"):
        if hasattr(kind, "config_class"):  # transformers: finds a tower's part in the config of a whole CLIP
            network = kind(kind.config_class.from_pretrained(folder, local_files_only=True))
        else:
            network = kind.from_config(config)
    described = sum(value.numel() for value in network.state_dict().values())
    stored = sum(value.numel() for file in files for value in stored_shapes(file).values())
    if described > 2 * stored:
        raise UserError(f"{folder}: config.json describes {described} weights, but {stored} are there")


@contextmanager
def _quiet(kind: type) -> Iterator[None]:
    """Without reports on keys, which are checked here, and without errors that are raised as well."""
    if hasattr(kind, "config_class"):
        with quiet_transformers():
            yield
        return
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)

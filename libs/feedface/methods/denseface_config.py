"""How a Dense-Face is described: in its model folder, in a training config, and what fits a backbone.

Shapes: D width of a site, C channels of a latent.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from annotated_types import Len
from pydantic import BaseModel, Field
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.backbones.base import Backbone
from feedface.common.person_words import PERSON_WORDS
from feedface.common.sizes import Layers, Width
from feedface.common.validation import CLOSED, Text

WAY_UP = ("up_blocks.", "out_blocks.")  # parts of a backbone that learn by default
Strength = Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class PoseConfig(TypedDict, total=False):
    """Arguments of a `PoseBranch`."""

    __pydantic_config__ = CLOSED
    latent_channels: Width
    channels: Annotated[list[Width], Len(1, 16)]
    layers: Layers
    hint_channels: Annotated[list[Width], Len(1, 8)]
    groups: Width


class DenseConfig(TypedDict, total=False):
    """The decoder's blocks by name, with their widths, and arguments of `DenseHeads`."""

    __pydantic_config__ = CLOSED
    sites: Annotated[dict[str, Width], Len(1, 1024)]
    latent_channels: Width
    landmarks: Annotated[int, Field(ge=0, le=1024)]
    depth: bool
    attributes: Annotated[list[Text], Len(0, 1024)]
    width: Width
    blocks: Layers
    factor: Annotated[int, Field(ge=1, le=8)]


class SiteConfig(TypedDict):
    """An attention: D, the width of its keys' and values' input, and whether its queries read the identity."""

    __pydantic_config__ = CLOSED
    width: Width
    context: Width
    reads: bool


class DenseSettings(BaseModel):
    """`config.control.dense`; the weights are of the losses."""

    model_config = CLOSED
    landmarks: Annotated[int, Field(ge=0, le=1024)] = 5
    depth: bool = True
    attributes: Sequence[str] = ()
    width: Width = 128
    blocks: Layers = 4
    factor: Annotated[int, Field(ge=1, le=8)] = 2
    parsing_weight: Annotated[float, Field(ge=0)] = 0.1
    depth_weight: Annotated[float, Field(ge=0)] = 0.1
    landmarks_weight: Annotated[float, Field(ge=0)] = 0.1
    attributes_weight: Annotated[float, Field(ge=0)] = 0.1


class Settings(BaseModel):
    """`config.control` of a training config; configs/denseface.py says what the keys mean."""

    model_config = CLOSED
    adapters: Literal["decoder", "all"] = "decoder"
    reads_in_middle: bool = False
    delta: Strength = 0.01
    token_delta: Strength = 0.01
    norm: Literal["layer", "batch"] = "layer"
    pose: bool = True
    hint_channels: Annotated[Sequence[Width], Len(1, 8)] = (16, 32, 96, 256)
    guided: Literal["text", "all"] = "text"
    face_dim: Width = 512
    recogniser: Text = "buffalo_l"
    subject_word: Text = "*"
    initial_word: Text = "person"
    caption: str = ""
    person_words: Sequence[str] = PERSON_WORDS
    pose_dropout: Annotated[float, Field(ge=0, le=1)] = 0.1
    dense: DenseSettings | None = None


def described_sites(
    backbone: Backbone, adapters: str = "all", reads_in_middle: bool = False
) -> dict[str, dict[str, int | bool]]:
    """All attentions of a backbone, or those of its "decoder".

    The identity is read by those to the text, where there are such, but not in the middle: there the authors' program
    forgets it.
    """
    found = [site for site in backbone.sites.values() if site.kind in ("self_attention", "cross_attention")]
    reading = "cross_attention" if any(site.kind == "cross_attention" for site in found) else "self_attention"
    return {
        site.name: {
            "width": site.width,
            "context": site.context_width or site.width,
            "reads": site.kind == reading and (reads_in_middle or not site.name.startswith("mid_block")),
        }
        for site in found
        if adapters == "all" or site.name.startswith(WAY_UP)
    }


def dense_config(backbone: Backbone, settings: DenseSettings) -> dict[str, object]:
    """`DenseFace`'s `dense` for a backbone: all blocks on the way up are seen."""
    shared = settings.model_dump(include={"landmarks", "depth", "width", "blocks", "factor"})
    blocks = {name: s.width for name, s in backbone.sites.items() if s.kind == "block" and name.startswith(WAY_UP)}
    attributes = list(settings.attributes)
    return {"sites": blocks, "latent_channels": backbone.latent_channels, "attributes": attributes, **shared}


def pose_config(backbone: Backbone, hint_channels: Sequence[int] = (16, 32, 96, 256)) -> Mapping[str, object] | None:
    """Arguments of a pose branch for a U-Net like Stable Diffusion's; None for another backbone."""
    if backbone.kind != "unet":
        return None
    config = backbone.unet.config
    return {
        "latent_channels": backbone.latent_channels,
        "channels": list(config.block_out_channels),
        "layers": config.layers_per_block,
        "hint_channels": list(hint_channels),
        "groups": config.norm_num_groups,
    }

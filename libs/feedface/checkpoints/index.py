"""What a bundle's `model_index.json` may say."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, TypeAdapter

from feedface.common.validation import CLOSED, STRICT, Text, read_json_as
from feedface.diffusion.guidance import UNCOND_MODES
from feedface.settings import MAX_SIZE_PX, PRESET_NAMES

INDEX = "model_index.json"
FORMAT, VERSION = "feedface", 1
NETWORKS = ("uvit", "face_controlnet", "vae", "text_encoder", "image_encoder")
# Parts that are only found, not loaded, here: the tokenizer goes with the text encoder, `faces` is an insightface
# root, `parser` a face parser (`faces/parse.py`), `inspector` the judge of the evaluation, `few_step` an adapter for
# drawing in few steps (`few_step.py`).
FOLDERS = ("tokenizer", "faces", "parser", "inspector", "few_step")


class Defaults(BaseModel):
    """How a model is sampled where nothing else is said; a bundle may leave out steps and preset (`presets.py`)."""

    model_config = CLOSED
    guidance: Annotated[float, Field(ge=0, le=50)] = 6.0
    face_scale: Annotated[float, Field(ge=0, le=5)] = 0.8
    uncond: Literal[UNCOND_MODES] = "true_uncond"
    steps: Annotated[int, Field(ge=1, le=999)] | None = None
    preset: Literal[PRESET_NAMES] | None = None


class Index(BaseModel):
    """`components` maps a part to its folder, absolute or relative to that of the index."""

    model_config = STRICT
    format: Literal[FORMAT]
    version: Literal[VERSION]
    name: Text
    image_size: Annotated[int, Field(ge=1, le=MAX_SIZE_PX)]
    defaults: Defaults
    components: dict[Literal[(*NETWORKS, *FOLDERS)], Text]


INDEX_FILE, DEFAULTS = TypeAdapter(Index), TypeAdapter(Defaults)


def read_index_file(file: Path) -> Index:
    """Read and check one. `UserError` names line and key."""
    return read_json_as(file, INDEX_FILE, known=lambda: list(Defaults.model_fields))

"""What a bundle's `model_index.json` may say: version 2, and version 1 of earlier models and training runs.

{"format": "feedface", "version": 2, "name": "mini", "image_size": 64,
 "backbone": {"kind": "uvit", "folder": "uvit"}, "method": {"kind": "feedface", "folder": "feedface"},
 "parts": {"vae": "../other/vae", …}, "defaults": {…}, "adapters": {"few_step": "few_step"}, "extras": {"faces": …}}

Folders are relative to the index's own, so that models may share parts and be moved together.
"""

from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import AfterValidator, BaseModel, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from feedface.checkpoints.parts import ADAPTERS, EXTRAS, SEAM, SHARED, V1_KINDS
from feedface.checkpoints.storage import read_json
from feedface.common.validation import CLOSED, STRICT, Text, read_json_as
from feedface.diffusion.names import UNCOND_MODES
from feedface.settings import MAX_SIZE_PX, PRESET_NAMES

INDEX = "model_index.json"
FORMAT, VERSION = "feedface", 2
# Version 1 knew one backbone and one method, by the names of their classes.
MOST_LETTERS = 255  # of a file's name
V1_NAMES = {"uvit": "backbone", "face_controlnet": "method"}


def _rising(interval: list[float]) -> list[float]:
    if interval[0] >= interval[1]:
        raise PydanticCustomError("interval", "must be two timesteps, the lower first")
    return interval


Timestep = Annotated[float, Field(ge=0, le=1000)]


class Defaults(BaseModel):
    """How a model is sampled where nothing else is said; a bundle may leave out what is None here."""

    model_config = CLOSED
    guidance: Annotated[float, Field(ge=0, le=50)] = 6.0
    face_scale: Annotated[float, Field(ge=0, le=5)] = 0.8
    uncond: Literal[UNCOND_MODES] | None = None
    steps: Annotated[int, Field(ge=1, le=999)] | None = None
    preset: Literal[PRESET_NAMES] | None = None
    pag_scale: Annotated[float, Field(ge=0, le=10)] | None = None
    pag_interval: Annotated[list[Timestep], Len(2, 2), AfterValidator(_rising)] | None = None


def _relative(folder: str) -> str:
    if any(len(part) > MOST_LETTERS for part in PurePosixPath(folder).parts):
        raise PydanticCustomError("folder", "is longer than a file's name can be")
    if PurePosixPath(folder).is_absolute() or PureWindowsPath(folder).anchor:
        raise PydanticCustomError("folder", 'must be relative to this file, such as "vae" or "../mini/vae"')
    return folder


Folder = Annotated[Text, AfterValidator(_relative)]


class SeamPart(BaseModel):
    """Backbone or method: what kind it is, so that its class is known before the folder is read."""

    model_config = STRICT
    kind: Text
    folder: Folder


class Index(BaseModel):
    """Version 2. A model without a method draws what the prompt says; one without a backbone is not finished."""

    model_config = STRICT
    format: Literal[FORMAT]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    name: Text
    image_size: Annotated[int, Field(ge=1, le=MAX_SIZE_PX)]
    backbone: SeamPart | None = None
    method: SeamPart | None = None
    parts: dict[Literal[SHARED], Folder]
    defaults: Defaults
    adapters: dict[Literal[ADAPTERS], Folder] = {}
    extras: dict[Literal[EXTRAS], Folder] = {}

    @property
    def components(self) -> dict[str, str]:
        """The folder of each part, by name."""
        seam = {name: part.folder for name in SEAM if (part := getattr(self, name)) is not None}
        return {**self.parts, **seam, **self.extras, **self.adapters}

    @property
    def kinds(self) -> dict[str, str]:
        """Of backbone and method, where it has them."""
        return {name: part.kind for name in SEAM if (part := getattr(self, name)) is not None}


class IndexV1(BaseModel):
    """Version 1: `components` maps a part to its folder, which may be absolute."""

    model_config = STRICT
    format: Literal[FORMAT]
    version: Annotated[int, Field(ge=1, le=VERSION)]
    name: Text
    image_size: Annotated[int, Field(ge=1, le=MAX_SIZE_PX)]
    defaults: Defaults
    folders: Annotated[
        dict[Literal[(*SHARED, *V1_NAMES, *EXTRAS, *ADAPTERS)], Text], Field(validation_alias="components")
    ]

    @property
    def components(self) -> dict[str, str]:
        return {V1_NAMES.get(name, name): folder for name, folder in self.folders.items()}

    @property
    def kinds(self) -> dict[str, str]:
        return {name: kind for name, kind in V1_KINDS.items() if name in self.components}


VERSIONS, DEFAULTS = {1: TypeAdapter(IndexV1), VERSION: TypeAdapter(Index)}, TypeAdapter(Defaults)


def read_index_file(file: Path) -> Index | IndexV1:
    """Read and check one. `UserError` names line and key."""
    version = read_json(file).get("version")
    described = VERSIONS[1 if version == 1 else VERSION]
    return read_json_as(file, described, known=lambda: list(Defaults.model_fields))


def index_content(
    name: str, image_size: int, components: dict[str, str], kinds: dict[str, str], defaults: Defaults
) -> dict[str, Any]:
    """What is written: version 2, of folders by part and of the kinds of backbone and method."""
    index = {"format": FORMAT, "version": VERSION, "name": name, "image_size": image_size}
    index |= {part: {"kind": kind, "folder": components[part]} for part, kind in kinds.items()}
    groups = {"parts": SHARED, "adapters": ADAPTERS, "extras": EXTRAS}
    folders = {
        group: {part: components[part] for part in parts if part in components} for group, parts in groups.items()
    }
    folders["defaults"] = defaults.model_dump(exclude_none=True)
    return index | {key: folders[key] for key in ("parts", "defaults", "adapters", "extras")}

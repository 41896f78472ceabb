"""Arc2Face: the text is a face and nothing else. AdaFace's teacher, and a generator of faces by itself.

A text encoder reads "photo of a FACE person"; its N states are all that the backbone knows of a picture, whatever the
prompt says. Shapes: B people, F references of one person, N states of a person, D their width.
Source: Papantoniou et al. 2024, "Arc2Face: A Foundation Model for ID-Consistent Human Faces".
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.backbones.base import Backbone, Prompt
from feedface.common.errors import UserError
from feedface.common.reading import foreign
from feedface.common.sizes import Layers, Width
from feedface.common.validation import CLOSED, Text
from feedface.diffusion.objective import Objective
from feedface.diffusion.text_objective import FaceText
from feedface.encoders import ReferenceSpec, TextEncoder
from feedface.methods.base import Features, Identity, Method
from feedface.text_tower import FaceReader, tower_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict


BACKBONES = ("frozen", "all")
SHARED = ("face_dim", "start", "vectors", "recogniser", "face_length")  # arguments that a reader and its students share
Length = Annotated[float, Field(gt=0)]


class TowerConfig(TypedDict):
    """A text tower but for its width, see `TextTower`."""

    __pydantic_config__ = CLOSED
    layers: Layers
    heads: Width
    mlp: Width
    positions: Width


class Arc2FaceConfig(TypedDict, total=False):
    """`Arc2Face`'s arguments as files hold them."""

    __pydantic_config__ = CLOSED
    kind: Literal["arc2face"]
    width: Required[Width]
    tower: Required[TowerConfig]
    face_dim: Required[Width]
    start: Required[Width]
    vectors: Width
    recogniser: Text
    face_length: Length
    backbone: Literal[BACKBONES]


CONFIG = TypeAdapter(Arc2FaceConfig)


class FaceSettings(BaseModel):
    """What `config.control` says of a reader of faces; configs/mini_arc2face.py says what the keys mean."""

    model_config = CLOSED
    vectors: Annotated[int, Field(ge=1, le=64)] = 16
    face_dim: Annotated[int, Field(ge=1)] = 512
    recogniser: Text = "antelopev2"
    template: Text = "photo of a"
    face_length: Length = 1.0


class Settings(FaceSettings):
    """`config.control` of a training config."""

    backbone: Literal[BACKBONES] = "all"
    captions: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Arc2Face(Method):
    """Features: "face" [B,face_dim], the recogniser's embedding. Identity: "states" [B,N,D], and those of "nobody".

    Args:
        backbone: what is trained of it: "all", as with the authors, or nothing, "frozen".
        others: see `FaceReader`.

    For backbones that take any number of text tokens: the U-Net.
    """

    kind, settings, changes_prompt = "arc2face", TypeAdapter(Settings), True

    def __init__(
        self,
        width: int,
        tower: Mapping[str, int],
        face_dim: int,
        start: int,
        vectors: int = 16,
        recogniser: str = "antelopev2",
        face_length: float = 1.0,
        backbone: str = "frozen",
    ):
        super().__init__()
        self.reader = FaceReader(width, tower, face_dim, start, vectors, face_length)
        self.reader.tower.embeddings.requires_grad_(False)
        self.config = {
            "width": width,
            "tower": dict(tower),
            "face_dim": face_dim,
            "start": start,
            "vectors": vectors,
            "recogniser": recogniser,
            "face_length": face_length,
            "backbone": backbone,
        }
        self.reference = ReferenceSpec("embedding", face_dim, recogniser=recogniser)

    @classmethod
    def config_type(cls) -> TypeAdapter:
        return CONFIG

    @classmethod
    def fresh(cls, config: "ConfigDict", backbone: Backbone, **parts: Any) -> "Arc2Face":
        """Begins as the model's text encoder. `parts`: `text`, that."""
        if backbone.text_tokens is not None:
            raise UserError(f"config.method: arc2face is for a U-Net; a {backbone.kind} wants a prompt's tokens")
        settings = Settings(**config.control.to_dict())
        return cls.like(parts["text"], settings, settings.backbone)

    @classmethod
    def like(cls, text: TextEncoder, settings: FaceSettings, backbone: str = "frozen") -> "Arc2Face":
        """One that reads as `text` does."""
        before = text.tokens_of(settings.template)
        place = 1 + len(before)  # after the first token
        with foreign("config.control"):
            made = cls(
                text.clip.config.hidden_size,
                tower_config(text.clip),
                settings.face_dim,
                place,
                settings.vectors,
                settings.recogniser,
                settings.face_length,
                backbone,
            )
        template, token = made.reader.template, text.tokenizer
        ids = [token.bos_token_id, *before, token.eos_token_id, *text.tokens_of("person")]
        ids += [token.eos_token_id] * len(template)
        made.reader.tower.load(text.clip.state_dict(), "the model's text encoder")
        with torch.no_grad():
            template.copy_(text.embedded(ids[: len(template)]))
        return made

    def check(self, backbone: Backbone, source: object) -> None:
        if backbone.text_tokens is not None:
            raise UserError(f"{source}: this arc2face belongs to another backbone: the {backbone.kind} wants a prompt")

    @property
    def text_width(self) -> int:
        return self.config["width"]

    def features(self, references: Tensor) -> Features:
        return {"face": F.normalize(references, dim=-1)}

    def identity(self, features: Features, pool: str = "concat") -> Identity:
        """Several references are averaged, but for `pool` "first"."""
        face = features["face"].to(self.reader.template.dtype)  # [B,F,face_dim]
        face = face[:, 0] if pool == "first" else face.mean(dim=1)
        face = F.normalize(face, dim=-1)
        with torch.no_grad():
            nobody = self.reader(torch.zeros_like(face))
        return {"states": self.reader(face), "nobody": nobody}

    def unconditional(self, identity: Identity, mode: str) -> None:
        """Nobody: the empty prompt."""
        return

    def prompt(
        self, text_encoder: TextEncoder, prompts: Sequence[str], identity: Identity | None = None, scale: float = 1.0
    ) -> Prompt:
        """The face alone; without one, the prompts. Strength leads from nobody (0) to the face (1), and beyond."""
        if identity is None:
            return {"text": text_encoder.encode(prompts)}
        states = torch.lerp(identity["nobody"], identity["states"], scale) if scale != 1 else identity["states"]
        states = states.expand(len(prompts), -1, -1)
        return {"text": states if text_encoder.prefix is None else text_encoder.prefix(states)}

    def notice(self, text_encoder: TextEncoder, prompt: str) -> str:
        """That it is not read."""
        return "arc2face shows a face and nothing else: the prompt is not read"

    def bind(self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None) -> None:
        """Nothing: the person is in the text."""
        return

    def objective(self, config: "ConfigDict", zero_reference: Features, empty_text: Tensor) -> Objective:
        return FaceText(config, zero_reference, empty_text, Settings(**config.control.to_dict()).captions)

    @classmethod
    def changes_backbone(cls, control: Mapping[str, Any]) -> bool:
        return control.get("backbone", "all") != "frozen"

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        found = {"layers": self.reader.tower.encoder, "norm": self.reader.tower.final_layer_norm}
        return found | ({"backbone": backbone} if self.config["backbone"] == "all" else {})

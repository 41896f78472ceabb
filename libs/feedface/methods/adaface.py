"""AdaFace: a face becomes words of the prompt, N vectors in the space of CLIP's token embeddings.

Face embedding -> Arc2Face's text encoder (frozen) -> another text encoder, trained to say in words what the first one
says to its own U-Net -> N vectors, which stand at the person's word in any prompt. The backbone is never touched.

Shapes: B people or prompts, F references of one person, N vectors of a person, D their width, T text tokens.
Source: Feng et al. 2024, "AdaFace"; Papantoniou et al. 2024, "Arc2Face"; defaults are those of the released weights.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Required

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import BaseModel, Field, TypeAdapter
from torch import Tensor, nn
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.backbones.base import Backbone, Prompt
from feedface.common.errors import UserError
from feedface.common.prompt_weights import plain_prompt
from feedface.common.sizes import Width
from feedface.common.validation import CLOSED, Text
from feedface.diffusion.objective import Objective
from feedface.diffusion.text_objective import Distillation, Reconstruction
from feedface.encoders import ReferenceSpec, TextEncoder
from feedface.methods import arc2face
from feedface.methods.arc2face import SHARED, Arc2Face, Length, TowerConfig
from feedface.methods.base import Features, Identity, Method
from feedface.methods.composition import Composition
from feedface.text_tower import FaceReader, LayerMix, TextTower, check_room, extended, tower_config

if TYPE_CHECKING:
    from ml_collections import ConfigDict

AVERAGES = ("embeddings", "states", "words")
PLACEMENTS = ("in_place", "append", "prepend")
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]


class AdaFaceConfig(TypedDict, total=False):
    """`AdaFace`'s arguments as files hold them."""

    __pydantic_config__ = CLOSED
    kind: Literal["adaface"]
    width: Required[Width]
    face_tower: Required[TowerConfig]
    word_tower: Required[TowerConfig]
    face_dim: Required[Width]
    start: Required[Width]
    vectors: Width
    copies: Annotated[list[Width], Len(1, 1024)] | None
    recogniser: Text
    face_length: Length
    average: Literal[AVERAGES]
    placement: Literal[PLACEMENTS]
    subject_word: Text


CONFIG = TypeAdapter(AdaFaceConfig)


class LossWeights(BaseModel):
    """`config.control.objective.weights`."""

    model_config = CLOSED
    prompt: Weight = 2e-5
    mix: Weight = 5e-5
    preserve: Weight = 5e-4
    attention: Weight = 2e-4


class ObjectiveSettings(BaseModel):
    """`config.control.objective`; configs/adaface.py says what the keys mean."""

    model_config = CLOSED
    kind: Literal["distillation", "reconstruction", "composition"] = "distillation"
    prompts: Sequence[str] = ("a photo of {}", "a face portrait of {}", "{}")
    most_steps: Annotated[int, Field(ge=1, le=7)] = 3
    random_faces: Share = 0.4
    perturbed: Share = 0.6
    perturbation: tuple[float, float] = (0.5, 1.5)
    later: Share = 0.7
    word_noise: Share = 0.4
    word_noise_spread: tuple[float, float] = (0.05, 0.1)
    layer_shares: Sequence[float] = (1.0, 2.0, 2.0)
    original_bugs: bool = False
    compositions: Sequence[Sequence[str]] = (("riding a bicycle",), ("in the rain",))
    class_word: Text = "person"
    composed: Share = 1 / 3
    distilled: Share = 0.2
    captions: bool = False
    before: Share = 0.9
    guidance: Annotated[float, Field(ge=1)] = 5.0
    weights: LossWeights = LossWeights()


class Settings(arc2face.FaceSettings):
    """`config.control` of a training config; configs/adaface.py says what the keys mean."""

    teacher: str = ""
    copies: Annotated[int, Field(ge=1, le=64)] = 1
    average: Literal[AVERAGES] = "embeddings"
    placement: Literal[PLACEMENTS] = "in_place"
    subject_word: Text = "z"
    objective: ObjectiveSettings = ObjectiveSettings()


class AdaFace(Method):
    """A reader of faces, and a tower that writes words.

    Features: "face" [B,face_dim], the recogniser's embedding. Identity: "words" [B,N,D], and "pads" [B,N,D], what the
    tower would have in their places of an empty prompt: what a strength below 1 leads back to.

    Args:
        width: D; face_tower, word_tower: the reader's and the writer's, see `TowerConfig`.
        face_dim: of the recogniser's embedding, at most D; recogniser: the insightface pack that it is from;
            face_length: see `FaceReader`.
        start: where a person begins in both towers: after "photo of a", at 4 in CLIP's tokens.
        vectors: N.
        copies: keys and values of a token, for each layer of the word tower; None: 1.
        average: of several photos, what of them: face "embeddings" (the default, as the authors'), the reader's
            "states", or the "words".
        placement: the vectors stand in the place of the person's word ("in_place", as in training), or the word is left
            out and they stand after the prompt ("append") or before it ("prepend", as the authors' first release).
        subject_word: the person's word in prompts.
    """

    kind, settings, changes_prompt, subject_word = "adaface", TypeAdapter(Settings), True, "z"
    labels = ()  # captions alone

    def __init__(
        self,
        width: int,
        face_tower: Mapping[str, int],
        word_tower: Mapping[str, int],
        face_dim: int,
        start: int,
        vectors: int = 16,
        copies: Sequence[int] | None = None,
        recogniser: str = "antelopev2",
        face_length: float = 1.0,
        average: str = "embeddings",
        placement: str = "in_place",
        subject_word: str = "z",
    ):
        super().__init__()
        self.reader = FaceReader(width, face_tower, face_dim, start, vectors, face_length).requires_grad_(False)
        self.word_tower = TextTower(width, **word_tower, copies=copies)
        self.config = {
            "width": width,
            "face_tower": dict(face_tower),
            "word_tower": dict(word_tower),
            "face_dim": face_dim,
            "start": start,
            "vectors": vectors,
            "copies": self.word_tower.copies,
            "recogniser": recogniser,
            "face_length": face_length,
            "average": average,
            "placement": placement,
            "subject_word": subject_word,
        }
        self.reference = ReferenceSpec("embedding", face_dim, recogniser=recogniser)
        self.persons = slice(start, start + vectors)  # a person's places in both towers
        self.vectors, self.average, self.placement, self.subject_word = vectors, average, placement, subject_word
        check_room(self.word_tower, self.persons)
        # Token embeddings of what the tower reads around a person; at the end the one that fills prompts up.
        self.word_template = nn.Buffer(torch.zeros(len(self.word_tower.positions), width))
        self.word_tower.embeddings.requires_grad_(False)
        self.mix = LayerMix(len(self.word_tower.layers))

    @classmethod
    def config_type(cls) -> TypeAdapter:
        return CONFIG

    @classmethod
    def fresh(cls, config: "ConfigDict", backbone: Backbone, **parts: Any) -> "AdaFace":
        """The reader is the teacher's, the writer begins as the model's text encoder.

        Without a teacher, for training on pictures alone, the reader begins so too. `parts`: `text`, the model's text
        encoder; perhaps `teacher`, an `Arc2Face`.
        """
        settings = Settings(**config.control.to_dict())
        text = parts["text"]
        shared = {key: getattr(settings, key) for key in arc2face.FaceSettings.model_fields}
        like = Arc2Face.like(text, arc2face.FaceSettings(**shared))
        teacher = parts.get("teacher") or like
        for key in ("width", *SHARED):
            if teacher.config[key] != like.config[key]:
                raise UserError(
                    f"config.control: the teacher has {key} {teacher.config[key]}, model and config {like.config[key]}"
                )
        tower, width = tower_config(text.clip), text.clip.config.hidden_size
        made = cls(
            width,
            teacher.config["tower"],
            tower,
            **{name: teacher.config[name] for name in SHARED},
            copies=[settings.copies] * tower["layers"],
            average=settings.average,
            placement=settings.placement,
            subject_word=settings.subject_word,
        )
        made.reader.load_state_dict(teacher.reader.state_dict())
        writer = TextTower(width, **tower)
        writer.load(text.clip.state_dict(), "the model's text encoder")
        made.word_tower.load_state_dict(extended(writer, settings.copies).state_dict())
        token, template = text.tokenizer, made.word_template
        ids = [token.bos_token_id, *text.tokens_of(settings.template + ", " * (settings.vectors + 2))]
        ids += [token.eos_token_id] * len(template)
        with torch.no_grad():
            template.copy_(text.embedded([*ids[: len(template) - 1], token.eos_token_id]))
        return made

    @property
    def text_width(self) -> int:
        return self.config["width"]

    @property
    def dtype(self) -> torch.dtype:
        return self.word_template.dtype

    # ----------------------------------------------------------------------------------------------------- a person

    def features(self, references: Tensor) -> Features:
        return {"face": F.normalize(references, dim=-1)}

    def identity(self, features: Features, pool: str = "concat") -> Identity:
        """`pool`: "first" takes the first reference alone; else they are averaged, see `average`.

        `features` may have "states" [B,F,N,D], what the reader makes of faces, instead of these.
        """
        if pool == "first":
            features = {name: value[:, :1] for name, value in features.items()}
        states = features["states"].to(self.dtype) if "states" in features else self.states(features["face"])
        if self.average == "states":
            states = states.mean(dim=1, keepdim=True)
        words = self.words(states.flatten(0, 1)).unflatten(0, states.shape[:2]).mean(dim=1)  # [B,N,D]
        return {"words": words, "pads": self.pads[self.persons].expand_as(words)}

    @torch.no_grad()
    def states(self, face: Tensor) -> Tensor:
        """What the reader says of faces [B,F,face_dim]: [B,F,N,D], or [B,1,N,D] of their average."""
        face = face.to(self.dtype)
        if self.average == "embeddings":
            face = face.mean(dim=1, keepdim=True)
        return self.reader(F.normalize(face, dim=-1).flatten(0, 1)).unflatten(0, face.shape[:2])

    def words(self, states: Tensor) -> Tensor:
        """What the reader says [B,N,D] -> the same in the space of token embeddings [B,N,D]."""
        return self.written(states, self.word_template[: self.persons.stop])[:, self.persons]

    def written(self, states: Tensor, template: Tensor) -> Tensor:
        """The word tower's whole output [B,L,D] for a person [B,N,D] in a template [L,D].

        Attention is causal: what stands behind a person does not change the words.
        """
        around = template.expand(len(states), -1, -1)
        start, stop = self.persons.start, self.persons.start + states.shape[1]
        x = torch.cat([around[:, :start], states, around[:, stop:]], dim=1)
        return self.word_tower.final_layer_norm(self.mix(self.word_tower(x)))

    @property
    def pads(self) -> Tensor:
        """What the word tower's first layer reads of an empty prompt, but for its beginning: [L,D]."""
        return self.word_template[-1] + self.word_tower.positions.detach()

    def unconditional(self, identity: Identity, mode: str) -> None:
        """Nobody: prompts that guidance leads away from have no person in them."""
        return

    # ----------------------------------------------------------------------------------------------------- a prompt

    def prompt(
        self,
        text_encoder: TextEncoder,
        prompts: Sequence[str],
        identity: Identity | None = None,
        scale: float = 1.0,
        layer_weights: Sequence[float] = (),
    ) -> Prompt:
        """See `Method.prompt`; `layer_weights`: see `TextEncoder.encode_tokens`.

        Strength leads from the pads (0) to the words (1), and beyond. `UserError` for a prompt that has the person's
        word more often than the text encoder has room for.
        """
        if identity is None:
            return {"text": text_encoder.encode(prompts)}
        words = identity["words"]
        if scale != 1:
            words = scale * words + (1 - scale) * identity["pads"]
        ids, weights = map(torch.stack, zip(*(self._placed(text_encoder, prompt) for prompt in prompts), strict=True))
        text = text_encoder.encode_tokens(ids.to(words.device), words.expand(len(ids), -1, -1), layer_weights, weights)
        return {"text": text}

    def placed(self, text_encoder: TextEncoder, prompt: str) -> Tensor:
        """Token ids [T] of a prompt with a person in it; ids from the token table's size on are the vectors.

        What exceeds T tokens is cut from the text's end, never from a person.
        """
        return self._placed(text_encoder, prompt)[0]

    def _placed(self, text_encoder: TextEncoder, prompt: str) -> tuple[Tensor, Tensor]:
        """The same, and how much each token counts, [T]. `UserError` where the person's words are to be weighted."""
        plain, spans = plain_prompt(prompt)
        if any(re.search(self._word, plain[span.start : span.end]) for span in spans):
            raise UserError(
                f"{prompt[:60]!r}: {self.subject_word!r} stands in weighted brackets; the person counts as "
                "--face_scale says: take it out of them"
            )
        tokenizer = text_encoder.tokenizer
        first = text_encoder.clip.get_input_embeddings().num_embeddings
        person = [(token, 1.0) for token in range(first, first + self.vectors)]
        parts = [list(zip(*text_encoder.weighted_tokens(part), strict=True)) for part in self.parts(prompt)]
        ids = [*parts[0], *(token for part in parts[1:] for token in (*person, *part))]
        room = text_encoder.num_tokens - 2  # without the first and the last one
        if (len(parts) - 1) * self.vectors > room:
            raise UserError(
                f"{prompt[:60]!r}: has {self.subject_word!r} {len(parts) - 1} times, {self.vectors} tokens each; the "
                f"text encoder has room for {room}: name the person less often"
            )
        excess = max(0, len(ids) - room)
        text = [place for place, (token, _) in enumerate(ids) if token < first]
        dropped = set(text[len(text) - excess :])
        ids = [token for place, token in enumerate(ids) if place not in dropped]
        ids = [(tokenizer.bos_token_id, 1.0), *ids, (tokenizer.eos_token_id, 1.0)]
        ids += [(tokenizer.pad_token_id, 1.0)] * (text_encoder.num_tokens - len(ids))
        tokens, weights = zip(*ids, strict=True)
        return torch.tensor(tokens), torch.tensor(weights)

    @property
    def _word(self) -> str:
        """A regular expression for the person's word: neither inside words nor of a hyphened one."""
        return rf"(?<![\w-]){re.escape(self.subject_word)}(?![\w-])"

    def parts(self, prompt: str) -> list[str]:
        """The texts between which a person stands, in the order of the prompt."""
        parts = re.split(self._word, prompt)
        if self.placement == "in_place" and len(parts) > 1:
            return parts
        rest = re.sub(rf"(\b(a|an|the)\s+)?{self._word},?", "", prompt)
        return ["", rest] if self.placement == "prepend" else [rest, ""]

    def notice(self, text_encoder: TextEncoder, prompt: str) -> str | None:
        """What to tell the user of a prompt: that the person's word is missing, that its end is cut."""
        found = []
        if not re.search(self._word, prompt):
            where = "before" if self.placement == "prepend" else "after"
            found.append(f"has no word {self.subject_word!r} where the person stands, who is put {where} it")
        texts = [text_encoder.tokens_of(part) for part in self.parts(plain_prompt(prompt)[0])]
        length = sum(map(len, texts)) + (len(texts) - 1) * self.vectors + 2
        if length > text_encoder.num_tokens:
            found.append(
                f"has {length} tokens with the person's {self.vectors}; the text encoder reads "
                f"{text_encoder.num_tokens}, the end of the text is cut"
            )
        return f"the prompt {', and '.join(found)}" if found else None

    # ------------------------------------------------------------------------------------------------------ the seam

    def bind(self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None) -> None:
        """Nothing: the person is in the text."""
        return

    def objective(self, config: "ConfigDict", zero_reference: Features, empty_text: Tensor) -> Objective:
        settings = Settings(**config.control.to_dict())
        if settings.objective.kind != "reconstruction" and not settings.teacher:
            raise UserError("config.control.teacher: is empty; distillation needs one, docs/methods.md says which")
        kind = {"distillation": Distillation, "reconstruction": Reconstruction, "composition": Composition}
        kind = kind[settings.objective.kind]
        word = settings.subject_word
        prompts = [prompt.format(word) for prompt in settings.objective.prompts]
        more = (self,) if kind is Composition else ()
        return kind(config, zero_reference, empty_text, prompts, settings.objective, word, *more)

    @classmethod
    def asks_frozen(cls, config: "ConfigDict") -> bool:
        return super().asks_frozen(config) and config.control.objective.kind == "reconstruction"

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        tower = self.word_tower
        return {"layers": tower.encoder, "norm": tower.final_layer_norm, "mix": self.mix}

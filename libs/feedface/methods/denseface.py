"""Dense-Face: small additions to every attention's projections, a person's token in the text, a drawing of the pose.

The identity, a face recogniser's embedding, adds a constant to the queries of the attentions to the text, and an offset
to the token of the person's word. Queries, keys and values of all attentions get projections of their own, of strength
δ. A branch beside the U-Net reads the head's pose from a drawing.

Shapes: B people or rows, F references of one person, L tokens of the picture, D width of a site, T text tokens.
Source: Guo et al. 2024, "Dense-Face: Personalized Face Generation Model via Dense Annotation Prediction".
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import TypeAdapter
from torch import Tensor, nn

from feedface.backbones.base import Backbone, Prompt, Site
from feedface.backbones.control import Control, Operator
from feedface.common.errors import UserError
from feedface.common.prompt_weights import plain_prompt
from feedface.common.sizes import Width
from feedface.common.validation import Text
from feedface.dense_heads import DenseHeads
from feedface.diffusion.dense_objective import DenseObjective
from feedface.diffusion.objective import Objective
from feedface.diffusion.schedule import NUM_TIMESTEPS, signal_and_noise
from feedface.diffusion.state import State, length
from feedface.encoders import ReferenceSpec, TextEncoder
from feedface.head_pose import pose_hints
from feedface.methods.base import Features, Identity, Method
from feedface.methods.denseface_config import (
    WAY_UP,
    DenseConfig,
    PoseConfig,
    Settings,
    SiteConfig,
    Strength,
    dense_config,
    described_sites,
    pose_config,
)
from feedface.pose_branch import PoseBranch

if TYPE_CHECKING:
    from ml_collections import ConfigDict

POOLS = ("mean", "first")
NORMS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Adapter(nn.Module):
    """What is added to an attention's queries, keys and values; nothing at first. `face` is of those that read it."""

    def __init__(self, width: int, context: int, face_dim: int | None):
        super().__init__()
        self.query = nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(context, width, bias=False) for _ in range(2))
        self.face = None if face_dim is None else nn.Linear(face_dim, width, bias=False)
        for linear in (self.query, self.key, self.value):
            nn.init.zeros_(linear.weight)


class FaceToken(nn.Module):
    """The person's word as a token embedding: a fixed one, and a normalised projection of the face."""

    def __init__(self, width: int, face_dim: int, norm: str):
        super().__init__()
        self.word = nn.Buffer(torch.zeros(width))
        self.projector = nn.Linear(face_dim, width, bias=False)
        self.norm = NORMS[norm](width)

    def forward(self, face: Tensor) -> Tensor:
        """Faces [B,face_dim] -> what δ times is added to the word, [B,width]."""
        return self.norm(self.projector(face))


class DenseControl(Control):
    """q + δ q', k + δ k', v + δ v' in every attention, and the pose in the skips. Made by `DenseFace.bind`.

    q' sees the identity in place of the tokens where the site reads it. Without an identity all see the tokens.
    """

    def __init__(self, method: "DenseFace", backbone: Backbone, identity: Identity, delta: float, rows: slice | None):
        self.method, self.rows, self.delta = method, rows, delta
        self.pose, face = identity.get("pose"), identity.get("face")
        self.sites = frozenset(method.sites)
        if torch.is_grad_enabled():
            self.sites |= sealed(backbone, method)
        self.residual_names = [name for name, site in backbone.sites.items() if site.kind == "residual"]
        self.seen: dict[str, Tensor] = {}  # what blocks gave, for the dense heads
        if method.dense is not None and torch.is_grad_enabled():
            self.sites |= method.dense_sites.keys()
        self._hints: dict[tuple[int, int], Tensor] = {}  # the drawing, embedded, by the latent's (h, w)
        self.offsets: dict[str, Tensor] = {}  # [B,1,D] of the queries
        if face is not None:
            for name in method.readers:
                adapter = method.adapter(name)
                with torch.set_grad_enabled(torch.is_grad_enabled() and name in method.learning):
                    self.offsets[name] = delta * adapter.query(adapter.face(face.to(method.dtype)))[:, None]

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        # Where nothing is learned, nothing is differentiated either, so that the way down costs no backward pass.
        with torch.set_grad_enabled(torch.is_grad_enabled() and site.name in self.method.learning):
            if site.name not in self.method.sites:
                return op(x, context)
            adapter, delta = self.method.adapter(site.name), self.delta
            offset = self.offsets.get(site.name)
            query = op.query(x) + (delta * adapter.query(x) if offset is None else offset)
            key, value = op.key_value(context)
            key, value = key + delta * adapter.key(context), value + delta * adapter.value(context)
            if site.kind == "cross_attention":
                key, value = (torch.cat([part[:, :1].detach(), part[:, 1:]], dim=1) for part in (key, value))
            return op.attend(query, key, value)

    def block(self, site: Site, x: Tensor, out: Tensor) -> None:
        self.seen[site.name] = out.detach()

    def residuals(self, state: State, t: Tensor) -> dict[str, Tensor]:
        if self.pose is None or self.method.pose is None:
            return {}
        x = state["img"]
        size = tuple(x.shape[-2:])
        if size not in self._hints:
            self._hints[size] = self.method.pose.embedded(self.method.hints(self.pose, size).to(x.device))
        added = self.method.pose(x, t - 1, self._hints[size].expand(len(x), -1, -1, -1))
        return dict(zip(self.residual_names, added, strict=True))

    def first(self, count: int) -> "DenseControl":
        control = copy.copy(self)
        control.rows = None
        control.offsets = {name: value[:count] for name, value in self.offsets.items()}
        control._hints = {size: value[:count] for size, value in self._hints.items()}
        control.pose = None if self.pose is None else self.pose[:count]
        return control


class DenseFace(Method):
    """Adapters of attentions, a token, a pose branch. A fresh one changes nothing but the person's word.

    Features: "face" [B,face_dim], the recogniser's embedding. Identity: "face" [B,face_dim], "word" and "token" [B,Dt],
    which make the person's word, and perhaps "pose" [B,3]: yaw, pitch, roll in degrees, see `head_pose`; without it the
    pose is left to the text.

    Args:
        sites: attentions by name, in the order of evaluation.
        token_width: of the text encoder's token table.
        face_dim, recogniser: of the embedding, and the insightface pack that it is from.
        delta, token_delta: δ of the attentions and of the token; at use, the strength times these.
        norm: of the token: "layer", or "batch", the authors', whose running statistics count.
        learning: which sites are trained: those of the "decoder", where the authors' are, or "all".
        pose: arguments of the `PoseBranch`; None: there is none.
        dense: arguments of the `DenseHeads` and what they see; None: there are none.
        guided: what guidance leads away from: the "text" alone, both halves showing the person and the pose, as the
            authors' program does; or "all" of them.
        subject_word: the person's word in prompts.
    """

    kind, settings, changes_prompt = "denseface", TypeAdapter(Settings), True

    def __init__(
        self,
        sites: Annotated[dict[str, SiteConfig], Len(1, 1024)],
        token_width: Width,
        face_dim: Width = 512,
        recogniser: Text = "buffalo_l",
        delta: Strength = 0.01,
        token_delta: Strength = 0.01,
        norm: Literal["layer", "batch"] = "layer",
        learning: Literal["decoder", "all"] = "decoder",
        pose: PoseConfig | None = None,
        dense: DenseConfig | None = None,
        guided: Literal["text", "all"] = "text",
        subject_word: Text = "*",
    ):
        super().__init__()
        self.sites, self.subject_word = {name: dict(site) for name, site in sites.items()}, subject_word
        self.readers = [name for name, site in self.sites.items() if site["reads"]]
        self.learning = {name for name in self.sites if learning == "all" or name.startswith(WAY_UP)}
        self.reference = ReferenceSpec("embedding", face_dim, recogniser=recogniser)
        self.adapters = nn.ModuleDict(
            {
                slot(name): Adapter(site["width"], site["context"], face_dim if site["reads"] else None)
                for name, site in self.sites.items()
            }
        )
        self.token = FaceToken(token_width, face_dim, norm)
        self.pose = None if pose is None else PoseBranch(**pose)
        self.dense, self.dense_sites = None, {}
        if dense is not None:
            own = dict(dense)
            self.dense_sites, self.attributes = own.pop("sites"), own.pop("attributes")
            self.label_cells = own.get("factor", 2)
            self.dense = DenseHeads(widths=list(self.dense_sites.values()), attributes=len(self.attributes), **own)
        self.config = {
            "sites": self.sites,
            "token_width": token_width,
            "face_dim": face_dim,
            "recogniser": recogniser,
            "delta": delta,
            "token_delta": token_delta,
            "norm": norm,
            "learning": learning,
            "pose": None if pose is None else self.pose.config,
            "dense": None if dense is None else dict(dense),
            "guided": guided,
            "subject_word": subject_word,
        }

    @classmethod
    def fresh(cls, config: "ConfigDict", backbone: Backbone, **parts: object) -> "DenseFace":
        """`parts`: `text`, the model's text encoder. On a backbone other than a U-Net there is no pose branch."""
        settings, text = Settings(**config.control.to_dict()), parts["text"]
        chosen = described_sites(backbone, settings.adapters, settings.reads_in_middle)
        shared = settings.model_dump(include={"face_dim", "recogniser", "delta", "token_delta", "norm", "guided"})
        pose = pose_config(backbone, settings.hint_channels) if settings.pose else None
        if settings.pose and pose is None:
            raise UserError(f"config.control.pose: the pose branch is for a U-Net; with a {backbone.kind} use False")
        method = cls(
            chosen,
            text.clip.config.hidden_size,
            learning=settings.adapters,
            pose=pose,
            dense=None if settings.dense is None else dense_config(backbone, settings.dense),
            subject_word=settings.subject_word,
            **shared,
        )
        for word in (settings.subject_word, settings.initial_word):
            only_token(text, word)
        with torch.no_grad():
            method.token.word.copy_(text.embedded([only_token(text, settings.initial_word)])[0])
        nn.init.zeros_(method.token.norm.weight)
        if method.pose is not None:
            method.pose.copy_encoder(backbone.unet.state_dict())
        return method

    def check(self, backbone: Backbone, source: object) -> None:
        for name, own in self.sites.items():
            site = backbone.sites.get(name)
            if site is None or "attention" not in site.kind:
                problem = f"has no site {name}"
            elif (site.width, site.context_width or site.width) != (own["width"], own["context"]):
                problem = f"has another width at {name}, {site.width}"
            else:
                continue
            raise UserError(f"{source}: this {self.kind} belongs to another backbone: the {backbone.kind} {problem}")
        hints = () if self.pose is None else self.pose.config["hint_channels"]
        if self.pose is not None and (theirs := pose_config(backbone, hints)) != self.pose.config:
            own = self.pose.config
            raise UserError(f"{source}: its pose branch ({own}) belongs to another backbone than one of {theirs}")

    @property
    def text_width(self) -> int:
        return self.config["token_width"]

    @property
    def dtype(self) -> torch.dtype:
        return self.token.norm.weight.dtype

    def adapter(self, site: str) -> Adapter:
        return self.adapters[slot(site)]

    def hints(self, poses: Tensor, latent_size: Sequence[int]) -> Tensor:
        """Drawings of poses [B,3] for a latent of (h, w): [B,3,8h,8w]."""
        return pose_hints(poses.cpu(), [side * self.pose.hint_factor for side in latent_size])

    # ----------------------------------------------------------------------------------------------------- a person

    def features(self, references: Tensor) -> Features:
        return {"face": F.normalize(references, dim=-1)}

    def identity(self, features: Features, pool: str = "mean") -> Identity:
        """`pool`: "first" takes the first reference alone; else their mean direction. A "pose" [B,3] stays as it is."""
        face = features["face"][:, :1] if pool == "first" else features["face"]
        identity = self.named(F.normalize(face.to(self.dtype).mean(dim=1), dim=-1))
        return identity | ({"pose": features["pose"]} if "pose" in features else {})

    def named(self, face: Tensor) -> Identity:
        """Faces [B,face_dim] with what the text says of them: all that `prompt` needs."""
        return {"face": face, "word": self.token.word.expand(len(face), -1), "token": self.token(face)}

    def posed(self, identity: Identity, pose: Sequence[float]) -> Identity:
        """The people with their heads turned: yaw, pitch, roll in degrees. `UserError` without a pose branch."""
        if self.pose is None:
            raise UserError("--pose: this Dense-Face has no pose branch; the pose is left to the prompt")
        return {**identity, "pose": identity["face"].new_tensor(pose).expand(length(identity), 3)}

    def unconditional(self, identity: Identity, mode: str) -> Identity | None:
        return identity if self.config["guided"] == "text" else None

    def prompt(
        self, text_encoder: TextEncoder, prompts: Sequence[str], identity: Identity | None = None, scale: float = 1.0
    ) -> Prompt:
        """With the person's token in the places of the person's word."""
        if identity is None:
            return {"text": text_encoder.encode(prompts)}
        # Of the identity alone: with little memory these weights are not there while the text encoder is.
        words = (identity["word"] + scale * self.config["token_delta"] * identity["token"])[:, None]  # [B,1,D]
        prompts, spans = zip(*map(plain_prompt, prompts), strict=True)
        ids, weights = self.placed(text_encoder, prompts).to(words.device), text_encoder.token_weights(prompts, spans)
        return {"text": text_encoder.encode_tokens(ids, words.expand(len(ids), -1, -1), weights=weights)}

    def placed(self, text_encoder: TextEncoder, prompts: Sequence[str]) -> Tensor:
        """Token ids [B,T] of prompts without weights; one from the token table's size on is the person's."""
        ids, person = text_encoder.tokenize(prompts), text_encoder.clip.get_input_embeddings().num_embeddings
        return ids.where(ids != only_token(text_encoder, self.subject_word), person)

    def notice(self, text_encoder: TextEncoder, prompt: str) -> str | None:
        prompt, _ = plain_prompt(prompt)
        if bool((self.placed(text_encoder, [prompt]) != text_encoder.tokenize([prompt])).any()):
            return None
        return f"the prompt has no free-standing {self.subject_word!r}: the person is not named in the text"

    # ------------------------------------------------------------------------------------------------------ the seam

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> DenseControl | None:
        if scale == 0:
            return None
        return DenseControl(self, backbone, identity, scale * self.config["delta"], rows)

    @property
    def labels(self) -> list[str]:
        maps = [] if self.dense is None else [*self.dense.maps, *(["attributes"] if self.attributes else [])]
        return [*([] if self.pose is None else ["pose"]), *maps]

    def read_out(self, control: DenseControl, state: State, t: Tensor, noise: State) -> State:
        """The dense heads' logits, as "dense.parsing", …; they learn alone, from what is there anyway."""
        if self.dense is None or not control.seen:
            return {}
        found = self.dense_logits(state["img"], t, noise["img"].detach(), control)
        return {f"dense.{name}": value for name, value in found.items()}

    def dense_logits(self, x: Tensor, t: Tensor, noise: Tensor, control: DenseControl) -> dict[str, Tensor]:
        """What the heads say of a step; `control` saw it."""
        signal, sigma = (value[:, None, None, None] for value in signal_and_noise(t))
        clean = ((x - sigma * noise) / signal).clamp(-8, 8)
        seen = [control.seen[name].to(self.dtype) for name in self.dense_sites]
        return self.dense(clean.to(self.dtype), t / NUM_TIMESTEPS, seen)

    def objective(self, config: "ConfigDict", zero_reference: Features, empty_text: Tensor) -> Objective:
        settings = Settings(**config.control.to_dict())
        return DenseObjective(config, zero_reference, empty_text, settings)

    def step_blocks(self) -> Iterable[nn.Module]:
        return [*self.adapters.values(), *([] if self.pose is None else [self.pose])]

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        pose = {} if self.pose is None else {"pose": self.pose}
        dense = {} if self.dense is None else {"dense": self.dense}
        return {"adapters": self.adapters, "token": self.token, **pose, **dense}

    def trained_parameters(self, backbone: Backbone) -> Iterator[tuple[str, nn.Parameter]]:
        frozen = tuple(f"adapters.{slot(name)}." for name in self.sites if name not in self.learning)
        for name, parameter in super().trained_parameters(backbone):
            if not name.startswith(frozen):
                yield name, parameter


def sealed(backbone: Backbone, method: DenseFace) -> set[str]:
    """Attentions where only the text would bring gradients, which are not wanted: those before all that learns."""
    found = {site.name for site in backbone.sites.values() if site.kind == "cross_attention"}
    return set() if method.config["learning"] == "all" else {name for name in found if not name.startswith(WAY_UP)}


def slot(site: str) -> str:
    """A site's name as that of a module, which has no dots."""
    return site.replace(".", "/")


def only_token(text_encoder: TextEncoder, word: str) -> int:
    """The token of a word; `UserError` for one that is several."""
    tokens = text_encoder.tokens_of(word)
    if len(tokens) != 1:
        raise UserError(f"the person's word {word!r} is {len(tokens)} tokens of this text encoder; it must be one")
    return tokens[0]

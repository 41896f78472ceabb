"""AdaFace's second stage: a person's words are taught to leave room for the rest of a prompt.

A part of the batches shows one person by four prompts, see `diffusion.compositional_losses`: with the person's words
and with a class word, each alone and in a composition. Attention and features are read where the U-Net attends to text.
The other batches are pictures, or the first stage's.

Beside the paper's program this has no choice between candidates by CLIP and no second use of an estimate; and the
features are those of the transformer blocks.

Shapes: B batch, C h w latent, L tokens, H heads, T text tokens, N vectors of a person, D their width.
Source: Feng et al. 2024, "AdaFace".
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.backbones.base import Backbone
from feedface.backbones.control import Control, Operator
from feedface.backbones.site import Site
from feedface.common.errors import UserError
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.compositional_losses import (
    Layer,
    face_at,
    foreground_losses,
    merged,
    mix_losses,
    mix_total,
    mixed,
    preserve_losses,
    preserved,
    prompt_loss,
    spread,
)
from feedface.diffusion.objective import LossParts, Model
from feedface.diffusion.protocols import Rows
from feedface.diffusion.schedule import NUM_TIMESTEPS, add_noise
from feedface.diffusion.teacher_steps import STEP_SHARES, estimated_x0, next_times
from feedface.diffusion.text_objective import Distillation, Reconstruction, drawn, noisy, rng_of, whole
from feedface.encoders import TextEncoder
from feedface.methods.base import Method

if TYPE_CHECKING:
    from ml_collections import ConfigDict

EARLIEST = 800  # of the times at which a composition is still open
KEYS_LOW, VALUES_LOW = 0.8, 0.7  # the class's share in a person's places, at the last layer
FACE_SCALE = (0.5, 0.9)  # to which a face is made smaller, so that there is room around it
BACKGROUND_NOISE = (0.1, 0.4)
FREE = 1 / 4  # of the cross-attentions, the first ones: the mixed rows have nothing of the person there


# -------------------------------------------------------------------------------------------------------- the prompts


@dataclass(slots=True)
class FourTexts:
    """Encoded prompts of a person and a class, each alone and composed.

    Attributes:
        merged: rows SS, SC, CS, CC, [4,T,D]; the class's words are one vector, in the first of the person's places.
        real: of SS and SC, [2,T]: whether a token is of the prompt.
        places: the person's.
    """

    merged: Tensor
    real: Tensor
    places: slice

    @property
    def spread(self) -> Tensor:
        """The same with the class's vector in all of the places."""
        count = self.places.stop - self.places.start
        return torch.cat([self.merged[:2], *(spread(row, self.places.start, count)[None] for row in self.merged[2:])])


def places_of(method: Method, text_encoder: TextEncoder, ids: Tensor) -> slice:
    """Where the person first stands among token ids [T]."""
    start = int((ids >= text_encoder.clip.get_input_embeddings().num_embeddings).int().argmax())
    return slice(start, start + method.vectors)


def four_texts(
    method: Method,
    text_encoder: TextEncoder,
    words: Tensor,
    prompts: Sequence[str],
    class_word: str,
    layer_weights: Sequence[float] = (),
) -> FourTexts:
    """`words` [2,N,D], the person's in SS and in SC; `prompts`: alone and composed, with the person's word."""
    ids = torch.stack([method.placed(text_encoder, prompt) for prompt in prompts]).to(words.device)
    place = places_of(method, text_encoder, ids[0])
    person = text_encoder.encode_tokens(ids, words, layer_weights)
    tokens = text_encoder.tokens_of(class_word)
    comma = text_encoder.tokens_of(",")[:1] or [text_encoder.tokenizer.pad_token_id]
    instead = torch.tensor([*tokens, *comma * (method.vectors - 1)], device=ids.device)
    rows = torch.stack([torch.cat([row[: place.start], instead, row[place.stop :]])[: ids.shape[1]] for row in ids])
    others = text_encoder.encode_tokens(rows, words.new_zeros(2, 0, words.shape[-1]), layer_weights)
    others = torch.stack([merged(text, place.start, len(tokens)) for text in others])
    tokenizer = text_encoder.tokenizer
    real = (ids != tokenizer.bos_token_id) & (ids != tokenizer.eos_token_id) & (ids != tokenizer.pad_token_id)
    return FourTexts(torch.cat([person, others]), real, place)


# --------------------------------------------------------------------------------------------------- what is read along


class Watch(Control):
    """Gives cross-attentions texts of their own, and keeps what some of them and their blocks do.

    Args:
        weights: of the blocks that are kept, by name.
        places: of the person in the text.
        texts: for each cross-attention by name, what its keys and its values are made of, [B,T,D] each.
    """

    def __init__(self, weights: Mapping[str, float], places: slice, texts: Mapping[str, tuple[Tensor, Tensor]] = {}):
        self.weights, self.places, self.texts = weights, places, dict(texts)
        self.sites = {*texts, *weights, *(_attention(name) for name in weights)}
        self.scores: dict[str, Tensor] = {}
        self.queries: dict[str, Tensor] = {}
        self.features: dict[str, Tensor] = {}

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        keys, values = (text.to(x) for text in self.texts.get(site.name, (context, context)))
        query, key, value = op.query(x), op.key_value(keys)[0], op.key_value(values)[1]
        block = site.name.rpartition(".")[0]
        if block in self.weights:
            scale = (query.shape[-1] // site.heads) ** -0.25
            q, k = (t.unflatten(-1, (site.heads, -1)).transpose(1, 2) * scale for t in (query, key[:, self.places]))
            self.scores[block], self.queries[block] = (q @ k.mT).sum(dim=-1), query * scale
        return op.attend(query, key, value)

    def block(self, site: Site, x: Tensor, out: Tensor) -> None:
        self.features[site.name] = out

    def layers(self, backbone: Backbone, latent_size: Sequence[int]) -> list[Layer]:
        """What was kept, as maps."""
        made = []
        for name, weight in self.weights.items():
            grid = backbone.sites[name].grid(latent_size)
            maps = (kept[name].float().mT.unflatten(-1, grid) for kept in (self.queries, self.features))
            made.append(Layer(self.scores[name].float(), *maps, weight))
        return made


def _attention(block: str) -> str:
    """The cross-attention of a transformer block of the U-Net."""
    return f"{block}.attn2"


def text_layers(backbone: Backbone) -> list[str]:
    """The blocks with a cross-attention, in the order of evaluation. `UserError` for a backbone without."""
    found = [name.rpartition(".")[0] for name, site in backbone.sites.items() if site.kind == "cross_attention"]
    if not found:
        raise UserError(
            f"config.control.objective.kind: composition is for a U-Net; a {backbone.kind} attends to no text apart"
        )
    return found


def kept_layers(layers: Sequence[str]) -> dict[str, float]:
    """Weights of the blocks whose work is compared: half of the others' at the deepest level of the way down."""
    down = [name for name in layers if name.startswith("down_blocks.")]
    deepest = max((int(re.findall(r"\d+", name)[0]) for name in down), default=0)
    weights = {name: 0.5 for name in down if name.startswith(f"down_blocks.{deepest}.")}
    weights |= {name: 1.0 for name in layers if name not in down}
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def mixed_texts(layers: Sequence[str], texts: Tensor, places: slice, noise: float) -> dict[str, tuple[Tensor, Tensor]]:
    """Of rows SS, SC, CS, CC [4,T,D], for each cross-attention what keys and values of SS, SC, MS, MC are made of."""
    person, other = texts.chunk(2)
    free = round(FREE * len(layers))
    made = {}
    for index, name in enumerate(layers):
        if index < free:
            made[_attention(name)] = (texts, texts)
            continue
        depth = (index - free) / max(1, len(layers) - free - 1)
        halves = (mixed(person, other, places, depth, low, noise) for low in (KEYS_LOW, VALUES_LOW))
        made[_attention(name)] = tuple(torch.cat([person, half]) for half in halves)
    return made


# ------------------------------------------------------------------------------------------------------- the objective


class Composition(Distillation):
    """Compositions, pictures, and the first stage's batches, in the shares of the settings.

    Args besides `Reconstruction`'s:
        method: as it is before this stage; a copy of it stays so.
    """

    def __init__(
        self,
        config: "ConfigDict",
        zero_reference: Rows,
        empty_text: Tensor,
        prompts: Sequence[str],
        settings: Any,
        word: str,
        method: Method,
    ):
        super().__init__(config, zero_reference, empty_text, prompts, settings, word)
        self.before, self.empty_text = copy.deepcopy(method).requires_grad_(False), empty_text

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts:
        rng = rng_of(draws, b"second stage")
        layers = text_layers(whole(model).backbone)
        if rng.random() < self.settings.composed:
            return self._compose(model, draws, batch, rng, layers)
        if rng.random() < self.settings.distilled:
            return super().__call__(model, draws, batch)
        if self.settings.captions:
            return Reconstruction.__call__(self, model, draws, batch)
        return self._reconstruct(model, draws, batch, rng, layers)

    def _prompts(self, rng: np.random.Generator) -> tuple[str, str]:
        """One with the person alone, and the same with one of each list of compositions behind it."""
        alone = self.prompts[rng.integers(len(self.prompts))]
        parts = [choices[rng.integers(len(choices))] for choices in self.settings.compositions]
        return alone, " ".join([alone, *filter(None, parts)])

    # ------------------------------------------------------------------------------------------------------- pictures

    def _reconstruct(
        self, model: Model, draws: Draws, batch: Encoded, rng: np.random.Generator, layers: Sequence[str]
    ) -> LossParts:
        inner, settings = whole(model), self.settings
        method, text_encoder, rows = inner.method, inner.frozen["text"], len(draws.t)
        prompts, layer_weights = self._prompts(rng), self.layer_weights(rng)
        heard: dict[str, Tensor] = {}
        noise = self.word_noise(rng, (rows, method.vectors, method.text_width))

        def change(identity: Rows) -> Rows:
            identity = noisy(noise, identity)
            heard.update(identity)
            return identity

        place = places_of(method, text_encoder, method.placed(text_encoder, prompts[0]))
        watch = Watch(kept_layers(layers), place)
        predict = self.shown(model, [prompts[0]] * rows, change, watch, layer_weights=layer_weights)
        parts = self.masked(predict, draws, batch)

        mask = batch.mask.to(self.device).float()
        attended = 0
        for name, weight in watch.weights.items():
            grid = inner.backbone.sites[name].grid(mask.shape[-2:])
            attended = attended + weight * foreground_losses(watch.scores[name].float(), None, face_at(mask, grid))[1]
        words = heard["words"][:1].expand(2, -1, -1)
        texts = four_texts(method, text_encoder, words, prompts, settings.class_word, layer_weights)
        by_prompt = prompt_loss(texts.merged.float(), texts.real)
        parts.loss = parts.loss + settings.weights.attention * attended + settings.weights.prompt * by_prompt
        return parts

    # --------------------------------------------------------------------------------------------------- compositions

    def _compose(
        self, model: Model, draws: Draws, batch: Encoded, rng: np.random.Generator, layers: Sequence[str]
    ) -> LossParts:
        inner, settings, weights = whole(model), self.settings, self.settings.weights
        method, backbone, text_encoder = inner.method, inner.backbone, inner.frozen["text"]
        prompts, layer_weights, normed = self._prompts(rng), self.layer_weights(rng), rng.random() < 0.5
        features = {name: value[:1].to(self.device) for name, value in batch.features.items()}
        noise = self.word_noise(rng, (1, method.vectors, method.text_width))

        def told(identity: Rows) -> FourTexts:
            live = noisy(noise, identity)["words"]
            with torch.no_grad():
                before = self.before.to(live.device).identity(features)["words"]
            words = torch.cat([settings.before * before + (1 - settings.before) * live, live])
            return four_texts(method, text_encoder, words, prompts, settings.class_word, layer_weights)

        x0, face = self._start(draws, batch, rng)
        shares = {n: share for n, share in STEP_SHARES.items() if n <= min(3, settings.most_steps)}
        count = int(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
        t = torch.tensor([int(rng.integers(EARLIEST, NUM_TIMESTEPS))], device=self.device)
        with torch.no_grad():
            texts = told(method.identity(features))
            for _ in range(count - 1):
                x, t4 = self._noised(x0, t, rng)
                x0 = estimated_x0(x, t4, self._guided(model, x, t4, texts, layers))
                t = next_times(t, count, torch.from_numpy(rng.random(1, np.float32)).to(self.device))

        x, t4 = self._noised(x0, t, rng)
        watch = Watch(kept_layers(layers), texts.places, mixed_texts(layers, texts.spread, texts.places, 1.0))
        heard: list[FourTexts] = []

        def worded(identity: Rows) -> Rows:
            heard.append(told(identity))
            found = heard[0].spread.to(backbone.dtype)
            watch.texts = mixed_texts(layers, found, heard[0].places, float(t[0]) / NUM_TIMESTEPS)
            return {"text": found}

        model({"img": x}, t4 + 1, worded, features, watch)
        kept = watch.layers(backbone, x.shape[-2:])
        loss = weights.mix * mix_total(mix_losses(kept, normed), normed)
        loss = loss + weights.preserve * preserved(preserve_losses(kept, face, normed))
        loss = loss + weights.prompt * prompt_loss(heard[0].merged.float(), heard[0].real)
        return self.loss_parts(loss, len(draws.t))

    def _start(self, draws: Draws, batch: Encoded, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The first picture's face, made smaller, on its own noisy background: [4,C,h,w], and where it is [1,1,h,w]."""
        mean, std = (value[:1].to(self.device).float() for value in (batch.mean, batch.std))
        latent = mean + std * draws.vae_noise[:1].to(self.device)
        mask = batch.mask[:1].to(self.device).float()
        height, width = latent.shape[-2:]
        scale = rng.uniform(*FACE_SCALE)
        size = (max(1, round(scale * height)), max(1, round(scale * width)))
        small, hole = (F.interpolate(x, size, mode="bilinear", align_corners=False) for x in (latent, mask))
        top, left = (int(rng.integers(space + 1)) for space in (height - size[0], width - size[1]))
        around = (left, width - left - size[1], top, height - top - size[0])
        small, face = F.pad(small, around), F.pad(hole, around)
        share = rng.uniform(*BACKGROUND_NOISE)
        background = (1 - share) * latent + share * drawn(rng, latent.shape, self.device)
        return (face * small + (1 - face) * background).expand(4, -1, -1, -1), face

    def _noised(self, x0: Tensor, t: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """The four rows with the same noise, and their times."""
        t = t.expand(4)
        return add_noise(x0, drawn(rng, x0[:1].shape, self.device).expand_as(x0), t + 1), t

    def _guided(self, model: Model, x: Tensor, t: Tensor, texts: FourTexts, layers: Sequence[str]) -> Tensor:
        """The noise in the four rows under guidance."""
        found = texts.spread
        told = mixed_texts(layers, found, texts.places, float(t[0]) / NUM_TIMESTEPS)
        nothing = self.empty_text.to(found).expand_as(found)
        told = {name: tuple(torch.cat([text, nothing]) for text in pair) for name, pair in told.items()}
        rows = {"img": torch.cat([x, x])}, torch.cat([t, t]) + 1, {"text": torch.cat([found, nothing])}
        conditional, unconditional = model(*rows, None, Watch({}, texts.places, told))["img"].float().chunk(2)
        return unconditional + self.settings.guidance * (conditional - unconditional)

"""What training AdaFace and its teacher minimises; `config.control.objective` says which, configs/adaface.py more.

The person is in the text, so a prompt here is a function of who is shown: `ControlledBackbone` calls it.
Shapes: B batch, C h w latent, N vectors of a person, D their width.
Source: Feng et al. 2024, "AdaFace"; where its program differs, `teacher_steps` says so.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.common.person_words import named
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.objective import LossParts, MaskObjective, Model
from feedface.diffusion.protocols import Rows
from feedface.diffusion.schedule import NUM_TIMESTEPS, add_noise
from feedface.diffusion.state import State
from feedface.diffusion.teacher_steps import (
    STEP_SHARES,
    perturbed,
    shifted,
    step_losses,
    student_inputs,
    teacher_steps,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

LATER = (1.0, 1.3)  # what times are multiplied by where they are drawn to be later


class TextObjective:
    """For methods that change the text: `MaskObjective`, with prompts that have the person in them.

    The model has, as `frozen`, its "text" encoder; for distillation, the "teacher", a backbone, and perhaps "prefix",
    the linear that texts pass before that one.
    """

    def __init__(self, config: "ConfigDict", zero_reference: Rows, empty_text: Tensor):
        self.device, self.masked = empty_text.device, MaskObjective(config, zero_reference, empty_text)

    def shown(
        self,
        model: Model,
        prompts: list[str],
        change: Callable[[Rows], Rows] = lambda who: who,
        watch: Any = None,
        **options: Any,
    ) -> Model:
        """`model`, told of the person by `prompts` in place of the batch's texts wherever it is shown references.

        `change`: what becomes of the identity; `watch`: a control that is there then; `options`: of the method's
        `prompt`.
        """
        inner = whole(model)

        def worded(identity: Rows) -> Rows:
            return inner.method.prompt(inner.frozen["text"], prompts, change(identity), **options)

        def predict(state: State, t: Tensor, prompt: Rows, features: Rows | None = None) -> State:
            return model(state, t, prompt) if features is None else model(state, t, worded, features, watch)

        return predict


def whole(model: Model) -> Any:
    """The `ControlledBackbone` itself, where it is wrapped for several processes."""
    return getattr(model, "module", model)


class FaceText(TextObjective):
    """Arc2Face: noise is predicted from the face alone; in a share of the batches, `captions`, from their captions."""

    def __init__(self, config: "ConfigDict", zero_reference: Rows, empty_text: Tensor, captions: float = 0.0):
        super().__init__(config, zero_reference, empty_text)
        self.captions = captions

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts:
        if rng_of(draws).random() >= self.captions:
            return self.masked(self.shown(model, [""] * len(draws.t)), draws, batch)

        def captioned(state: State, t: Tensor, prompt: Rows, features: Rows | None = None) -> State:
            # The face is read all the same: every process has gradients, if only zeros, for all that is trained.
            text = prompt if features is None else partial(beside, prompt["text"])
            return model(state, t, text, features)

        return self.masked(captioned, draws, batch)


def beside(text: Tensor, identity: Rows) -> Rows:
    """A prompt's text alone, though a person is there."""
    return {"text": text + 0 * identity["states"].sum()}


class Reconstruction(TextObjective):
    """AdaFace on pictures: noise is predicted from a prompt with the person in it, and from nothing else.

    Args besides `MaskObjective`'s:
        prompts: with the person's word, each as often as any other.
        settings: `config.control.objective`.
        word: the person's; with `settings.captions` it stands in the captions for "man", "woman" and the like.
    """

    def __init__(
        self,
        config: "ConfigDict",
        zero_reference: Rows,
        empty_text: Tensor,
        prompts: Sequence[str],
        settings: Any,
        word: str,
    ):
        super().__init__(config, zero_reference, empty_text)
        self.prompts, self.settings, self.word = list(prompts), settings, word

    def loss_parts(self, loss: Tensor, rows: int) -> LossParts:
        """A loss of `rows` samples that has no parts."""
        sums = torch.stack([loss.detach() * rows, *loss.new_zeros(2)])
        return LossParts(loss, sums, torch.tensor([rows, 0, 0], device=self.device))

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts:
        rng = rng_of(draws)
        if self.settings.captions:
            prompts = [named(text, self.word) for text in batch.captions]
        else:
            prompts = [self.prompts[rng.integers(len(self.prompts))] for _ in draws.t]
        return self.masked(self.shown(model, prompts), draws, batch)


class Distillation(Reconstruction):
    """The first stage: with words in its prompt, the backbone predicts what the teacher predicts of the face itself.

    A part of the batches shows random people, of whom there is no picture: their latents begin as noise. A part shows
    one person with somewhat changed states: what differs in the predictions is a loss of its own.
    """

    def __call__(self, model: Model, draws: Draws, batch: Encoded) -> LossParts:
        settings, rng, method = self.settings, rng_of(draws), whole(model).method
        random_faces, same_person = rng.random(2) < (settings.random_faces, settings.perturbed)
        shares = {n: share for n, share in STEP_SHARES.items() if n <= settings.most_steps}
        count = int(rng.choice(list(shares), p=np.array(list(shares.values())) / sum(shares.values())))
        rows = math.ceil(len(draws.t) / count)  # several steps cost as much as one of them all
        draw = partial(drawn, rng, device=self.device)

        clean, face, mask = self._pictures(draws, batch, rows, draw if random_faces else None, method.reference.size)
        t = (draws.t[:rows] - 1).to(self.device)
        if same_person:
            clean = {name: value[:1].expand_as(value) for name, value in clean.items()}
            face, t = (value[:1].expand_as(value) for value in (face, t))
            mask = None if mask is None else mask[:1].expand_as(mask)
        if rng.random() < settings.later:
            t = (t * rng.uniform(*LATER)).long().clamp(max=NUM_TIMESTEPS - 1)
        if count > 1:
            t = shifted(t, count)
        states = method.states(face[:, None])[:, 0]  # [B,N,D]
        if same_person:
            spread = rng.uniform(*settings.perturbation)
            states = torch.cat([states[:1], perturbed(states[1:], draw(states[1:].shape), spread)])

        img, others = clean["img"], {name: value for name, value in clean.items() if name != "img"}
        noises = [draw(img.shape) for _ in range(count)]
        if same_person:
            noises = [noise[:1].expand_as(noise) for noise in noises]
        later = [torch.from_numpy(rng.random(rows, np.float32)).to(self.device) for _ in range(count - 1)]
        later = [share[:1].expand_as(share) if same_person else share for share in later]
        steps = teacher_steps(partial(taught, whole(model).frozen, states), img, t, noises, later)

        prompts = [self.prompts[rng.integers(len(self.prompts))]] * rows
        noise, layers = self.word_noise(rng, states.shape), self.layer_weights(rng)
        predict = self.shown(model, prompts, partial(noisy, noise), layer_weights=layers)
        losses = []
        for x, step in zip(student_inputs(steps, settings.original_bugs), steps, strict=True):
            state = {name: add_noise(value, draw(value.shape), step.t + 1) for name, value in others.items()}
            state = {"img": x, **state}
            predicted = predict(state, step.t + 1, {}, {"states": states[:, None]})["img"].float()
            same, change = step_losses(predicted, step.predicted, mask)
            losses.append(same + change if same_person else same)
        return self.loss_parts(sum(losses) / math.sqrt(count), rows)

    def word_noise(self, rng: np.random.Generator, shape: Sequence[int]) -> Tensor:
        """For `noisy`: zeros in a part of the batches."""
        settings, noise = self.settings, drawn(rng, shape, self.device)
        return noise * rng.uniform(*settings.word_noise_spread) * (rng.random() < settings.word_noise)

    def layer_weights(self, rng: np.random.Generator) -> Sequence[float]:
        """Of the text encoder's last layers, for a batch."""
        shares = self.settings.layer_shares
        return rng.dirichlet(shares).tolist() if shares else ()

    def _pictures(self, draws: Draws, batch: Encoded, rows: int, draw, size: int):
        """Clean parts of the state, faces [B,size] and masks [B,1,h,w]; `draw`: of nobody there is, without masks."""
        if draw is None:
            mean, std = (value[:rows].to(self.device).float() for value in (batch.mean, batch.std))
            clean = {"img": mean + std * draws.vae_noise[:rows].to(self.device)}
            clean |= {name: value[:rows].to(self.device).float() for name, value in batch.others.items()}
            face = batch.features["face"][:rows].to(self.device).float().mean(dim=1)
            return clean, face, batch.mask[:rows].to(self.device).float()
        clean = {name: draw(value[:rows].shape) for name, value in draws.noise.items()}
        return clean, F.normalize(draw((rows, size)), dim=-1), None


def taught(frozen: Mapping[str, Any], states: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The noise that the teacher sees in `x` at times `t`, 0 … 999, of people by their states [B,N,D]."""
    backbone, prefix = frozen["teacher"], frozen.get("prefix")
    text = states if prefix is None else prefix(states)
    conditions = backbone.conditions({"text": text}, tuple(x.shape[-2:]))
    return backbone({"img": x}, t + 1, conditions)["img"].float()


def noisy(noise: Tensor, identity: Rows) -> Rows:
    """With `noise` [B,N,D] in units of the words' spread."""
    words = identity["words"]
    return {**identity, "words": words + noise * words.detach().std(dim=-1).mean()}


def rng_of(draws: Draws, purpose: bytes = b"") -> np.random.Generator:
    """What is random about a batch beyond its draws: from these alone, so that a run that goes on is the same."""
    seed = hashlib.sha256(draws.vae_noise.numpy().tobytes() + draws.t.numpy().tobytes() + purpose).digest()
    return np.random.default_rng(list(seed))


def drawn(rng: np.random.Generator, shape, device: torch.device) -> Tensor:
    """Standard normal, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), np.float32)).to(device)

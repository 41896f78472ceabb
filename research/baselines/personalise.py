"""DreamBooth with LoRA: a copy of the backbone learns a person from a few pictures (Ruiz et al. 2023; Hu et al. 2022).

The captions of the person's pictures name them by an identifier before the class noun, "a photo of sks man on a
beach". Prior preservation: half of every batch are pictures that the model drew itself before, of anybody of that
class, so that it forgets neither how people differ nor how to follow a prompt.

The noise schedule and the loss are those of FeedFace's training: the whole `State` is noised with one t, the text is
clean, the error of the noise is a mean square. Here the parts of the state beside the latent are supervised too, as in
the base model's own training: the blocks that predict them are no longer frozen, and sampling integrates all.
Shapes: B batch, N pictures, V views, C h w latent, T text tokens.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.checkpoints.bundle import Bundle
from feedface.checkpoints.lora import with_lora
from feedface.common.errors import UserError
from feedface.common.progress import progress as watch
from feedface.diffusion.losses import standard_loss
from feedface.diffusion.sampling import sample
from feedface.diffusion.schedule import NUM_TIMESTEPS, add_noise
from feedface.diffusion.state import State, join, take
from feedface.encoders import resize_and_crop, to_tensor
from feedface.settings import MAX_SEED, Settings, check_range

if TYPE_CHECKING:  # heavy, and only named here
    from transformers import CLIPTokenizer

NOUNS = ("woman", "man", "girl", "boy", "lady", "person")
# "sks" is DreamBooth's rare token of CLIP's vocabulary; a small vocabulary spells it out, but hardly any caption has a
# lonely letter of these.
IDENTIFIERS = ("sks", "q", "x", "z", "j", "k")


@dataclass(frozen=True)
class DreamBoothSettings:
    """How a person is learned.

    Steps, rate and prior are the miniature's: the highest mean similarity to another picture of three people that
    neither model nor evaluation has (4 prompts each), of 40 to 240 steps at 1e-3 and 3e-3 with a prior of weight 1
    (best: 0.19, 120 steps at 3e-3) and 60 and 120 steps at 3e-3 without one (0.28 and 0.24). The prior hinders more
    than it helps there: the frozen text encoder hardly tells "q man" from "man". Nothing else was tried.

    Attributes:
        train_steps: optimizer steps.
        lr: AdamW's, constant after `warmup_steps`.
        rank: of the LoRA matrices; their product counts `alpha / rank` times.
        batch_size: pictures of the person in a step, and as many of the prior if `prior_weight` is not 0.
        prior_weight: of the prior's loss beside the person's (DreamBooth, eq. 2: lambda).
        clip_weight: of the loss of what the state has beside the latent, the U-ViT's CLIP-image embedding; the mini
            base model's own.
        flip: probability of mirroring a picture.
        seed: of all draws of the training.
    """

    train_steps: int = 60
    lr: float = 3e-3
    rank: int = 16
    alpha: float = 16.0
    batch_size: int = 4
    prior_weight: float = 0.0
    clip_weight: float = 0.1
    flip: float = 0.5
    warmup_steps: int = 20
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    seed: int = 0

    def __post_init__(self):
        ranges = {
            "train_steps": (1, 1_000_000), "lr": (1e-8, 1), "rank": (1, 4096), "alpha": (1e-6, 1e6),
            "batch_size": (1, 4096), "prior_weight": (0, 1000), "clip_weight": (0, 1000), "flip": (0, 1),
            "warmup_steps": (0, 1_000_000), "weight_decay": (0, 10), "grad_clip": (1e-6, 1e6), "seed": (0, MAX_SEED),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            check_range(f"--{name}", getattr(self, name), low, high)


@dataclass(frozen=True)
class Examples:
    """Encoded pictures. Views: as they are and mirrored, or only the former. A latent is mean + std * noise."""

    mean: Tensor  # [N,V,C,h,w]
    std: Tensor  # [N,V,C,h,w]
    others: State  # the state's other parts, [N,V,…]
    text: Tensor  # [N,T,Dt]

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class Personalised:
    """A backbone that knows a person under the name `identifier`, LoRA merged into its weights; and what it cost."""

    backbone: Backbone
    identifier: str
    steps: int
    seconds: float  # by the clock
    cpu_seconds: float  # of all threads: what it costs whoever else is using the machine
    losses: tuple[float, ...]  # of the person's pictures, image part, by step
    prior_losses: tuple[float, ...]  # empty without a prior


def pick_identifier(tokenizer: "CLIPTokenizer") -> str:
    """The first of `IDENTIFIERS` that is a single token; a name spelled in several takes tokens from the caption."""
    for word in IDENTIFIERS:
        if len(tokenizer(word, add_special_tokens=False).input_ids) == 1:
            return word
    raise UserError(f"the tokenizer has no single token for any of {', '.join(IDENTIFIERS)}")


def with_identifier(caption: str, identifier: str) -> str:
    """ "a smiling man on a beach" -> "a smiling sks man on a beach": before the first noun for a person.

    `UserError` if there is none of `NOUNS` in it.
    """
    words = caption.split()
    for place, word in enumerate(words):
        if word.lower().strip(".,;:!?") in NOUNS:
            return " ".join([*words[:place], identifier, *words[place:]])
    raise UserError(f"caption {caption!r}: says nobody whom the identifier could name; use one of {', '.join(NOUNS)}")


@torch.no_grad()
def encode_pictures(bundle: Bundle, pictures: Sequence[np.ndarray], captions: Sequence[str], device) -> Examples:
    """Pictures uint8 RGB [H,W,3] of any size (short side resized, centre cropped) and their captions, both views."""
    pixels = torch.cat([resize_and_crop(to_tensor(picture)[None], bundle.image_size) for picture in pictures])
    views = (pixels.to(device), pixels.flip(-1).to(device))
    mean, std = (torch.stack(pair, dim=1).float() for pair in zip(*map(bundle.vae.moments, views), strict=True))
    others = {}
    if "clip_img" in bundle.backbone.state_shapes():
        others["clip_img"] = torch.stack([bundle.image_encoder.encode(view) for view in views], dim=1).float()
    return Examples(mean, std, others, bundle.text_encoder.encode(list(captions)))


@torch.no_grad()
def draw_prior(bundle: Bundle, prompts: Sequence[str], settings: Settings, seed: int, batch_size: int = 64) -> Examples:
    """What the base model draws for prompts about anybody, row i with noise from seed + i. `settings`: complete.

    The samples are kept as they come, without the way through pixels.
    """
    encode = bundle.text_encoder.encode
    empty = {"text": encode([""])}
    states, texts = [], []
    for start in range(0, len(prompts), batch_size):
        text = encode(list(prompts[start : start + batch_size]))
        seeds = range(seed + start, seed + start + len(text))
        how = {"steps": settings.steps, "guidance": settings.guidance, "uncond_mode": settings.uncond}
        states.append(sample(bundle.backbone, {"text": text}, seeds, empty_prompt=empty, **how))
        texts.append(text)
    others = {name: value[:, None] for name, value in join(*states).items()}
    latents = others.pop("img")
    return Examples(latents, torch.zeros_like(latents), others, torch.cat(texts))


def personalise(
    bundle: Bundle,
    pictures: Sequence[np.ndarray],
    captions: Sequence[str],
    settings: DreamBoothSettings,
    device: torch.device,
    prior: Examples | None = None,
    progress: bool = False,
) -> Personalised:
    """Teach a copy of `bundle.backbone` one person; the bundle's own stays as it is.

    Args:
        bundle: with backbone, VAE, text encoder and what the state needs, on `device`, in float32.
        pictures: uint8 RGB [H,W,3], usually 3 to 5.
        captions: one each, without the identifier: it is put in before the noun ("man", "woman", ...).
        prior: what `draw_prior` returned for prompts of the same class; needed unless `settings.prior_weight` is 0.

    Raises:
        UserError: a caption without such a noun, or not one a picture.
    """
    if not len(pictures) or len(pictures) != len(captions):
        raise UserError(f"{len(pictures)} pictures with {len(captions)} captions: give one caption a picture")
    if settings.prior_weight and not prior:
        raise UserError(f"prior_weight {settings.prior_weight:g} needs prior pictures (draw_prior); 0 is without")
    clock, cpu = time.perf_counter(), time.process_time()
    identifier = pick_identifier(bundle.text_encoder.tokenizer)
    named = [with_identifier(caption, identifier) for caption in captions]
    person = encode_pictures(bundle, pictures, named, device)
    with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
        torch.manual_seed(settings.seed)
        model = with_lora(copy.deepcopy(bundle.backbone), _linears(bundle.backbone), settings.rank, settings.alpha)
    generator = torch.Generator().manual_seed(settings.seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=settings.lr, weight_decay=settings.weight_decay)
    losses, prior_losses = [], []
    for step in watch(range(settings.train_steps), desc="dreambooth", unit="step", disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * min(1.0, (step + 1) / max(settings.warmup_steps, 1))
        sets = [person, prior] if settings.prior_weight else [person]
        errors = _errors(model, sets, settings.batch_size, settings.flip, generator)
        loss = errors["img"] + settings.clip_weight * sum(error for name, error in errors.items() if name != "img")
        weights = torch.tensor([1.0, settings.prior_weight][: len(sets)], device=loss.device)
        (weights * loss).sum().backward()
        nn.utils.clip_grad_norm_(trained, settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        shown = errors["img"].tolist()
        losses.append(shown[0])
        prior_losses += shown[1:]
    return Personalised(
        backbone=model.merge_and_unload().eval().requires_grad_(False),
        identifier=identifier,
        steps=settings.train_steps,
        seconds=time.perf_counter() - clock,
        cpu_seconds=time.process_time() - cpu,
        losses=tuple(losses),
        prior_losses=tuple(prior_losses),
    )


def _linears(backbone: Backbone) -> list[str]:
    """All linears of the blocks: what the person looks like is stored in the MLPs as much as in the attention."""
    return [
        f"{block}.{name}"
        for block, module in backbone.blocks()
        for name, child in module.named_modules()
        if isinstance(child, nn.Linear)
    ]


def _errors(
    model: nn.Module, sets: Sequence[Examples], count: int, flip: float, generator: torch.Generator
) -> dict[str, Tensor]:
    """Mean squares of the noises' errors on a random batch of each set, in one pass: by part of the state, [sets]."""
    device = sets[0].mean.device
    batches, texts = [], []
    for examples in sets:
        row = torch.randint(len(examples), (count,), generator=generator)
        flipped = torch.rand(count, generator=generator) < flip
        view = flipped.long() if examples.mean.shape[1] == 2 else torch.zeros(count, dtype=torch.long)
        at = (row.to(device), view.to(device))
        batches.append(take({"mean": examples.mean, "std": examples.std, **examples.others}, at))
        texts.append(examples.text[at[0]])
    clean = join(*batches)
    mean, std = clean.pop("mean"), clean.pop("std")

    def normal(shape) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    t = torch.randint(1, NUM_TIMESTEPS + 1, (len(mean),), generator=generator).to(device)
    noise = {name: normal(value.shape) for name, value in {"img": mean, **clean}.items()}
    clean = {"img": mean + std * normal(mean.shape), **clean}
    state = {name: add_noise(value, noise[name], t) for name, value in clean.items()}
    out = model(state, t, model.conditions({"text": torch.cat(texts)}, tuple(mean.shape[-2:])))
    return {name: standard_loss(noise[name], out[name]).reshape(len(sets), count).mean(dim=1) for name in state}

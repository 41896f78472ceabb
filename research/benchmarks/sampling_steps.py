"""The ways of drawing that `sampling.py` compares, and one evaluation of the model in each.

Shapes: B pictures at a time, C h w latent, T text tokens, n tokens of a face, D width.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from training_steps import Float32Attention

from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import Bundle
from feedface.diffusion.guidance import GuidedNoise
from feedface.diffusion.sampling import initial_noise, make_scheduler
from feedface.diffusion.schedule import NUM_TIMESTEPS, timestep_of
from feedface.methods.feedface import FaceControlNet
from feedface.settings import PLAIN, PRESETS, Settings


@dataclass(frozen=True)
class Variant:
    """A way to draw."""

    title: str
    settings: Settings
    release: bool = False  # one half of guidance after the other, attention in float32, nothing kept between steps
    int8: bool = False
    compiled: bool = False
    low_memory: bool = False  # shows in memory alone, and in the time of a picture from the first file on


def _plain(scheduler: str, steps: int, **knobs) -> Settings:
    return Settings(scheduler=scheduler, steps=steps, **knobs).over(PLAIN)


# Where guidance and face are at work is a matter of quality; what they cost is how many of the evaluations lie there.
GUIDANCE_INTERVAL = PRESETS["balanced"].guidance_interval
FACE_INTERVAL = (75, 1000)
VARIANTS = {
    "release": Variant("the release's way", _plain("dpmsolver++singlestep", 40), release=True),
    "same": Variant("ours, the same solver and evaluations", _plain("dpmsolver++singlestep", 40)),
    "2m_20": Variant("2M solver, 20 evaluations", _plain("dpmsolver++", 20)),
    "2m_10": Variant("2M solver, 10 evaluations", _plain("dpmsolver++", 10)),
    "guidance_interval": Variant(
        f"2M solver, 20, guidance at t = {GUIDANCE_INTERVAL[0]:g} to {GUIDANCE_INTERVAL[1]:g}",
        _plain("dpmsolver++", 20, guidance_interval=GUIDANCE_INTERVAL),
    ),
    "face_interval": Variant(
        f"2M solver, 20, face at t = {FACE_INTERVAL[0]:g} to {FACE_INTERVAL[1]:g}",
        _plain("dpmsolver++", 20, face_interval=FACE_INTERVAL),
    ),
    "reuse": Variant("2M solver, 20, deep blocks at every 2nd", _plain("dpmsolver++", 20, reuse=2)),
    "int8": Variant("2M solver, 20, int8", _plain("dpmsolver++", 20), int8=True),
    "compiled": Variant("2M solver, 20, compiled blocks", _plain("dpmsolver++", 20), compiled=True),
    "few_step": Variant("few-step adapter", Settings(few_step=True)),
    **{name: Variant(f"preset {name}", Settings(preset=name)) for name in PRESETS},
    "low_memory": Variant("preset balanced, low memory", Settings(preset="balanced"), low_memory=True),
}


@dataclass(frozen=True)
class Work:
    """What is drawn at a time: `pictures` B of `people` (1: one person's tokens serve all) with `references` each."""

    pictures: int = 1
    references: int = 1
    people: int = 1
    size_px: int | None = None  # None: the model's own


@dataclass(frozen=True)
class Kind:
    """What one evaluation consists of; see `plan.Evaluation`."""

    release: bool = False
    guided: bool = True
    controlled: bool = True
    reused: bool = False

    def __str__(self) -> str:
        words = ["release's way"] * self.release + ["both halves" if self.guided else "conditional half"]
        words += ["with face" if self.controlled else "no face"] + ["deep blocks reused"] * self.reused
        return ", ".join(words)


# ------------------------------------------------------------------------------------------------------ evaluations


class ReleaseNoise:
    """Callable as `GuidedNoise` is. Each evaluation is two passes, one half after the other, and starts anew: faces'
    keys and values, embeddings of all tokens, all heads; attention in float32."""

    def __init__(
        self, uvit: UViT, net: FaceControlNet, text: Tensor, noise_text: Tensor, faces: Tensor, *, guidance: float,
        face_scale: float,
    ):  # fmt: skip
        self.backbone, self.net, self.text, self.noise_text, self.faces = uvit, net, text, noise_text, faces
        self.guidance, self.face_scale = guidance, face_scale

    def __call__(self, img: Tensor, clip_img: Tensor, t: float) -> tuple[Tensor, Tensor]:
        t_img = torch.full((len(img),), t, device=img.device)
        clean, data_type = torch.zeros_like(t_img), torch.ones(len(img), dtype=torch.long, device=img.device)
        half_precision = self.backbone.pos_embed.dtype != torch.float32
        with Float32Attention() if half_precision else nullcontext():
            control = self.net.bind(self.faces, self.face_scale)
            with_face = self.backbone(img, clip_img, self.text, t_img, clean, data_type, control=control)
            without = self.backbone(
                img, clip_img, self.noise_text, t_img, torch.full_like(t_img, NUM_TIMESTEPS), data_type
            )
        pairs = ((with_face.img.float(), without.img.float()), (with_face.clip_img.float(), without.clip_img.float()))
        img, clip_img = (u + self.guidance * (c - u) for c, u in pairs)
        return img, clip_img


@torch.no_grad()
def release_sample(
    bundle: Bundle, text: Tensor, faces: Tensor, seeds: Sequence[int], settings: Settings, latent_size: tuple[int, int]
) -> Tensor:
    """Latents [B,C,h,w] of `seeds` by `ReleaseNoise`: those of `diffusion.sampling.sample`, with more work."""
    uvit = bundle.backbone
    shapes = (uvit.in_chans, *latent_size), (1, uvit.clip_img_dim), (uvit.num_text_tokens, uvit.text_dim)
    img, clip_img, noise_text = (noise.to(text.device) for noise in initial_noise(seeds, *shapes))
    model = ReleaseNoise(
        uvit, bundle.method, text.expand(len(seeds), -1, -1), noise_text, faces.expand(len(seeds), -1, -1),
        guidance=settings.guidance, face_scale=settings.face_scale,
    )  # fmt: skip
    solver = make_scheduler(settings.scheduler, settings.steps)
    joint = torch.cat([img.flatten(1), clip_img.flatten(1)], dim=1)
    for t, timestep in zip(timestep_of(solver.sigmas[: settings.steps]).tolist(), solver.timesteps, strict=True):
        img, clip_img = joint.split([joint.shape[1] - uvit.clip_img_dim, uvit.clip_img_dim], dim=1)
        noise = model(img.unflatten(1, shapes[0]), clip_img.unflatten(1, shapes[1]), t)
        joint = solver.step(torch.cat([part.flatten(1) for part in noise], dim=1), timestep, joint).prev_sample
    return joint[:, : -uvit.clip_img_dim].unflatten(1, shapes[0])


class Evaluator:
    """Single evaluations of a generation, on inputs of the shapes of `text` [B,T,Dt] and `faces` [B or 1,n,D]."""

    def __init__(self, uvit: UViT, net: FaceControlNet, text: Tensor, faces: Tensor, latent_size: tuple[int, int]):
        self._networks, self._latent_size = (uvit, net), latent_size
        self._text, self._faces = text, faces
        self._img = torch.randn(len(text), uvit.in_chans, *latent_size).to(text.device)
        self._clip_img = torch.randn(len(text), 1, uvit.clip_img_dim).to(text.device)
        self._models: dict[bool, GuidedNoise | ReleaseNoise] = {}  # by whether the release's way

    @torch.no_grad()
    def prepare(self, release: bool) -> None:
        """What a generation does once before its first evaluation."""
        noise_text = torch.randn_like(self._text)
        uvit, net = self._networks
        if release:
            faces = self._faces.expand(len(self._text), -1, -1)
            self._models[True] = ReleaseNoise(uvit, net, self._text, noise_text, faces, guidance=6.0, face_scale=0.8)
        else:
            self._models[False] = GuidedNoise(
                uvit, self._text, noise_text, guidance=6.0, face_controlnet=net, face_tokens=self._faces,
                face_scale=0.8, latent_size=self._latent_size,
            )  # fmt: skip

    @torch.no_grad()
    def run(self, kind: Kind) -> None:
        """One evaluation. A reused one must follow one like it but for that."""
        model, how = self._models[kind.release], {}
        if not kind.release:
            how = {"guided": kind.guided, "controlled": kind.controlled, "reused": kind.reused}
        model(self._img, self._clip_img, 500.0, **how)

"""Single evaluations of a generation, ours and the release's, and what they cost by count.

Shapes: B pictures at a time, T text tokens.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feedface.backbones.base import Backbone, Prompt
from feedface.backbones.control import Control
from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.plan import plan_evaluations
from feedface.diffusion.sampling import initial_noise, integrate, make_scheduler
from feedface.diffusion.schedule import timestep_of
from feedface.diffusion.state import State, expand, length, take
from feedface.methods.base import Identity, Method
from feedface.settings import Settings
from research.benchmarks.counting import Float32Attention, counted
from research.benchmarks.sampling.variants import Kind, Variant, Work

TEXT_TOKENS = 77  # of a backbone that takes any number


class ReleaseModel:
    """Callable as a `GuidedModel` is, with the same result. Each evaluation is two passes, one half after the other,
    and starts anew: faces' keys and values, embeddings of all tokens, all heads; attention in float32."""

    def __init__(self, backbone: Backbone, prompt: Prompt, *, method: Method, identity: Identity, scale: float,
                 guidance: float, noise: Tensor, empty_prompt: Prompt | None = None,
                 latent_size: tuple[int, int] | None = None):  # fmt: skip
        self.backbone, self.prompt, self.latent_size = backbone, prompt, latent_size
        self.method, self.identity, self.scale = method, method.prompted(identity, prompt), scale
        self.guidance, self.noise, self.empty_prompt = guidance, noise, empty_prompt

    def __call__(self, state: State, t: float, **savings) -> State:
        backbone, batch = self.backbone, length(state)
        times = torch.full((batch,), t, device=self.noise.device)
        halves = backbone.guided_prompt(self.prompt, backbone.uncond_modes[0], self.empty_prompt, self.noise)
        with Float32Attention() if backbone.dtype != torch.float32 else nullcontext():
            control = self.method.bind(backbone, self.identity, self.scale)
            with_face = self._predict(state, times, take(halves, slice(batch)), control)
            without = self._predict(state, times, take(halves, slice(batch, None)), None)
        return {
            name: value.float() + self.guidance * (with_face[name].float() - value.float())
            for name, value in without.items()
        }

    def _predict(self, state: State, times: Tensor, prompt: Prompt, control: Control | None) -> State:
        conditions = self.backbone.conditions(prompt, self.latent_size)
        if not hasattr(self.backbone, "predict"):
            return self.backbone(state, times, conditions, control)
        # The U-ViT's `forward` leaves out what sampling has no use for.
        out = self.backbone.predict(state["img"], state["clip_img"], conditions, times, control=control)
        return {"img": out.img, "clip_img": out.clip_img}


@torch.no_grad()
def release_sample(
    bundle: Bundle,
    prompt: Prompt,
    identity: Identity,
    seeds: Sequence[int],
    settings: Settings,
    latent_size: tuple[int, int],
    empty_prompt: Prompt | None = None,
) -> State:
    """The samples of `diffusion.sampling.sample`, with more work. `prompt` and `identity`: a row a seed, or one."""
    backbone, text = bundle.backbone, prompt["text"]
    shapes = backbone.state_shapes(latent_size)
    *start, noise = (drawn.to(text.device) for drawn in initial_noise(seeds, *shapes.values(), text.shape[1:]))
    model = ReleaseModel(
        backbone, expand(prompt, len(seeds)), method=bundle.method, identity=expand(identity, len(seeds)),
        scale=settings.face_scale, guidance=settings.guidance, noise=noise,
        empty_prompt=empty_prompt, latent_size=latent_size,
    )  # fmt: skip
    solver = make_scheduler(settings.scheduler, settings.steps)
    plan = plan_evaluations(timestep_of(solver.sigmas[: settings.steps]).tolist())
    return integrate(model, dict(zip(shapes, start, strict=True)), solver, plan)


class Evaluator:
    """Single evaluations, on inputs of the shapes of `prompt` (B rows) and `identity` (B or 1)."""

    def __init__(
        self, backbone: Backbone, method: Method, prompt: Prompt, identity: Identity, latent_size: tuple[int, int]
    ):
        self._networks, self._prompt, self._identity = (backbone, method), prompt, identity
        self._latent_size = latent_size
        batch, device = length(prompt), prompt["text"].device
        shapes = backbone.state_shapes(latent_size)
        self._state = {name: torch.randn(batch, *shape).to(device) for name, shape in shapes.items()}
        self._models: dict[bool, GuidedModel | ReleaseModel] = {}  # by whether the release's way

    @torch.no_grad()
    def prepare(self, release: bool) -> None:
        """What a generation does once before its first evaluation."""
        backbone, method = self._networks
        noise = torch.randn_like(self._prompt["text"])
        self._models[release] = (ReleaseModel if release else partial(GuidedModel, pag_scale=1.0))(
            backbone, self._prompt, method=method, identity=self._identity, scale=0.8, guidance=6.0, noise=noise,
            empty_prompt={"text": noise}, latent_size=self._latent_size,
        )  # fmt: skip

    @torch.no_grad()
    def run(self, kind: Kind) -> None:
        """One evaluation. A reused one must follow one like it but for that."""
        how = {key: getattr(kind, key) for key in ("guided", "controlled", "perturbed", "reused")}
        self._models[kind.release](self._state, 500.0, **how)


@dataclass(frozen=True)
class Cost:
    """Of an evaluation: passes a picture through backbone and method (fractions: of their blocks), FLOPs."""

    backbone_passes: float
    control_passes: float
    flops: float


class Blueprint:
    """A model as its folder describes it: settings made complete, evaluations listed and counted, nothing computed."""

    def __init__(self, model: Path):
        self.bundle = load_bundle(model, "meta", torch.float32, ("backbone", "method", "vae"))

    def settings(self, variant: Variant, work: Work) -> Settings:
        """Complete. `UserError` for a size that the model cannot draw."""
        wanted, bundle = variant.settings, self.bundle
        if work.size_px is not None:
            wanted = replace(wanted, size=(work.size_px, work.size_px))
        return wanted.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, bundle.few_step)

    def latent_size(self, work: Work) -> tuple[int, int]:
        side = (work.size_px or self.bundle.image_size) // self.bundle.vae.factor
        return side, side

    def evaluations(self, variant: Variant) -> list[Kind]:
        """All of a picture, in order."""
        settings = self.settings(variant, Work())
        if settings.few_step:
            return [Kind(guided=False)] * settings.steps
        times = timestep_of(make_scheduler(settings.scheduler, settings.steps).sigmas[: settings.steps]).tolist()
        intervals = settings.guidance_interval, settings.face_interval, settings.pag_interval
        guided, perturbed = settings.guidance != 1, settings.pag_scale != 0
        return [
            Kind(variant.release, guided and now.guided, now.controlled, perturbed and now.perturbed, now.reused)
            for now in plan_evaluations(times, *intervals, settings.reuse)
        ]

    @torch.no_grad()
    def inputs(self, work: Work, device: torch.device, dtype: torch.dtype) -> tuple[Prompt, Identity]:
        """Prompts of B rows, and an identity of B or one: time depends on their shapes alone."""
        backbone, method = self.bundle.backbone, self.bundle.method
        spec = method.reference
        shape = (spec.size,) if spec.kind == "embedding" else (3, spec.size, spec.size)
        if spec.kind in ("latent", "posterior"):
            shape = (backbone.latent_channels, *[spec.size // self.bundle.vae.factor] * 2)
            shape = shape if spec.kind == "latent" else (2, *shape)
        features = method.features(torch.empty(work.references, *shape, device="meta"))
        known = method.identity({name: value[None] for name, value in features.items()})
        rows = work.pictures if work.people > 1 else 1
        text = torch.randn(work.pictures, backbone.text_tokens or TEXT_TOKENS, backbone.text_dim)
        # Ones, also where they are weights of references; latents of a clean picture are no larger.
        identity = {name: torch.ones(rows, *value.shape[1:]).to(device, dtype) for name, value in known.items()}
        return {"text": text.to(device, dtype)}, identity

    @cache  # noqa: B019 (there is one of these a run)
    def cost(self, kind: Kind, work: Work) -> Cost:
        """Counted while the modules run without weights."""
        backbone, method, counts = self.bundle.backbone, self.bundle.method, Counter()
        inputs = self.inputs(work, torch.device("meta"), torch.float32)
        evaluator = Evaluator(backbone, method, *inputs, self.latent_size(work))
        evaluator.prepare(kind.release)
        if kind.reused:
            evaluator.run(replace(kind, reused=False))
        with counted(backbone, method, counts):
            evaluator.run(kind)
        a_picture = {name: value / work.pictures for name, value in counts.items()}
        return Cost(
            backbone_passes=a_picture["blocks"],
            control_passes=a_picture.get("control", 0),
            flops=a_picture["flop"],
        )

    @cache  # noqa: B019 (as above)
    def decoder_flops(self, work: Work) -> float:
        """Of one picture."""
        latent = torch.empty(1, self.bundle.backbone.latent_channels, *self.latent_size(work), device="meta")
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.bundle.vae.decode(latent)
        return counter.get_total_flops()

    def count(self, variant: Variant, work: Work) -> dict:
        """Evaluations, passes of each sort and TFLOP of one picture."""
        kinds = self.evaluations(variant)
        costs = [self.cost(kind, work) for kind in kinds]
        return {
            "evaluations": len(costs),
            "unconditional": sum(kind.guided for kind in kinds),
            "backbone_passes": round(sum(cost.backbone_passes for cost in costs), 2),
            "control_passes": round(sum(cost.control_passes for cost in costs), 2),
            "tflop_sampling": sum(cost.flops for cost in costs) / 1e12,
            "tflop_decoder": self.decoder_flops(work) / 1e12,
        }

"""What a picture costs by count: evaluations, passes through the networks, FLOPs. Nothing is loaded or computed.

Shapes: B pictures at a time, T text tokens, n tokens of a face, D width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import torch
from sampling_models import networks_without_weights
from sampling_steps import Evaluator, Kind, Variant, Work
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from feedface.checkpoints.bundle import read_index
from feedface.checkpoints.few_step import FewStep, read_few_step
from feedface.diffusion.plan import plan_evaluations
from feedface.diffusion.sampling import make_scheduler
from feedface.diffusion.schedule import timestep_of
from feedface.settings import Settings


@dataclass(frozen=True)
class Cost:
    """Of an evaluation: passes a picture through the U-ViT and the face-controlnet (fractions: of their blocks), FLOPs.

    A multiply-add is two FLOPs; counted are matrix products and convolutions.
    """

    halves: int
    uvit_passes: float
    control_passes: float
    flops: float


class Blueprint:
    """A model as its folder describes it: settings made complete, evaluations listed and counted, nothing loaded."""

    def __init__(self, model: Path):
        self.index = read_index(model)
        self.backbone, self.net, self.vae = networks_without_weights(model)

    @cached_property
    def few_step(self) -> FewStep | None:
        """The model's adapter, where it has one."""
        folder = self.index.components.get("few_step")
        return None if folder is None else read_few_step(folder)

    def settings(self, variant: Variant, work: Work) -> Settings:
        """Complete. `UserError` for a size that the model cannot draw."""
        wanted = variant.settings
        if work.size_px is not None:
            wanted = replace(wanted, size=(work.size_px, work.size_px))
        multiple = self.vae.factor * self.backbone.patch_size
        return wanted.for_model(self.index.defaults, self.index.image_size, multiple, self.few_step)

    def latent_size(self, work: Work) -> tuple[int, int]:
        side = (work.size_px or self.index.image_size) // self.vae.factor
        return side, side

    def evaluations(self, variant: Variant) -> list[Kind]:
        """All of a picture, in order."""
        settings = self.settings(variant, Work())
        if settings.few_step:
            return [Kind(guided=False)] * settings.steps
        times = timestep_of(make_scheduler(settings.scheduler, settings.steps).sigmas[: settings.steps]).tolist()
        plan = plan_evaluations(times, settings.guidance_interval, settings.face_interval, settings.reuse)
        guided = settings.guidance != 1
        return [Kind(variant.release, guided and now.guided, now.controlled, now.reused) for now in plan]

    def inputs(self, work: Work, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Text [B,T,Dt] and face tokens [B or 1,references n,D]: time depends on their shapes alone."""
        clip = self.net.config["clip_config"]
        tokens = work.references * ((clip["image_size"] // clip["patch_size"]) ** 2 + 1)
        text = torch.randn(work.pictures, self.backbone.num_text_tokens, self.backbone.text_dim)
        faces = torch.randn(work.pictures if work.people > 1 else 1, tokens, self.backbone.embed_dim)
        return text.to(device, dtype), faces.to(device, dtype)

    @cache  # noqa: B019 (there is one of these a run)
    def cost(self, kind: Kind, work: Work) -> Cost:
        """Counted while the modules run without weights."""
        meta = torch.device("meta")
        text, faces = self.inputs(work, meta, torch.float32)
        evaluator = Evaluator(self.backbone, self.net, text, faces, self.latent_size(work))
        evaluator.prepare(kind.release)
        if kind.reused:
            evaluator.run(replace(kind, reused=False))
        blocks = [*self.backbone.in_blocks, self.backbone.mid_block, *self.backbone.out_blocks]
        rows = {"first": 0, "blocks": 0, "control": 0}
        hooks = _count_rows(rows, first=blocks[:1], blocks=blocks, control=self.net.blocks)
        # Other kernels of attention hide their products from the counter.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            evaluator.run(kind)
        for hook in hooks:
            hook.remove()
        return Cost(
            halves=rows["first"] // work.pictures,
            uvit_passes=rows["blocks"] / len(blocks) / work.pictures,
            control_passes=rows["control"] / len(self.net.blocks) / work.pictures,
            flops=counter.get_total_flops() / work.pictures,
        )

    @cache  # noqa: B019 (as above)
    def decoder_flops(self, work: Work) -> float:
        """Of one picture."""
        latent = torch.empty(1, self.backbone.in_chans, *self.latent_size(work), device="meta")
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.vae.decode(latent)
        return counter.get_total_flops()

    def count(self, variant: Variant, work: Work) -> dict:
        """Evaluations, passes of each sort and TFLOP of one picture."""
        costs = [self.cost(kind, work) for kind in self.evaluations(variant)]
        return {
            "evaluations": len(costs),
            "unconditional": sum(cost.halves - 1 for cost in costs),
            "uvit_passes": round(sum(cost.uvit_passes for cost in costs), 2),
            "control_passes": round(sum(cost.control_passes for cost in costs), 2),
            "tflop_sampling": sum(cost.flops for cost in costs) / 1e12,
            "tflop_decoder": self.decoder_flops(work) / 1e12,
        }


def _count_rows(rows: dict[str, int], **groups: Sequence[nn.Module]) -> list:
    def count(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple) -> None:
            rows[name] += len(args[0])

        return hook

    return [module.register_forward_pre_hook(count(name)) for name, modules in groups.items() for module in modules]

"""The training steps that `training.py` compares, and where their time and their arithmetic go."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from feedface.training.objective import ControlledUViT, LossParts, Objective
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from training_models import Size, build_encoders, build_trained, random_draws, random_features, random_pixels

from feedface.data.features import FrozenEncoders
from feedface.diffusion.batch import Draws


@dataclass(frozen=True)
class Variant:
    """A way to take a training step."""

    title: str
    encode: bool = False  # run all encoders on every sample, instead of reading features
    frozen_always: bool = False  # frozen prediction for samples with the standard loss too
    float32_attention: bool = False
    checkpointing: str = ""  # what is run again in the backward pass: "", "backbone", or "all", control blocks as well
    fused: bool = True  # AdamW
    compiled: bool = False  # the blocks, each by itself


VARIANTS = {
    "release": Variant(
        "the release's way", encode=True, frozen_always=True, float32_attention=True, checkpointing="backbone",
        fused=False,
    ),
    "uncached": Variant("ours, without the cache", encode=True),
    "cached": Variant("ours, with the cache"),
    "compiled": Variant("ours, with the cache, compiled", compiled=True),
}  # fmt: skip


class Float32Attention(TorchFunctionMode):
    """Attention in float32, whatever the rest is in."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            with torch.autocast(args[0].device.type, enabled=False):
                return function(*(value.float() for value in args), **(kwargs or {})).to(args[0].dtype)
        return function(*args, **(kwargs or {}))


class Checkpointed(nn.Module):
    """A block that is run again in the backward pass while `on`; `UViT.gradient_checkpointing` takes the control block
    at its site along."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.on = block, False

    def forward(self, *args: Tensor | None) -> Tensor:
        if self.on and torch.is_grad_enabled():
            return checkpoint(self.block, *args, use_reentrant=False)
        return self.block(*args)


class Phases:
    """Adds up by phase what `clock` advances by. What happens in a phase inside another counts only for the inner."""

    def __init__(self, clock: Callable[[], float]):
        self.totals: dict[str, float] = defaultdict(float)
        self._clock, self._stack, self._last = clock, [], 0.0

    def enter(self, name: str) -> None:
        self._charge()
        self._stack.append(name)

    def leave(self) -> None:
        self._charge()
        self._stack.pop()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def watch(self, trained: ControlledUViT) -> None:
        """From now on tell control blocks from the backbone, and recomputation from the backward pass."""

        def enter(control: bool) -> Callable:
            def hook(module: nn.Module, args) -> None:
                outer = self._stack[-1] if self._stack else "other"
                inner = "control blocks, forward" if control else outer
                self.enter("recomputation" if outer in ("backward", "recomputation") else inner)

            return hook

        backbone = [(wrapped.block, False) for wrapped in _wrapped_blocks(trained)]
        for block, control in [*backbone, *((block, True) for block in trained.method.blocks)]:
            block.register_forward_pre_hook(enter(control))
            # Checkpointing leaves a block by an exception once it has what it needs.
            block.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def _charge(self) -> None:
        now = self._clock()
        if self._stack:
            self.totals[self._stack[-1]] += now - self._last
        self._last = now


def _wrapped_blocks(trained: ControlledUViT) -> list[Checkpointed]:
    return [module for module in trained.backbone.modules() if isinstance(module, Checkpointed)]


class Bench:
    """Models and data of one size, and the steps on them. Variants share the weights; optimizers are made on demand.

    `encoders` may be left out where no variant encodes. On the device "meta" nothing is computed, and there are no
    optimizers.
    """

    def __init__(self, size: Size, batch_size: int, device: torch.device, precision: str, encoders: bool):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.size, self.batch_size, self.device, self.precision = size, batch_size, device, precision
        self.encoders: FrozenEncoders | None = build_encoders(size, device, dtype) if encoders else None
        self.trained = build_trained(size, device, dtype)
        uvit = self.trained.backbone
        uvit.in_blocks, uvit.out_blocks = (
            nn.ModuleList(map(Checkpointed, blocks)) for blocks in (uvit.in_blocks, uvit.out_blocks)
        )
        uvit.mid_block = Checkpointed(uvit.mid_block)
        self.parameters = list(self.trained.method.parameters())
        self.pixels = random_pixels(size, batch_size) if encoders else None
        self.features = random_features(size, batch_size)
        dropped = torch.zeros(self.features.faces.shape[2:], device=device)
        self.objective = Objective("regularization", dropped, self.features.text[:1].to(device))
        self.phases = Phases(lambda: 0.0)  # told apart only on demand: on a GPU the clock waits
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}
        self._compiled = False

    def step(self, variant: Variant, number: int) -> None:
        """Take step `number` of the run in the way of `variant`: which tenth sample is standard goes by the number."""
        self._compile(variant)
        draws = random_draws(self.size, self.batch_size, number * self.batch_size)
        self.trained.backbone.gradient_checkpointing = variant.checkpointing == "all"
        for block in _wrapped_blocks(self.trained):
            block.on = variant.checkpointing == "backbone"
        if variant.frozen_always:
            draws.standard = torch.zeros_like(draws.standard)
        with ExitStack() as stack:
            if variant.float32_attention and self.precision != "no":
                stack.enter_context(Float32Attention())
            if self._compiled:
                stance = "default" if variant.compiled else "force_eager"
                stack.enter_context(torch.compiler.set_stance(stance))
            self._forward_backward(variant, draws)
        if self.device.type == "meta":
            return
        with self.phases("clip and AdamW"):
            nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self._optimizer(variant.fused).step()
        self.zero_grad()

    def zero_grad(self) -> None:
        for parameter in self.trained.parameters():
            parameter.grad = None

    def clock(self) -> float:
        """Seconds, once all that was asked for is done."""
        self.synchronise()
        return time.perf_counter()

    def synchronise(self) -> None:
        """Wait until all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _forward_backward(self, variant: Variant, draws: Draws) -> LossParts:
        features = self.features
        if variant.encode:
            with self.phases("encoders"):
                features = self.encoders(self.pixels)
        with self.phases("other"):
            parts = self.objective(self._model, draws, features)
        with self.phases("backward"):
            parts.loss.backward()
        return parts

    def _model(self, *args: Tensor | None) -> Tensor:
        with self.phases("adapted pass, backbone" if args[-1] is not None else "frozen pass"):
            return self.trained(*args)

    def _optimizer(self, fused: bool) -> torch.optim.Optimizer:
        if fused not in self._optimizers:
            self._optimizers[fused] = torch.optim.AdamW(
                self.parameters, lr=2e-5, betas=(0.9, 0.9), weight_decay=0.03, fused=fused or None
            )
        return self._optimizers[fused]

    def _compile(self, variant: Variant) -> None:
        if not variant.compiled or self._compiled:
            return
        self.trained.compile_blocks()
        self._compiled = True


def count_flops(size: Size, variant: Variant) -> dict[str, float]:
    """FLOPs of a sample (a multiply-add is two) by phase: matrix products and convolutions, one standard in ten."""
    bench = Bench(size, batch_size=10, device=torch.device("meta"), precision="no", encoders=variant.encode)
    with FlopCounterMode(display=False) as counter:
        bench.phases = Phases(counter.get_total_flops)
        bench.phases.watch(bench.trained)
        bench.step(variant, 0)
    return {name: total / bench.batch_size for name, total in bench.phases.totals.items() if total}

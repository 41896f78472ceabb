"""The training steps that are compared, on random weights and data, and where their time and their arithmetic go.

Shapes: B batch, C h w latent, n tokens of a face, T text tokens.
"""

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from ml_collections import ConfigDict
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, CLIPVisionModel

from feedface.data.dataset import Pixels
from feedface.data.draws import DrawSettings
from feedface.data.features import FrozenEncoders
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.state import State
from feedface.inference.acceleration import compile_blocks
from feedface.methods.base import Method
from feedface.training.controlled import ControlledBackbone
from feedface.training.frozen_predictions import FrozenPredictions
from research.benchmarks.counting import Float32Attention
from research.benchmarks.models import (
    META,
    TEXT_DIM,
    Size,
    build_image_encoder,
    build_networks,
    build_text_encoder,
    build_vae,
)

FACES = 1  # references of a sample
STANDARD_EVERY = 10  # so many samples, the last is drawn as standard
LOSS = ConfigDict({"loss": {"kind": "regularization", "face_dropout_kind": "zero_feature", "min_snr": 0.0}})


@dataclass(frozen=True)
class Variant:
    """A way to take a training step."""

    title: str
    encode: bool = False  # run all encoders on every sample, instead of reading features
    frozen_always: bool = False  # frozen prediction for samples with the standard loss too
    kept: bool = False  # frozen predictions are read, as they are where a picture has only a few draws
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
    "kept": Variant("ours, with the cache, frozen predictions kept", kept=True),
    "compiled": Variant("ours, with the cache, compiled", compiled=True),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- models and data


def build_trained(size: Size, device: torch.device, dtype: torch.dtype) -> ControlledBackbone:
    """The frozen backbone in `dtype` and the method in float32, as training holds them."""
    with torch.device(device):
        backbone, method = build_networks(size, with_encoder=False)
    return ControlledBackbone(backbone.to(dtype).requires_grad_(False), method, {"data_type": 0})


def build_encoders(size: Size, method: Method, device: torch.device, dtype: torch.dtype) -> FrozenEncoders:
    """VAE, CLIP image, CLIP text and face encoder in the formats that training holds them in."""
    with torch.device(device):
        vae, text, image = build_vae(size), build_text_encoder(size), build_image_encoder(size)
        face = CLIPVisionModel(CLIPVisionConfig(**size.vision)).eval().requires_grad_(False)
    # As `EncoderSources.load` does: the VAE stays in float32 beside bfloat16.
    vae = vae.to(torch.float32 if dtype == torch.bfloat16 else dtype)
    return FrozenEncoders(vae, text.to(dtype), method, face.to(dtype), {"clip_img": image.to(dtype)})


def random_pixels(size: Size, batch_size: int) -> Pixels:
    """What reading pictures gives, on the CPU."""
    return Pixels(
        image=torch.rand(batch_size, 3, size.image_px, size.image_px) * 2 - 1,
        references=torch.rand(batch_size, FACES, 3, size.face_px, size.face_px) * 2 - 1,
        mask=_masks(size, batch_size),
        captions=["a photo of a person"] * batch_size,
    )


def random_features(size: Size, batch_size: int) -> Encoded:
    """What the cache gives, on the CPU."""
    latent = (batch_size, 4, size.latent, size.latent)
    tokens = (size.face_px // 32) ** 2 + 1
    return Encoded(
        mean=torch.randn(latent),
        std=torch.rand(latent) / 10,
        others={"clip_img": torch.randn(batch_size, 1, 512)},
        text=torch.randn(batch_size, size.text_tokens, TEXT_DIM),
        features={"faces": torch.randn(batch_size, FACES, tokens, size.clip_width)},
        mask=_masks(size, batch_size),
    )


def random_draws(size: Size, batch_size: int, first: int = 0) -> Draws:
    """Draws of samples number `first` and on."""
    numbers = torch.arange(first, first + batch_size)
    latent = (batch_size, 4, size.latent, size.latent)
    off = torch.zeros(batch_size, dtype=torch.bool)
    return Draws(
        rows=numbers,
        flip=off,
        hair=off,
        standard=(numbers + 1) % STANDARD_EVERY == 0,
        drop_face=off,
        drop_text=off,
        t=(numbers * 389) % 1000 + 1,
        vae_noise=torch.randn(latent),
        noise={"img": torch.randn(latent), "clip_img": torch.randn(batch_size, 1, 512)},
        shown=torch.ones(batch_size, dtype=torch.long),
        fixed=torch.zeros(batch_size, dtype=torch.long),
    )


def _masks(size: Size, batch_size: int) -> Tensor:
    return (torch.rand(batch_size, 1, size.latent, size.latent) < 0.3).float()


# -------------------------------------------------------------------------------------------------------------- steps


class Checkpointed(nn.Module):
    """A block that is run again in the backward pass while `on`; `Backbone.gradient_checkpointing` takes the control at
    its site along."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.on = block, False

    def forward(self, *args) -> Tensor:
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

    def watch(self, block: nn.Module, name: str | None = None) -> None:
        """From now on tell a block's passes (as `name`, else as what it is in), and recomputation, from the rest."""

        def enter(module: nn.Module, args) -> None:
            outer = self._stack[-1] if self._stack else "other"
            self.enter("recomputation" if outer in ("backward", "recomputation") else name or outer)

        block.register_forward_pre_hook(enter)
        # Checkpointing leaves a block by an exception once it has what it needs.
        block.register_forward_hook(lambda *_: self.leave(), always_call=True)

    def _charge(self) -> None:
        now = self._clock()
        if self._stack:
            self.totals[self._stack[-1]] += now - self._last
        self._last = now


class Bench:
    """Models and data of one size, and the steps on them. Variants share the weights; optimizers are made on demand.

    `encoders` may be left out where no variant encodes. On the device "meta" nothing is computed, and there are no
    optimizers.
    """

    def __init__(self, size: Size, batch_size: int, device: torch.device, precision: str, encoders: bool):
        torch.manual_seed(0)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.size, self.batch_size, self.device, self.precision = size, batch_size, device, precision
        self.trained = build_trained(size, device, dtype)
        method = self.trained.method
        self.encoders = build_encoders(size, method, device, dtype) if encoders else None
        for name, block in list(self.trained.backbone.blocks()):
            self.trained.backbone.set_submodule(name, Checkpointed(block))
        self.blocks = [block for _, block in self.trained.backbone.blocks()]
        self.parameters = list(self.trained.trained().values())
        self.pixels = random_pixels(size, batch_size) if encoders else None
        self.features = random_features(size, batch_size)
        zeros = {name: torch.zeros_like(value[0, 0]).to(device) for name, value in self.features.features.items()}
        self.objective = method.objective(LOSS, zeros, self.features.text[:1].to(device))
        self.phases = Phases(lambda: 0.0)  # told apart only on demand: on a GPU the clock waits
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}
        self._compiled = False

    def watch(self, clock: Callable[[], float]) -> dict[str, float]:
        """From now on add up what `clock` advances by; returns the totals by phase."""
        self.phases = Phases(clock)
        for block in self.blocks:
            self.phases.watch(block.block)
        for block in self.trained.method.step_blocks():
            self.phases.watch(block, "control blocks, forward")
        return self.phases.totals

    def step(self, variant: Variant, number: int) -> None:
        """Take step `number` of the run in the way of `variant`: which tenth sample is standard goes by the number."""
        if variant.compiled and not self._compiled:
            compile_blocks(self.trained)
            self._compiled = True
        draws = random_draws(self.size, self.batch_size, number * self.batch_size)
        if variant.kept:
            draws = replace(self.kept_draws, standard=draws.standard)
        if variant.frozen_always:
            draws.standard = torch.zeros_like(draws.standard)
        self.trained.backbone.gradient_checkpointing = variant.checkpointing == "all"
        for block in self.blocks:
            block.on = variant.checkpointing == "backbone"
        with ExitStack() as stack:
            stack.callback(self.trained.zero_grad)  # also where the step did not fit into memory
            if variant.float32_attention and self.precision != "no":
                stack.enter_context(Float32Attention())
            if self._compiled:
                stack.enter_context(torch.compiler.set_stance("default" if variant.compiled else "force_eager"))
            self._forward_backward(variant, draws)
            if self.device != META:
                with self.phases("clip and AdamW"):
                    nn.utils.clip_grad_norm_(self.parameters, 1.0)
                    self._optimizer(variant.fused).step()

    def _forward_backward(self, variant: Variant, draws: Draws) -> None:
        batch = self.features
        if variant.encode:
            with self.phases("encoders"):
                batch = self.encoders(self.pixels)
        if variant.kept:
            with self.phases("frozen predictions, read"):
                batch = replace(batch, frozen=self._kept(draws))
        with self.phases("other"):
            loss = self.objective(self._model, draws, batch).loss
        with self.phases("backward"):
            loss.backward()

    @cached_property
    def kept_draws(self) -> Draws:
        """Of a step whose predictions are kept: always the same, without a standard one."""
        draws = random_draws(self.size, self.batch_size)
        return replace(draws, standard=torch.zeros_like(draws.standard))

    @cached_property
    def _store(self) -> FrozenPredictions:
        """Has them all. Read from a file, as in training."""
        self._folder = tempfile.TemporaryDirectory()
        shapes = {"img": tuple(self.features.mean.shape[1:])}
        settings = DrawSettings(0, shapes, draws_per_picture=1)
        empty_text = self.objective.empty_text
        store = FrozenPredictions(Path(self._folder.name), settings, self.batch_size, self.trained, empty_text)
        store(self.kept_draws, self.features)
        return store

    def _kept(self, draws: Draws) -> Tensor:
        if self.device == META:
            return torch.zeros_like(self.features.mean, dtype=torch.float16)
        return self._store(draws, self.features)

    def _model(self, state: State, t: Tensor, prompt: dict, features: dict | None = None) -> State:
        with self.phases("frozen pass" if features is None else "adapted pass, backbone"):
            return self.trained(state, t, prompt, features)

    def _optimizer(self, fused: bool) -> torch.optim.Optimizer:
        if fused not in self._optimizers:
            self._optimizers[fused] = torch.optim.AdamW(
                self.parameters, lr=2e-5, betas=(0.9, 0.9), weight_decay=0.03, fused=fused or None
            )
        return self._optimizers[fused]


def count_flops(size: Size, variant: Variant) -> dict[str, float]:
    """FLOPs of a sample (a multiply-add is two) by phase: matrix products and convolutions, one standard in ten."""
    bench = Bench(size, batch_size=STANDARD_EVERY, device=META, precision="no", encoders=variant.encode)
    with FlopCounterMode(display=False) as counter:
        totals = bench.watch(counter.get_total_flops)
        bench.step(variant, 0)
    return {name: total / bench.batch_size for name, total in totals.items() if total}

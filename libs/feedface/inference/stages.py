"""Draw many batches by stages: all texts, all people, all latents, then all pictures.

With little memory each part of the model is so read once, not once a batch. What waits between stages is on the CPU and
small: for a picture of 512 px its latent (64 KiB) and its prompt (a quarter of a megabyte), for each person their
identity.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from feedface.common.errors import UserError
from feedface.diffusion.state import join
from feedface.inference.batching import (
    Conditions,
    acting,
    decode,
    draw_latents,
    encode_texts,
    in_halves,
    init_image,
    read_prompts,
)

if TYPE_CHECKING:
    from feedface.backbones.base import Prompt
    from feedface.checkpoints.bundle import Bundle
    from feedface.diffusion.init_image import InitImage
    from feedface.inference.start import Start
    from feedface.methods.base import Identity
    from feedface.settings import Settings

CPU = torch.device("cpu")
# So many pictures wait for each other at most. Reading the parts once more then is nothing beside drawing them.
STAGE_PICTURES = 256
# What a method made of people for their prompts (FlashFace: 40 MB a reference) waits up to so much.
PROMPTED_BYTES = 1 << 30


class Request(NamedTuple):
    """One picture that is wanted.

    `identity` is of `FeedFacePipeline.identity`, None for nobody in particular; or a function that gives it when the
    picture's turn comes, perhaps several times. `start`: a picture to begin with.
    """

    prompt: str
    seed: int
    identity: Identity | Callable[[], Identity | None] | None = None
    start: Start | None = None


@dataclass(eq=False)
class Batch:
    """Pictures that are drawn together: their identities have one size, their starts one strength.

    Attributes:
        settings: complete.
        items: the caller's own, one for each request.
        latents: [B,C,h,w] where they were drawn before.
        wanted: asked before each stage: whether anybody still waits for it.
    """

    requests: Sequence[Request]
    settings: Settings
    items: Sequence[Any] = ()
    latents: Tensor | None = None
    wanted: Callable[[], bool] = field(default=lambda: True)

    @property
    def prompts(self) -> list[str]:
        return [request.prompt for request in self.requests]

    @property
    def seeds(self) -> list[int]:
        return [request.seed for request in self.requests]

    @property
    def starts(self) -> list[Start] | None:
        return [request.start for request in self.requests if request.start is not None] or None

    def identity(self) -> Identity | None:
        """Who is shown, a row for each request."""
        people = [request.identity() if callable(request.identity) else request.identity for request in self.requests]
        return None if people[0] is None else join(*people)

    def finished(self, pixels: np.ndarray) -> list[np.ndarray]:
        """Pictures uint8 [H,W,3] out of what was drawn [B,H,W,3]."""
        if self.starts is None:
            return list(pixels)
        return [start.finished(drawn) for start, drawn in zip(self.starts, pixels, strict=True)]


Outcome = tuple[Batch, list[np.ndarray] | UserError]


@dataclass(eq=False)
class _Work:
    """A batch on its way through the stages."""

    batch: Batch
    latents: Tensor | None
    conditions: Conditions | None = None
    init: InitImage | None = None
    pictures: list[np.ndarray] | None = None
    failed: bool = False


def draw_by_stages(
    bundle: Bundle,
    batches: Iterable[Batch],
    device: torch.device,
    on_step: Callable[[int], object] | None = None,
    on_latents: Callable[[Batch, Tensor], object] | None = None,
) -> Iterator[Outcome]:
    """(batch, its pictures uint8 [H,W,3]), in order; or (batch, why it cannot be drawn), as soon as that shows.

    Threads that share the bundle take turns, a stage of a batch each.

    Args:
        on_step: called after each evaluation of the model with the number of pictures in it.
        on_latents: called with each batch's latents [B,C,h,w], on the CPU, as soon as they are drawn.
    """
    waiting: list[Batch] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(one.requests) for one in waiting) >= STAGE_PICTURES:
            yield from _Stages(bundle, waiting, device, on_step, on_latents).run()
            waiting = []
    yield from _Stages(bundle, waiting, device, on_step, on_latents).run()


class _Stages:
    """Some batches together. Each stage needs one group of the model's parts, see `low_memory.GROUPS`."""

    def __init__(self, bundle: Bundle, batches: Sequence[Batch], device: torch.device, on_step, on_latents):
        self._bundle, self._device, self._on_step, self._on_latents = bundle, device, on_step, on_latents
        self._works = [_Work(batch, batch.latents) for batch in batches]
        self._texts: dict[str, Prompt] = {}
        method = bundle.method_class
        self._tells, self._reads = (method and method.changes_prompt), (method and method.reads_prompt)

    def run(self) -> Iterator[Outcome]:
        new = [work for work in self._works if work.latents is None]
        # People are last, as their method's weights are then there for the latents; but before texts that tell of them.
        stages = [self._begin, self._meet, self._encode] if self._tells else [self._encode, self._begin, self._meet]
        for stage in stages:
            yield from self._each(new, stage)
        while new:
            group, waiting = [], 0
            while new and waiting < PROMPTED_BYTES:
                group.append(new.pop(0))
                if self._reads:
                    yield from self._each(group[-1:], self._read)
                    waiting += _bytes(group[-1].conditions)
            yield from self._each(group, self._draw)
        for work in self._works:
            yield from self._each([work], self._decode)
            if work.pictures is not None:
                yield work.batch, work.pictures
                work.pictures = None

    def _each(self, works: Sequence[_Work], stage: Callable[[_Work], None]) -> Iterator[Outcome]:
        """Have `stage` done to all; says which failed."""
        for work in works:
            if work.failed or not work.batch.wanted():
                continue
            try:
                with self._bundle.lock, torch.inference_mode():
                    stage(work)
            except UserError as error:
                work.failed = True
                yield work.batch, error

    def _begin(self, work: _Work) -> None:
        if work.batch.starts is not None:
            work.init = init_image(self._bundle, work.batch.starts, CPU)

    def _meet(self, work: _Work) -> None:
        work.batch.identity()  # whose requests keep it

    def _identity(self, work: _Work) -> Identity | None:
        return acting(self._bundle, work.batch.identity(), work.batch.settings, self._device)

    def _encode(self, work: _Work) -> None:
        batch, identity = work.batch, self._identity(work) if self._tells else None
        encoded = encode_texts(self._bundle, batch.prompts, identity, batch.settings, self._device, self._texts)
        work.conditions = replace(encoded, identity=None).to(CPU)

    def _read(self, work: _Work) -> None:
        conditions = replace(work.conditions, identity=self._identity(work)).to(self._device)
        work.conditions = read_prompts(self._bundle, conditions).to(CPU)

    def _draw(self, work: _Work) -> None:
        batch = work.batch
        conditions = work.conditions if self._reads else replace(work.conditions, identity=self._identity(work))

        def draw(rows: slice) -> Tensor:
            some, init = conditions.rows(rows).to(self._device), work.init and work.init.rows(rows)
            return draw_latents(
                self._bundle, some, batch.seeds[rows], batch.settings, self._device, self._on_step, init
            ).to(CPU)

        work.latents = torch.cat(in_halves(draw, len(batch.requests), batch.settings, self._device))
        work.conditions = work.init = None
        if self._on_latents is not None:
            self._on_latents(batch, work.latents)

    def _decode(self, work: _Work) -> None:
        def draw(rows: slice) -> np.ndarray:
            return decode(self._bundle, work.latents[rows])

        pixels = in_halves(draw, len(work.batch.requests), work.batch.settings, self._device)
        work.pictures, work.latents = work.batch.finished(np.concatenate(pixels)), None


def _bytes(conditions: Conditions | None) -> int:
    identity = (conditions and conditions.identity) or {}
    return sum(value.nbytes for value in identity.values())

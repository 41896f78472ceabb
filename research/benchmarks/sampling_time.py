"""How long pictures take: drawn whole, or composed of measured parts where a whole one would take too long.

Variants take turns, so that other load on the machine hits them alike. Shapes: B pictures at a time.
"""

import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from sampling_cost import Blueprint
from sampling_steps import Evaluator, Kind, Variant, Work, release_sample
from torch import Tensor

from feedface.common.errors import UserError
from feedface.inference.batching import decode
from feedface.pipeline import FeedFacePipeline
from feedface.settings import Settings

PROMPT = "a photo of a smiling man in a green hoodie on a beach"
Seconds = tuple[float, float]  # passed on the clock, and used by the CPU


class Bench:
    """A model as users load it, once for each way of loading that the variants need."""

    def __init__(self, model: Path, device: torch.device, dtype: str):
        self.model, self.device, self.dtype = model, device, dtype
        self.blueprint = Blueprint(model)
        self._pipes: dict[tuple, FeedFacePipeline] = {}

    def pipe(self, variant: Variant) -> FeedFacePipeline:
        """The pipeline that `variant` draws with."""
        key = (variant.int8, variant.compiled, variant.low_memory)
        if key not in self._pipes:
            self._pipes[key] = FeedFacePipeline.from_pretrained(
                self.model,
                device=str(self.device),
                dtype=self.dtype,
                low_memory=variant.low_memory,
                compile=variant.compiled,
                int8=variant.int8,
            )
        return self._pipes[key]

    def clock(self) -> Seconds:
        """Once all that was asked for is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def faces(self, work: Work) -> Tensor:
        """Tokens of each of B pictures' people [B,n,D]; of one person they are the same."""
        _, faces = self.blueprint.inputs(work, self.device, torch.float32)
        return faces.expand(work.pictures, -1, -1)

    @torch.inference_mode()
    def draw(self, variant: Variant, work: Work, seed: int = 0) -> None:
        """`work.pictures` pictures from prompt and face tokens to 8-bit pixels."""
        pipe, settings = self.pipe(variant), self.blueprint.settings(variant, work)
        faces, seeds = self.faces(work), [seed + number for number in range(work.pictures)]
        if variant.release:
            text, size = pipe.bundle.text_encoder.encode([PROMPT]), self.blueprint.latent_size(work)
            decode(pipe.bundle, release_sample(pipe.bundle, text, faces, seeds, settings, size))
        else:
            requests = [(PROMPT, seed, tokens[None]) for seed, tokens in zip(seeds, faces, strict=True)]
            for _ in pipe.draw(requests, settings, batch_size=work.pictures):
                pass


def since(begun: Seconds, now: Seconds, pictures: int = 1) -> Seconds:
    return (now[0] - begun[0]) / pictures, (now[1] - begun[1]) / pictures


def log(name: str, seconds: Seconds) -> None:
    print(f"{name}: {seconds[0]:.3f} s, {seconds[1]:.3f} s of CPU", file=sys.stderr, flush=True)


def measure_whole(
    bench: Bench, variants: dict[str, Variant], work: Work, rounds: int, warmup: int = 1
) -> dict[str, dict]:
    """By name, "seconds" and "cpu_seconds" a picture of each round: drawn whole."""
    found: dict[str, dict] = {name: {"seconds": [], "cpu_seconds": []} for name in variants}
    left = dict(variants)
    for number in range(-warmup, rounds):
        for name, variant in list(left.items()):
            begun = bench.clock()
            try:
                bench.draw(variant, work, seed=max(0, number) * work.pictures)
            except (torch.OutOfMemoryError, UserError) as error:
                if isinstance(error, UserError) and "out of memory" not in str(error):
                    raise
                found[name] = {"out_of_memory": True}
                del left[name]
                continue
            seconds = since(begun, bench.clock(), work.pictures)
            log(f"{'warm-up' if number < 0 else f'round {number}'}, {name}, a picture", seconds)
            if number >= 0:
                found[name]["seconds"].append(seconds[0])
                found[name]["cpu_seconds"].append(seconds[1])
    return found


def measure_parts(
    bench: Bench, variants: dict[str, Variant], work: Work, rounds: int, warmup: int = 0
) -> dict[str, dict]:
    """As `measure_whole`, composed: in each round every kind of evaluation that some variant needs is run once, and so
    are encoding and decoding. A picture takes the sum over its evaluations; the solver's arithmetic is left out."""
    plans = {name: Counter(bench.blueprint.evaluations(variant)) for name, variant in variants.items()}
    needed: dict[Variant, set[Kind]] = defaultdict(set)
    for name, variant in variants.items():
        needed[_same_cost(variant)].update(plans[name])
    times: dict[Variant, dict[Kind | str, list[Seconds]]] = {loaded: defaultdict(list) for loaded in needed}
    for number in range(-warmup, rounds):
        for loaded, kinds in needed.items():
            for part, seconds in _parts_once(bench, loaded, kinds, work):
                log(f"{'warm-up' if number < 0 else f'round {number}'}, {part}, a picture", seconds)
                if number >= 0:
                    times[loaded][part].append(seconds)
    return {name: _compose(plan, times[_same_cost(variants[name])]) for name, plan in plans.items()}


def _same_cost(variant: Variant) -> Variant:
    """What has to be loaded to time `variant`: a few-step adapter's weights take as long as the others."""
    return Variant("parts", Settings(few_step=False), int8=variant.int8, compiled=variant.compiled)


def _parts_once(bench: Bench, loaded: Variant, kinds: set[Kind], work: Work) -> Iterator[tuple[Kind | str, Seconds]]:
    pipe = bench.pipe(loaded)
    bundle, blueprint = pipe.bundle, bench.blueprint

    def timed(action: Callable, *args: Any) -> Seconds:
        begun = bench.clock()
        with torch.inference_mode():
            action(*args)
        return since(begun, bench.clock(), work.pictures)

    yield "text", timed(bundle.text_encoder.encode, [PROMPT] * work.pictures)
    text, faces = blueprint.inputs(work, bench.device, pipe.dtype)
    evaluator = Evaluator(bundle.backbone, bundle.method, text, faces, blueprint.latent_size(work))
    for release in {kind.release for kind in kinds}:
        seconds = timed(evaluator.prepare, release)
        if not release:
            yield "preparation", seconds
    # A kind whose deep blocks are reused comes right after the same kind with all blocks.
    for kind in sorted(kinds, key=lambda kind: (kind.release, kind.guided, kind.controlled, kind.reused)):
        yield kind, timed(evaluator.run, kind)
    latents = torch.randn(work.pictures, bundle.backbone.in_chans, *blueprint.latent_size(work)).to(bench.device)
    yield "decoder", timed(decode, bundle, latents)


def _compose(plan: Counter[Kind], times: dict[Kind | str, list[Seconds]]) -> dict:
    counts: dict[Kind | str, int] = {"text": 1, **plan, "decoder": 1}
    if not next(iter(plan)).release:
        counts["preparation"] = 1
    rounds = range(len(times["text"]))
    wall, cpu = (
        [sum(count * times[part][number][clock] for part, count in counts.items()) for number in rounds]
        for clock in (0, 1)
    )
    parts = {
        str(part): {"count": count, "seconds": statistics.median(seconds for seconds, _ in times[part])}
        for part, count in counts.items()
    }
    return {"seconds": wall, "cpu_seconds": cpu, "parts": parts}

"""How long pictures take: drawn whole, or composed of measured parts where a whole one would take too long.

Shapes: B pictures at a time.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from feedface.diffusion.state import expand, take
from feedface.inference.batching import decode
from feedface.methods.base import Identity
from feedface.pipeline import FeedFacePipeline, Request
from feedface.settings import EVERYWHERE, WITHOUT_PROMPT, Settings
from research.benchmarks.measuring import median, peak_gib, time_in_turns
from research.benchmarks.sampling.evaluations import Blueprint, Evaluator, release_sample
from research.benchmarks.sampling.variants import Kind, Variant, Work

PROMPT = "a photo of a smiling man in a green hoodie on a beach"


class Bench:
    """A model as users load it, once for each way of loading that the variants need."""

    def __init__(self, model: Path, device: torch.device, dtype: str):
        self.model, self.device, self.dtype = model, device, dtype
        self.blueprint = Blueprint(model)
        self._pipes: dict[tuple, FeedFacePipeline] = {}

    def pipe(self, variant: Variant) -> FeedFacePipeline:
        """The pipeline that `variant` draws with."""
        how = {"int8": variant.int8, "compile": variant.compiled, "low_memory": variant.low_memory}
        how |= {"cuda_graphs": variant.cuda_graphs}
        key = tuple(how.values())
        if key not in self._pipes:
            self._pipes[key] = FeedFacePipeline.from_pretrained(
                self.model, device=str(self.device), dtype=self.dtype, **how
            )
        return self._pipes[key]

    def identity(self, work: Work) -> Identity:
        """Of each of B pictures' people; of one person the rows are the same."""
        _, identity = self.blueprint.inputs(work, self.device, torch.float32)
        return expand(identity, work.pictures)

    @torch.inference_mode()
    def draw(self, variant: Variant, work: Work, seed: int = 0) -> None:
        """`work.pictures` pictures from prompt and identity to 8-bit pixels."""
        pipe, settings = self.pipe(variant), self.blueprint.settings(variant, work)
        identity, seeds = self.identity(work), range(seed, seed + work.pictures)
        if variant.release:
            bundle, size = pipe.bundle, self.blueprint.latent_size(work)
            prompt = bundle.method.prompt(bundle.text_encoder, [PROMPT])
            empty = None if settings.uncond in WITHOUT_PROMPT else {"text": bundle.text_encoder.encode([""])}
            decode(bundle, release_sample(bundle, prompt, identity, seeds, settings, size, empty)["img"])
        else:
            rows = (take(identity, slice(row, row + 1)) for row in range(work.pictures))
            requests = [Request(PROMPT, seed, row) for seed, row in zip(seeds, rows, strict=True)]
            for _ in pipe.draw(requests, settings, batch_size=work.pictures):
                pass

    def parts(self, loaded: Variant, kinds: set[Kind], work: Work) -> Iterator[tuple[str, Callable[[], object]]]:
        """What pictures consist of: text, preparation, every kind of evaluation, decoder. To be run in this order."""
        pipe, blueprint = self.pipe(loaded), self.blueprint
        bundle = pipe.bundle
        yield "text", lambda: bundle.text_encoder.encode([PROMPT] * work.pictures)
        inputs = blueprint.inputs(work, self.device, pipe.dtype)
        evaluator = Evaluator(bundle.backbone, bundle.method, *inputs, blueprint.latent_size(work))
        if any(kind.release for kind in kinds):
            evaluator.prepare(release=True)
        if not all(kind.release for kind in kinds):
            yield "preparation", lambda: evaluator.prepare(release=False)
        for kind in sorted(kinds):
            yield str(kind), lambda kind=kind: evaluator.run(kind)
        shape = (work.pictures, bundle.backbone.latent_channels, *blueprint.latent_size(work))
        latents = torch.randn(shape).to(self.device)
        yield "decoder", lambda: decode(bundle, latents)


def measure_whole(
    bench: Bench, variants: dict[str, Variant], work: Work, rounds: int, warmup: int = 1
) -> dict[str, dict]:
    """By name, a row of what a picture takes: drawn whole."""

    def drawing(variant: Variant) -> Callable[[int], None]:
        return lambda number: bench.draw(variant, work, seed=max(0, number) * work.pictures)

    actions = {name: drawing(variant) for name, variant in variants.items()}
    return time_in_turns(actions, bench.device, rounds, warmup, work.pictures)


def measure_parts(
    bench: Bench, variants: dict[str, Variant], work: Work, rounds: int, warmup: int = 0
) -> dict[str, dict]:
    """As `measure_whole`, composed: in each round every kind of evaluation that some variant needs is run once, and so
    are encoding and decoding. A picture takes the sum over its evaluations; the solver's arithmetic is left out."""
    plans = {name: Counter(bench.blueprint.evaluations(variant)) for name, variant in variants.items()}
    needed: dict[Variant, set[Kind]] = {}
    for name, variant in variants.items():
        needed.setdefault(_same_cost(variant), set()).update(plans[name])
    actions = {
        f"{loaded.title}{part}": torch.inference_mode()(lambda number, action=action: action())
        for loaded, kinds in needed.items()
        for part, action in bench.parts(loaded, kinds, work)
    }
    rows = time_in_turns(actions, bench.device, rounds, warmup, work.pictures)
    return {name: _composed(plan, _same_cost(variants[name]).title, rows) for name, plan in plans.items()}


def _same_cost(variant: Variant) -> Variant:
    """What has to be loaded to time `variant`: a few-step adapter's weights take as long as the others."""
    title = "int8, " * variant.int8 + "compiled, " * variant.compiled
    return Variant(title, Settings(few_step=False), int8=variant.int8, compiled=variant.compiled)


def _composed(plan: Counter[Kind], loaded: str, rows: dict[str, dict]) -> dict:
    counts = {"text": 1, **{str(kind): count for kind, count in plan.items()}, "decoder": 1}
    if not next(iter(plan)).release:
        counts["preparation"] = 1
    measured = {part: rows[loaded + part] for part in counts}
    if any("out_of_memory" in row for row in measured.values()):
        return {"out_of_memory": True}
    found: dict = {
        key: [sum(counts[part] * value for part, value in zip(counts, values, strict=True)) for values in rounds]
        for key in ("seconds", "cpu_seconds")
        for rounds in [zip(*(row[key] for row in measured.values()), strict=True)]
    }
    found["parts"] = {part: {"count": counts[part], "seconds": median(row)} for part, row in measured.items()}
    return found


def draw_once(model: Path, device: torch.device, dtype: str, variant: Variant, steps: int, size_px: int | None) -> dict:
    """In a process of its own: load the model, show it a face, draw; peak memory and seconds from the files on. Few
    evaluations are enough, as each needs as much memory as the next."""
    begun = time.perf_counter()
    try:
        bench = Bench(model, device, dtype)
        if not bench.blueprint.settings(variant, Work()).few_step:  # which fixes their number
            few = Settings(steps=steps, guidance_interval=EVERYWHERE, face_interval=EVERYWHERE)
            variant = replace(variant, settings=few.over(variant.settings))
        bench.pipe(variant).set_faces([np.full((64, 64, 3), 128, np.uint8)])
        bench.draw(variant, Work(size_px=size_px))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    return {"peak_gib": peak_gib(device), "seconds_from_files": time.perf_counter() - begun}

"""How a picture's time grows with what is drawn, and whether a job of many prompts is as fast as one large batch."""

import argparse
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
from PIL import Image

from feedface.diffusion.state import take
from feedface.faces.detect import make_detector
from feedface.inference.job_run import RunPlan
from feedface.inference.jobs import Job
from feedface.inference.runner import run_job
from feedface.pipeline import Request
from research.benchmarks.measuring import ratio, time_in_turns
from research.benchmarks.sampling.timing import PROMPT, Bench, measure_parts, measure_whole
from research.benchmarks.sampling.variants import VARIANTS, Work

ONE_KIND = "2m_10"  # every evaluation costs the same: what grows is the evaluation
PROMPTS, SAMPLES = 8, 4  # of the job


def measure_scaling(args: argparse.Namespace, bench: Bench) -> dict[str, list[dict]]:
    """By what grows, from one picture of one person with one reference on: rows of work, seconds, TFLOP a picture."""
    variant, one = VARIANTS[ONE_KIND], Work(size_px=args.pixels or bench.blueprint.bundle.image_size)
    grown = {
        "samples": [replace(one, pictures=count) for count in args.samples],
        "references": [replace(one, references=count) for count in args.references],
        "pixels": [replace(one, size_px=side) for side in args.sides],
        "people": [replace(one, pictures=max(args.people), people=count) for count in args.people],
    }
    take_time = measure_whole if args.whole else measure_parts
    rows: dict[Work, dict] = {}  # some work stands in several tables
    for work in dict.fromkeys(work for works in grown.values() for work in works):
        bench.blueprint.settings(variant, work)  # says so when the model cannot draw the size
        measured = take_time(bench, {ONE_KIND: variant}, work, args.rounds, args.warmup)[ONE_KIND]
        rows[work] = asdict(work) | measured | bench.blueprint.count(variant, work)
    return {grows: [rows[work] for work in works] for grows, works in grown.items()}


def measure_batches(args: argparse.Namespace, bench: Bench) -> dict[str, dict]:
    """`PROMPTS` x `SAMPLES` pictures in ways that take turns: by name, seconds of all and how many that are."""
    variant = VARIANTS[ONE_KIND]
    pipe, settings = bench.pipe(variant), bench.blueprint.settings(variant, Work(size_px=args.pixels))
    detector = make_detector("auto", pipe.bundle.faces_root)
    count = PROMPTS * SAMPLES
    prompts = [f"{PROMPT}, number {number}" for number in range(PROMPTS)]
    every = [prompt for prompt in prompts for _ in range(SAMPLES)]
    everybody = bench.identity(Work(pictures=count, people=count))
    people = [take(everybody, slice(row, row + 1)) for row in range(count)]

    def draw(prompts: list[str], batch_size: int, people: list = people[:1] * count) -> None:
        requests = map(Request, prompts, range(len(prompts)), people)
        for _ in pipe.draw(requests, settings, batch_size=batch_size):
            pass

    def one_by_one() -> None:
        for prompt in prompts:
            draw([prompt] * SAMPLES, SAMPLES)

    def whole_job() -> None:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "face.png"
            Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(picture)
            job = Job("job", tuple(prompts), (picture,))
            plan = RunPlan(settings, n_samples=SAMPLES, detect=False, batch_size=args.batch_size)
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                run_job(pipe, job, plan, detector, Path(folder) / "job")

    size = args.batch_size
    job = f"{PROMPTS} prompts x {SAMPLES}"
    ways: dict[str, Callable[[], None]] = {
        f"one prompt, a batch of {count}": lambda: draw([PROMPT] * count, count),
        f"one prompt, batches of {size}": lambda: draw([PROMPT] * count, size),
        f"{job}, batches of {size}": lambda: draw(every, size),
        f"{job} of {count} people, batches of {size}": lambda: draw(every, size, people),
        f"{job}, a prompt at a time": one_by_one,
        f"a job of {job}, batches of {size}, to PNG, sheet and results": whole_job,
    }
    actions = {name: lambda number, way=way: way() for name, way in ways.items()}
    found = time_in_turns(actions, bench.device, args.rounds, args.warmup)
    first = next(iter(found.values()))
    return {name: {"pictures": count, **row, "over_first": _inverse(ratio(first, row))} for name, row in found.items()}


def _inverse(value: float | None) -> float | None:
    return None if value is None else 1 / value

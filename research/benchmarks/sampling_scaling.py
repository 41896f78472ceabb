"""How a picture's time grows with what is drawn, and whether a job of many prompts is as fast as one large batch."""

import argparse
import statistics
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sampling_steps import VARIANTS, Work
from sampling_time import PROMPT, Bench, log, measure_parts, measure_whole, since

from feedface.faces.detect import make_detector
from feedface.inference.jobs import Job
from feedface.inference.runner import Plan, run_job

ONE_KIND = "2m_10"  # every evaluation costs the same: what grows is the evaluation
PROMPTS, SAMPLES = 8, 4  # of the job


def works(args: argparse.Namespace, own_px: int) -> dict[str, list[Work]]:
    """By what grows; each starts from one picture of one person with one reference."""
    one = Work(size_px=args.pixels or own_px)
    return {
        "samples": [replace(one, pictures=count) for count in args.samples],
        "references": [replace(one, references=count) for count in args.references],
        "pixels": [replace(one, size_px=side) for side in args.sides],
        "people": [replace(one, pictures=max(args.people), people=count) for count in args.people],
    }


def measure_scaling(args: argparse.Namespace, bench: Bench) -> dict[str, list[dict]]:
    """By what grows, rows of: the work, seconds a picture, TFLOP a picture."""
    variant = VARIANTS[ONE_KIND]
    take = measure_whole if args.whole else measure_parts
    rows: dict[Work, dict] = {}  # some work stands in several tables
    found = {}
    for grows, wanted in works(args, bench.blueprint.index.image_size).items():
        for work in wanted:
            bench.blueprint.settings(variant, work)  # says so when the model cannot draw the size
            if work not in rows:
                measured = take(bench, {ONE_KIND: variant}, work, args.rounds, args.warmup)[ONE_KIND]
                rows[work] = asdict(work) | measured | bench.blueprint.count(variant, work)
        found[grows] = [rows[work] for work in wanted]
    return found


# ---------------------------------------------------------------------------------------------------------- batches


def measure_batches(args: argparse.Namespace, bench: Bench) -> dict[str, dict]:
    """`PROMPTS` x `SAMPLES` pictures in ways that take turns: by name, seconds of all and how many that are."""
    variant = VARIANTS[ONE_KIND]
    pipe = bench.pipe(variant)
    settings = bench.blueprint.settings(variant, Work(size_px=args.pixels))
    count = PROMPTS * SAMPLES
    prompts = [f"{PROMPT}, number {number}" for number in range(PROMPTS)]
    many = bench.faces(Work(pictures=count, people=count))
    one = many[:1]

    def draw(prompts: list[str], faces: torch.Tensor, batch_size: int) -> None:
        requests = [(prompt, seed, face[None]) for seed, (prompt, face) in enumerate(zip(prompts, faces, strict=True))]
        for _ in pipe.draw(requests, settings, batch_size=batch_size):
            pass

    def one_by_one() -> None:
        for prompt in prompts:
            draw([prompt] * SAMPLES, one.expand(SAMPLES, -1, -1), SAMPLES)

    def whole_job() -> None:
        with tempfile.TemporaryDirectory() as folder:
            picture = Path(folder) / "face.png"
            Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(picture)
            job = Job("job", tuple(prompts), (picture,))
            plan = Plan(settings, n_samples=SAMPLES, detect=False, batch_size=args.batch_size)
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                run_job(pipe, job, plan, detector, Path(folder) / "job")

    every = [prompt for prompt in prompts for _ in range(SAMPLES)]
    everyone = one.expand(count, -1, -1)
    job_size = f"{PROMPTS} prompts x {SAMPLES}"
    ways = {
        f"one prompt, a batch of {count}": lambda: draw([PROMPT] * count, everyone, count),
        f"one prompt, batches of {args.batch_size}": lambda: draw([PROMPT] * count, everyone, args.batch_size),
        f"{job_size}, batches of {args.batch_size}": lambda: draw(every, everyone, args.batch_size),
        f"{job_size} of {count} people, batches of {args.batch_size}": lambda: draw(every, many, args.batch_size),
        f"{job_size}, a prompt at a time": one_by_one,
        f"a job of {job_size}, batches of {args.batch_size}, to PNG, sheet and results": whole_job,
    }
    detector = make_detector("auto", pipe.bundle.faces_root)
    found: dict[str, dict] = {name: {"pictures": count, "seconds": [], "cpu_seconds": []} for name in ways}
    for number in range(-args.warmup, args.rounds):
        for name, draw_all in ways.items():
            begun = bench.clock()
            draw_all()
            seconds = since(begun, bench.clock())
            log(f"round {number}, {name}", seconds)
            if number >= 0:
                found[name]["seconds"].append(seconds[0])
                found[name]["cpu_seconds"].append(seconds[1])
    first = statistics.median(next(iter(found.values()))["seconds"])
    for row in found.values():
        row["over_first"] = statistics.median(row["seconds"]) / first
    return found

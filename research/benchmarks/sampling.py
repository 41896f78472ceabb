"""What a picture costs: the release's way, ours, each saving by itself and the presets, side by side; and how it grows.

    python research/benchmarks/sampling.py   the miniature
    python research/benchmarks/sampling.py --size full --rounds 1   full size, random weights: composed on a CPU
    python research/benchmarks/sampling.py --size full --pixels 256 --whole --variants release balanced
    python research/benchmarks/sampling.py --measure scaling batches
    python research/benchmarks/sampling.py --size full --device cuda --precision bf16 --compile --measure time rate

Variants take turns, so that other load on the machine hits them alike; medians are shown. A picture is everything from
prompt and encoded face to 8-bit pixels. Where whole pictures would take too long (full size on a CPU), each kind of
evaluation (both halves of guidance or one, with face or without, …) is measured by itself, and a picture is their sum.
Passes and FLOPs are counted, not timed. Memory is the peak of a process of its own, which loads the model from its
files, encodes a face and draws one picture of --memory_steps evaluations.

The release's way: solver of order 3, 40 evaluations, each two passes one after the other, attention in float32, faces'
keys and values, embeddings and all heads at every one; by the same modules otherwise. `performance_tables.py` makes
tables of the JSON files.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from performance_tables import tables
from sampling_memory import draw_once, measure_memory
from sampling_models import write_random_bundle
from sampling_rate import measure_rate
from sampling_scaling import measure_batches, measure_scaling
from sampling_steps import VARIANTS, Variant, Work
from sampling_time import Bench, measure_parts, measure_whole
from training_models import SIZES

from feedface.common.device import DTYPES, pick_device
from feedface.common.errors import run_cli
from feedface.common.files import atomic_file

ROOT = Path(__file__).resolve().parents[2]
MODELS = {"mini": ROOT / "models" / "mini", "full": ROOT / ".cache" / "performance" / "random-full"}
MEASURES = ("memory", "time", "scaling", "batches", "rate")
BY_SIZE = {  # what fits into minutes on a CPU
    "mini": {"rounds": 5, "sides": [32, 64, 128], "samples": [1, 2, 4, 8, 16, 32], "references": [1, 2, 3, 4, 5]},
    "full": {"rounds": 2, "sides": [256, 512, 768], "samples": [1, 2], "references": [1, 5]},
}


def main(argv: list[str] | None = None) -> None:
    args = read_arguments(argv)
    if args.child:
        print(json.dumps(draw_once(args, VARIANTS[args.child])))
        return
    result = {"command": argv or sys.argv[1:], "machine": describe_machine(args), "model": args.model.name}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()), file=sys.stderr, flush=True)
    bench = Bench(args.model, args.device, args.precision)
    variants = pick_variants(args, bench)
    result["image_px"] = args.pixels or bench.blueprint.index.image_size
    result["parameters"] = {
        "uvit": sum(p.numel() for p in bench.blueprint.backbone.parameters()),
        "face_controlnet": sum(p.numel() for p in bench.blueprint.net.trainable_parameters()),
    }
    work = Work(args.pictures, size_px=args.pixels)
    result["work"] = asdict(work)
    # First of all: what a process peaked at is passed on to the processes that it starts.
    memory: dict[str, dict] = {name: {} for name in variants}
    if "memory" in args.measure:
        for name in variants:
            memory[name] = measure_memory(args, name)
            print(f"memory of {name}: {memory[name]}", file=sys.stderr, flush=True)
    result["variants"] = {name: describe(bench, variant, work) | memory[name] for name, variant in variants.items()}
    if "time" in args.measure:
        timed = {name: variant for name, variant in variants.items() if not variant.low_memory}
        take = measure_whole if args.whole else measure_parts
        for name, found in take(bench, timed, work, args.rounds, args.warmup).items():
            result["variants"][name] |= found
    if "scaling" in args.measure:
        result["scaling"] = measure_scaling(args, bench)
    if "batches" in args.measure:
        result["batches"] = measure_batches(args, bench)
    if "rate" in args.measure:
        result["rate"] = measure_rate(args, bench)
    print("\n".join(tables(result)))
    if args.out:
        with atomic_file(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


def read_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=MODELS, default="mini", help="mini: models/mini; full: random weights")
    parser.add_argument("--model", type=Path, help="another model folder (sampling_models.py writes random ones)")
    default = [name for name in VARIANTS if name not in ("int8", "compiled")]
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=default, help="(default: all but flags')")
    parser.add_argument("--int8", action="store_true", help="also measure int8 weights")
    parser.add_argument("--compile", action="store_true", help="also measure compiled blocks")
    parser.add_argument(
        "--measure", choices=MEASURES, nargs="+", default=["memory", "time"], help="(default memory time)"
    )
    parser.add_argument("--pictures", type=int, default=1, help="drawn at a time (default 1)")
    parser.add_argument("--pixels", type=int, help="side of a picture (default: the model's own)")
    parser.add_argument("--rounds", type=int, help="(default: mini 5, full 2)")
    parser.add_argument("--warmup", type=int, help="rounds before these (default 1; composed on a CPU 0)")
    parser.add_argument(
        "--whole", action=argparse.BooleanOptionalAction, help="whole pictures (default: but full on CPU)"
    )
    parser.add_argument("--memory_steps", type=int, default=1, help="evaluations in the memory's process (default 1)")
    parser.add_argument("--samples", type=int, nargs="+", help="scaling: pictures at a time")
    parser.add_argument("--references", type=int, nargs="+", help="scaling: references of a person")
    parser.add_argument("--sides", type=int, nargs="+", help="scaling: sides of a picture in pixels")
    parser.add_argument("--people", type=int, nargs="+", help="scaling: people in a batch (default 1 and most samples)")
    parser.add_argument("--batch_size", type=int, default=8, help="batches: pictures at a time (default 8)")
    parser.add_argument("--rate_batches", type=int, nargs="+", default=[1, 4, 16], help="rate: (default 1 4 16)")
    parser.add_argument("--precision", choices=DTYPES, help="(default: fp16 on a GPU, else fp32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N (default: a GPU when there is one)")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.device = pick_device(args.device)
    args.precision = args.precision or ("fp32" if args.device.type == "cpu" else "fp16")
    for name, value in BY_SIZE[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    args.people = args.people or [1, max(args.samples)]
    if args.whole is None:
        args.whole = args.size == "mini" or args.device.type != "cpu"
    if args.warmup is None:
        args.warmup = 0 if args.device.type == "cpu" and not args.whole else 1
    args.variants += [name for flag, name in ((args.int8, "int8"), (args.compile, "compiled")) if flag]
    counts = ("pictures", "rounds", "memory_steps", "batch_size", "samples", "references", "people", "rate_batches")
    for name in counts:
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.model is None:
        args.model = MODELS[args.size]
        if args.size == "full" and not args.model.exists():
            print(f"writing random weights to {args.model}: 4 GB, once", file=sys.stderr, flush=True)
            write_random_bundle(args.model, SIZES["full"], args.model.name)
    return args


def pick_variants(args: argparse.Namespace, bench: Bench) -> dict[str, Variant]:
    """The variants asked for, each once, but for a few-step adapter that the model does not have."""
    wanted = dict.fromkeys(args.variants)
    if bench.blueprint.few_step is None and wanted.pop("few_step", ...) is None:
        print("the model has no few-step adapter: left out", file=sys.stderr, flush=True)
    return {name: VARIANTS[name] for name in wanted}


def describe(bench: Bench, variant: Variant, work: Work) -> dict:
    """What is drawn and what it takes by count."""
    settings = bench.blueprint.settings(variant, work)
    return {"title": variant.title, "settings": asdict(settings)} | bench.blueprint.count(variant, work)


def describe_machine(args: argparse.Namespace) -> dict[str, str]:
    """What the numbers depend on."""
    gpu = args.device.type == "cuda"
    threads = f"CPU, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": torch.cuda.get_device_name(args.device) if gpu else threads,
        "precision": args.precision,
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    run_cli(main)

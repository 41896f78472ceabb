"""What a picture costs: the release's way, ours, each saving by itself and the presets, side by side; and how it grows.

    python -m research.benchmarks.sampling   the miniature
    python -m research.benchmarks.sampling --size full --rounds 1   full size, random weights: composed on a CPU
    python -m research.benchmarks.sampling --size full --pixels 256 --whole --variants release balanced
    python -m research.benchmarks.sampling --measure scaling batches
    python -m research.benchmarks.sampling --size full --device cuda --precision bf16 --compile --measure time rate

Variants take turns, so that other load on the machine hits them alike; medians are shown. A picture is everything from
prompt and encoded face to 8-bit pixels. Where whole pictures would take too long (full size on a CPU), each kind of
evaluation (both halves of guidance or one, with face or without, …) is measured by itself, and a picture is their sum.
Passes and FLOPs are counted, not timed. Memory is the peak of a process of its own, which loads the model from its
files, encodes a face and draws one picture of --memory_steps evaluations.

The release's way: solver of order 3, 40 evaluations, each two passes one after the other, attention in float32, faces'
keys and values, embeddings and all heads at every one; by the same modules otherwise. `python -m
research.benchmarks.sampling.tables` makes tables of the JSON files. Any model with a method will do (--model).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from feedface.common.device import DTYPES, pick_device
from feedface.common.errors import run_cli
from research.benchmarks.measuring import ROOT, check_least, describe_machine, in_own_process, log
from research.benchmarks.models import SIZES, write_random_bundle
from research.benchmarks.sampling.growth import measure_batches, measure_scaling
from research.benchmarks.sampling.rate import measure_rate
from research.benchmarks.sampling.tables import tables
from research.benchmarks.sampling.timing import Bench, draw_once, measure_parts, measure_whole
from research.benchmarks.sampling.variants import VARIANTS, Variant, Work
from research.results import store

MODELS = {"mini": ROOT / "models" / "mini", "full": ROOT / ".cache" / "performance" / "random-full"}
MEASURES = ("memory", "time", "scaling", "batches", "rate")
BY_SIZE = {  # what fits into minutes on a CPU
    "mini": {"rounds": 5, "sides": [32, 64, 128], "samples": [1, 2, 4, 8, 16, 32], "references": [1, 2, 3, 4, 5]},
    "full": {"rounds": 2, "sides": [256, 512, 768], "samples": [1, 2], "references": [1, 5]},
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = read_arguments(argv)
    if args.child:
        how = (args.model, args.device, args.precision, VARIANTS[args.child], args.memory_steps, args.pixels)
        print(json.dumps(draw_once(*how)))
        return
    machine = describe_machine(args.device, precision=args.precision)
    bench = Bench(args.model, args.device, args.precision)
    bundle, work = bench.blueprint.bundle, Work(args.pictures, size_px=args.pixels)
    variants = pick_variants(args, bench)
    # First of all: what a process peaked at is passed on to the processes that it starts.
    memory = {name: measure_memory(args, name) if "memory" in args.measure else {} for name in variants}
    result = {
        "command": argv,
        "machine": machine,
        "model": args.model.name,
        "image_px": args.pixels or bundle.image_size,
        "parameters": {
            "backbone": sum(p.numel() for p in bundle.backbone.parameters()),
            "method": sum(p.numel() for _, p in bundle.method.trained_parameters(bundle.backbone)),
        },
        "work": asdict(work),
        "variants": {name: describe(bench, variant, work) | memory[name] for name, variant in variants.items()},
    }
    if "time" in args.measure:
        timed = {name: variant for name, variant in variants.items() if not variant.low_memory}
        take = measure_whole if args.whole else measure_parts
        for name, found in take(bench, timed, work, args.rounds, args.warmup).items():
            result["variants"][name] |= found
    others = {"scaling": measure_scaling, "batches": measure_batches, "rate": measure_rate}
    result |= {name: measure(args, bench) for name, measure in others.items() if name in args.measure}
    print("\n\n".join(tables(result)))
    if args.out:
        store(args.out, result)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m research.benchmarks.sampling", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--size", choices=MODELS, default="mini", help="mini: models/mini; full: random weights")
    parser.add_argument("--model", type=Path, help="another model folder (benchmarks.models writes random ones)")
    default = [name for name in VARIANTS if name not in ("int8", "compiled", "cuda_graphs")]
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=default, help="(default: all but flags')")
    parser.add_argument("--int8", action="store_true", help="also measure int8 weights")
    parser.add_argument("--compile", action="store_true", help="also measure compiled blocks")
    parser.add_argument("--cuda_graphs", action="store_true", help="also measure blocks replayed as CUDA graphs")
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
    asked = {"int8": args.int8, "compiled": args.compile, "cuda_graphs": args.cuda_graphs}
    args.variants += [name for name, flag in asked.items() if flag]
    counts = ("pictures", "rounds", "memory_steps", "batch_size", "samples", "references", "people", "rate_batches")
    check_least(parser, args, **dict.fromkeys(counts, 1))
    if args.model is None:
        args.model = MODELS[args.size]
        if args.size == "full" and not args.model.exists():
            log(f"writing random weights to {args.model}: 4 GB, once")
            write_random_bundle(args.model, SIZES["full"], args.model.name)
    return args


def pick_variants(args: argparse.Namespace, bench: Bench) -> dict[str, Variant]:
    """The variants asked for, each once, but for those that the model cannot draw."""
    wanted, bundle = dict.fromkeys(args.variants), bench.blueprint.bundle
    lacks = {"few_step": ("few-step adapter", bundle.few_step), "reuse": ("reusable blocks", bundle.backbone.reusable)}
    for name, (what, there) in lacks.items():
        if not there and wanted.pop(name, ...) is None:
            log(f"the model has no {what}: left out")
    return {name: VARIANTS[name] for name in wanted}


def measure_memory(args: argparse.Namespace, name: str) -> dict:
    """{"peak_gib": …, "seconds_from_files": …} of a process of its own, or {"out_of_memory": True}."""
    command = ["--child", name, "--model", args.model, "--device", args.device, "--precision", args.precision]
    command += ["--memory_steps", args.memory_steps, *(["--pixels", args.pixels] if args.pixels else [])]
    found = in_own_process("research.benchmarks.sampling", command)
    log(f"memory of {name}: {found}")
    return found


def describe(bench: Bench, variant: Variant, work: Work) -> dict:
    """What is drawn and what it takes by count."""
    settings = bench.blueprint.settings(variant, work)
    return {"title": variant.title, "settings": asdict(settings)} | bench.blueprint.count(variant, work)


if __name__ == "__main__":
    run_cli(main)

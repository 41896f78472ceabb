"""What a training step costs: the authors' way, ours, and ours with cached features, side by side.

    python research/benchmarks/training.py [--size middle] [--batch_size 2] [--steps 3] [--out training.json]
    python research/benchmarks/training.py --profile --variants cached
    python research/benchmarks/training.py --size full --batch_size 16 --precision bf16 --steps 20 --compile --sweep
    python research/benchmarks/training.py --size full --batch_size 1 --variants cached --checkpointing --measure memory

A step is: encoders where the variant runs them, objective, backward pass, clipping, AdamW. Weights and data are random;
no files are read. Variants take turns, step by step, so that other load on the machine hits them alike. Every tenth
sample, counted through the run, is drawn as standard and needs no frozen prediction: few steps may have none of these,
FLOPs count them exactly. The memory of each variant is the peak of a process of its own, which takes two steps.

The release's way: all encoders in every step; the frozen prediction for every sample; the backbone's blocks
checkpointed; attention in float32; AdamW as PyTorch does it by default. Otherwise both run the same modules.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from training_models import SIZES
from training_steps import VARIANTS, Bench, Phases, Variant, count_flops

from feedface.common.device import pick_device
from feedface.common.errors import UserError
from feedface.common.files import atomic_file

MEASURES = ("memory", "flops", "time")
SWEEP = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # times the batch size
GIB = 2**30


def main() -> None:
    args = read_arguments()
    if args.child:
        print(json.dumps(run_child(args)))
        return
    variants = pick_variants(args)
    result = {"command": sys.argv[1:], "machine": describe_machine(args), "size": args.size, "variants": {}}
    for name in variants:
        result["variants"][name] = {"title": variants[name].title}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()), flush=True)
    if args.precision == "no":
        print("float32 throughout: casting attention to float32, as the release does, changes nothing here", flush=True)
    # First of all: what a process peaked at is passed on to the processes that it starts.
    if "memory" in args.measure:
        for name in variants:
            result["variants"][name] |= measure_memory(args, name, args.batch_size)
            print(f"memory of {name}: {result['variants'][name]}", file=sys.stderr, flush=True)
    if "flops" in args.measure:
        for name, variant in variants.items():
            result["variants"][name]["tflop_a_sample"] = {
                size: {phase: flops / 1e12 for phase, flops in count_flops(SIZES[size], variant).items()}
                for size in dict.fromkeys([args.size, "full"])
            }
        print_flops(result, args.size)
    if "time" in args.measure:
        measure_time(args, variants, result)
    if set(args.measure) & {"time", "memory"}:
        print_table(result)
    if args.sweep:
        result["sweep"] = sweep(args)
    if args.out:
        with atomic_file(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    default = [name for name in VARIANTS if name != "compiled"]
    parser.add_argument("--size", choices=SIZES, default="middle", help="of the models (default middle)")
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=default, help="(default all but compiled)")
    parser.add_argument("--measure", choices=MEASURES, nargs="+", default=list(MEASURES), help="(default everything)")
    parser.add_argument("--batch_size", type=int, default=2, help="samples of a step (default 2)")
    parser.add_argument("--steps", type=int, default=3, help="measured steps of each variant (default 3)")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each variant before these (default 1)")
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="(default no: float32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:N (default: a GPU when there is one)")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing in our variants too")
    parser.add_argument("--compile", action="store_true", help="also measure compiled blocks: the variant compiled")
    parser.add_argument("--sweep", action="store_true", help="CUDA: largest batch of the cached variant, and its speed")
    parser.add_argument("--profile", action="store_true", help="also say where the last variant's time goes")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        args.device = pick_device(args.device)
    except UserError as error:
        parser.error(str(error))
    if min(args.batch_size, args.steps) < 1 or args.warmup < 0:
        parser.error("--batch_size and --steps must be at least 1, --warmup at least 0")
    if args.sweep and args.device.type != "cuda":
        parser.error("--sweep needs a CUDA GPU: a CPU's memory does not end cleanly")
    if args.compile and "compiled" not in args.variants:
        args.variants.append("compiled")
    return args


def pick_variants(args: argparse.Namespace) -> dict[str, Variant]:
    """The variants asked for, with what the arguments change of them."""
    chosen = {name: VARIANTS[name] for name in args.variants}
    if args.checkpointing:
        ours = {name for name, variant in chosen.items() if not variant.checkpointing}
        chosen |= {name: replace(chosen[name], checkpointing="all") for name in ours}
    return chosen


def describe_machine(args: argparse.Namespace) -> dict[str, str]:
    """What the numbers depend on."""
    gpu = args.device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(args.device) if gpu else f"CPU {torch.get_num_threads()} thread(s)",
        "precision": args.precision,
        "batch size": str(args.batch_size),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


# ---------------------------------------------------------------------------------------------------------- memory


def measure_memory(args: argparse.Namespace, name: str, batch_size: int, steps: int = 2) -> dict[str, float]:
    """Peak of a process of its own in GiB, and what its steps took; {"out_of_memory": True} when it does not fit."""
    command = [sys.executable, __file__, "--child", name, "--size", args.size, "--batch_size", str(batch_size)]
    command += ["--steps", str(steps), "--precision", args.precision, "--device", str(args.device)]
    command += ["--checkpointing"] * args.checkpointing
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"out_of_memory": True} if done.returncode == -9 else {"error": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def run_child(args: argparse.Namespace) -> dict[str, float]:
    """Take a few steps and say what they needed."""
    args.variants = [args.child]
    variant = pick_variants(args)[args.child]
    cuda = args.device.type == "cuda"
    seconds = []
    try:
        bench = Bench(SIZES[args.size], args.batch_size, args.device, args.precision, variant.encode)
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(args.device)
        for step in range(args.steps):
            start = bench.clock()
            bench.step(variant, step)
            seconds.append(bench.clock() - start)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    if cuda:
        peak = torch.cuda.max_memory_allocated(args.device)
    else:
        # macOS counts bytes, all others KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_gib": peak / GIB, "seconds_alone": seconds}


def sweep(args: argparse.Namespace) -> list[dict]:
    """Speed and memory of the cached variant by batch size, up to the first that does not fit."""
    name = "compiled" if args.compile else "cached"
    rows = []
    print(f"\n| batch, {VARIANTS[name].title} | samples/s | peak GiB |\n| --- | --- | --- |", flush=True)
    for factor in SWEEP:
        batch_size = round(args.batch_size * factor)
        row = {"batch_size": batch_size} | measure_memory(args, name, batch_size, steps=8)
        if "peak_gib" in row:
            row["samples_a_second"] = batch_size / statistics.median(row["seconds_alone"][3:])
            print(f"| {batch_size} | {row['samples_a_second']:.2f} | {row['peak_gib']:.1f} |", flush=True)
        else:
            print(f"| {batch_size} | {'does not fit' if 'out_of_memory' in row else row['error']} | |", flush=True)
        rows.append(row)
        if "peak_gib" not in row:
            break
    return rows


# ------------------------------------------------------------------------------------------------------------ time


def measure_time(args: argparse.Namespace, variants: dict[str, Variant], result: dict) -> None:
    """Let the variants take turns; adds to `result` what each step took."""
    bench = Bench(
        SIZES[args.size], args.batch_size, args.device, args.precision, any(v.encode for v in variants.values())
    )
    result["parameters"] = {
        "backbone": sum(p.numel() for p in bench.trained.backbone.parameters()),
        "trained": sum(p.numel() for p in bench.parameters),
    }
    print("\n" + ", ".join(f"{count / 1e6:.1f} M {part}" for part, count in result["parameters"].items()), flush=True)
    left = dict(variants)
    for number in range(-args.warmup, args.steps):
        for name, variant in list(left.items()):
            found = result["variants"][name]
            try:
                wall, cpu = bench.clock(), time.process_time()
                bench.step(variant, max(0, number))
                wall, cpu = bench.clock() - wall, time.process_time() - cpu
            except torch.OutOfMemoryError:
                found["out_of_memory"] = True
                del left[name]
                bench.zero_grad()
                continue
            if number >= 0:
                found.setdefault("seconds", []).append(wall)
                found.setdefault("cpu_seconds", []).append(cpu)
            print(f"step {number} {name}: {wall:.2f} s, {cpu:.2f} s of CPU", file=sys.stderr, flush=True)
    if args.profile and left:
        name = list(left)[-1]
        result["profile"] = {"variant": name, "seconds": profile(bench, left[name])}


def profile(bench: Bench, variant: Variant) -> dict[str, float]:
    """Where the time of a step goes: seconds by phase, and a table of the operations that take most by themselves."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (bench.device.type == "cuda")
    with torch_profile(activities=activities, acc_events=True) as profiler:
        bench.step(variant, 0)
        bench.synchronise()
    key = "self_cuda_time_total" if bench.device.type == "cuda" else "self_cpu_time_total"
    print("\n" + profiler.key_averages().table(sort_by=key, row_limit=24, max_name_column_width=48))
    # Apart from the table, since the profiler slows the step and watching breaks compiled blocks.
    bench.phases = Phases(bench.clock)
    bench.phases.watch(bench.trained)
    bench.step(variant, 0)
    seconds = dict(bench.phases.totals)
    total = sum(seconds.values())
    print(f"| {variant.title} | seconds | share |\n| --- | --- | --- |")
    for phase, value in sorted(seconds.items(), key=lambda item: -item[1]):
        print(f"| {phase} | {value:.2f} | {value / total:.1%} |")
    return seconds


# ---------------------------------------------------------------------------------------------------------- tables


def print_flops(result: dict, size: str) -> None:
    """FLOPs by phase, at the size measured and at full size, which the former must resemble."""
    for scale in dict.fromkeys([size, "full"]):
        columns = {name: found["tflop_a_sample"][scale] for name, found in result["variants"].items()}
        phases = dict.fromkeys(phase for column in columns.values() for phase in column)
        totals = {name: sum(column.values()) for name, column in columns.items()}
        print(f"\n| TFLOP a sample, size {scale} | " + " | ".join(columns) + " |")
        print("| --- |" + " --- |" * len(columns))
        for phase in phases:
            cells = (f"{c.get(phase, 0):.3f} ({c.get(phase, 0) / totals[name]:.0%})" for name, c in columns.items())
            print(f"| {phase} | " + " | ".join(cells) + " |")
        first = next(iter(totals.values()))
        print("| sum | " + " | ".join(f"{total:.3f}" for total in totals.values()) + " |")
        print("| first over this | " + " | ".join(f"{first / t:.2f}" for t in totals.values()) + " |", flush=True)


def print_table(result: dict) -> None:
    """Medians, and ratios to the first variant."""
    batch_size = int(result["machine"]["batch size"])
    rows = list(result["variants"].values())
    for row in rows:
        if "seconds" in row:
            row["samples_a_second"] = batch_size / statistics.median(row["seconds"])
            row["speedup"] = _ratio(rows[0], row, "seconds")
            row["speedup_by_cpu_time"] = _ratio(rows[0], row, "cpu_seconds")
    print(
        "\n| | s a step | samples/s | × first | × first, CPU time | peak GiB |\n| --- | --- | --- | --- | --- | --- |"
    )
    for row in rows:
        cells = [f"{statistics.median(row['seconds']):.2f}" if "seconds" in row else ""]
        formats = {"samples_a_second": ".3f", "speedup": ".2f", "speedup_by_cpu_time": ".2f", "peak_gib": ".2f"}
        cells += [f"{row[key]:{spec}}" if row.get(key) is not None else "" for key, spec in formats.items()]
        if "out_of_memory" in row:
            cells[0] = "does not fit"
        print(f"| {row['title']} | " + " | ".join(cells) + " |", flush=True)


def _ratio(first: dict, row: dict, key: str) -> float | None:
    return statistics.median(first[key]) / statistics.median(row[key]) if key in first else None


if __name__ == "__main__":
    main()

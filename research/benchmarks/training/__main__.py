"""What a training step costs: the authors' way, ours, and ours with cached features, side by side.

    python -m research.benchmarks.training [--size middle] [--batch_size 2] [--steps 3] [--out training.json]
    python -m research.benchmarks.training --profile --variants cached
    python -m research.benchmarks.training --size full --batch_size 16 --precision bf16 --steps 20 --compile --sweep
    python -m research.benchmarks.training --size full --batch_size 1 --variants cached --checkpointing --measure memory

A step is: encoders where the variant runs them, objective, backward pass, clipping, AdamW. Weights and data are random;
no files are read, but for kept frozen predictions: of a file that has them all. Variants take turns, step by step, so
that other load on the machine hits them alike. Every tenth sample, counted through the run, is drawn as standard and
needs no frozen prediction: few steps may have none of these, FLOPs count them exactly. The memory of each variant is
the peak of a process of its own, which takes two steps.

The release's way: all encoders in every step; the frozen prediction for every sample; the backbone's blocks
checkpointed; attention in float32; AdamW as PyTorch does it by default. Otherwise both run the same modules.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from feedface.common.device import pick_device
from feedface.common.errors import run_cli
from research.benchmarks.measuring import (
    check_least,
    describe_machine,
    in_own_process,
    log,
    median,
    peak_gib,
    ratio,
    synchronise,
    time_in_turns,
    written,
)
from research.benchmarks.models import SIZES
from research.benchmarks.training.steps import VARIANTS, Bench, Variant, count_flops
from research.pages import columns_table, table
from research.results import store

MEASURES = ("memory", "flops", "time")
SWEEP = (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)  # times the batch size
COLUMNS = {
    "": "{title}",
    "s a step": "{time}",
    "samples/s": "{samples_a_second:.3f}",
    "× first": "{speedup:.2f}",
    "× first, CPU time": "{speedup_by_cpu_time:.2f}",
    "peak GiB": "{peak_gib:.2f}",
}


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = read_arguments(argv)
    if args.child:
        print(json.dumps(run_child(args)))
        return
    variants = pick_variants(args)
    machine = describe_machine(args.device, precision=args.precision, **{"batch size": args.batch_size})
    rows = {name: {"title": variant.title} for name, variant in variants.items()}
    result = {"command": argv, "machine": machine, "size": args.size, "variants": rows}
    if args.precision == "no":
        print("float32 throughout: casting attention to float32, as the release does, changes nothing here", flush=True)
    # First of all: what a process peaked at is passed on to the processes that it starts.
    if "memory" in args.measure:
        for name in variants:
            rows[name] |= measure_memory(args, name, args.batch_size)
            log(f"memory of {name}: {rows[name]}")
    if "flops" in args.measure:
        for name, variant in variants.items():
            rows[name]["tflop_a_sample"] = {
                size: {phase: flops / 1e12 for phase, flops in count_flops(SIZES[size], variant).items()}
                for size in dict.fromkeys([args.size, "full"])
            }
        # At the size measured and at full size, which the former must resemble.
        for size in dict.fromkeys([args.size, "full"]):
            print(f"\n{flops_table(rows, size)}", flush=True)
    if "time" in args.measure:
        measure_time(args, variants, result)
    if set(args.measure) & {"time", "memory"}:
        print(f"\n{columns_table(COLUMNS, compared(list(rows.values()), args.batch_size))}", flush=True)
    if args.sweep:
        result["sweep"] = sweep(args)
    if args.out:
        store(args.out, result)


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m research.benchmarks.training", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
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
    args = parser.parse_args(argv)
    args.device = pick_device(args.device)
    check_least(parser, args, batch_size=1, steps=1, warmup=0)
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


# -------------------------------------------------------------------------------------------------------------- memory


def measure_memory(args: argparse.Namespace, name: str, batch_size: int, steps: int = 2) -> dict:
    """Peak of a process of its own in GiB, and what its steps took; {"out_of_memory": True} when it does not fit."""
    command = ["--child", name, "--size", args.size, "--batch_size", batch_size, "--steps", steps]
    command += ["--precision", args.precision, "--device", args.device, *["--checkpointing"] * args.checkpointing]
    return in_own_process("research.benchmarks.training", command)


def run_child(args: argparse.Namespace) -> dict:
    """Take a few steps and say what they needed."""
    args.variants = [args.child]
    variants = pick_variants(args)
    try:
        bench = make_bench(args, variants)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    if args.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(args.device)
    row = step_in_turns(bench, variants, args.steps)[args.child]
    return row if "out_of_memory" in row else {"peak_gib": peak_gib(args.device), "seconds_alone": row["seconds"]}


def sweep(args: argparse.Namespace) -> list[dict]:
    """Speed and memory of the cached variant by batch size, up to the first that does not fit."""
    name = "compiled" if args.compile else "cached"
    rows = []
    for factor in SWEEP:
        batch_size = round(args.batch_size * factor)
        row = {"batch_size": batch_size} | measure_memory(args, name, batch_size, steps=8)
        row["speed"] = row.get("error", "does not fit")
        if "peak_gib" in row:
            row["samples_a_second"] = batch_size / statistics.median(row["seconds_alone"][3:])
            row["speed"] = f"{row['samples_a_second']:.2f}"
        log(f"batch {batch_size}: {row}")
        rows.append(row)
        if "peak_gib" not in row:
            break
    columns = {f"batch, {VARIANTS[name].title}": "{batch_size}", "samples/s": "{speed}", "peak GiB": "{peak_gib:.1f}"}
    print(f"\n{columns_table(columns, rows)}", flush=True)
    return rows


# ---------------------------------------------------------------------------------------------------------------- time


def make_bench(args: argparse.Namespace, variants: dict[str, Variant]) -> Bench:
    encodes = any(variant.encode for variant in variants.values())
    return Bench(SIZES[args.size], args.batch_size, args.device, args.precision, encodes)


def step_in_turns(bench: Bench, variants: dict[str, Variant], steps: int, warmup: int = 0) -> dict[str, dict]:
    """By name, a row of what each step took."""

    def stepping(variant: Variant) -> Callable[[int], None]:
        return lambda number: bench.step(variant, max(0, number))

    actions = {name: stepping(variant) for name, variant in variants.items()}
    return time_in_turns(actions, bench.device, steps, warmup)


def measure_time(args: argparse.Namespace, variants: dict[str, Variant], result: dict) -> None:
    """Let the variants take turns; adds to `result` what each step took."""
    bench = make_bench(args, variants)
    result["parameters"] = {
        "backbone": sum(p.numel() for p in bench.trained.backbone.parameters()),
        "trained": sum(p.numel() for p in bench.parameters),
    }
    print("\n" + ", ".join(f"{count / 1e6:.1f} M {part}" for part, count in result["parameters"].items()), flush=True)
    rows = step_in_turns(bench, variants, args.steps, args.warmup)
    for name, row in rows.items():
        result["variants"][name] |= row
    left = [name for name, row in rows.items() if "out_of_memory" not in row]
    if args.profile and left:
        result["profile"] = {"variant": left[-1], "seconds": profile(bench, variants[left[-1]])}


def profile(bench: Bench, variant: Variant) -> dict[str, float]:
    """Where the time of a step goes: seconds by phase, and a table of the operations that take most by themselves."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with torch_profile(activities=activities, acc_events=True) as profiler:
        bench.step(variant, 0)
        synchronise(bench.device)
    key = "self_cuda_time_total" if gpu else "self_cpu_time_total"
    print("\n" + profiler.key_averages().table(sort_by=key, row_limit=24, max_name_column_width=48))

    # Apart from the table, since the profiler slows the step and watching breaks compiled blocks.
    def clock() -> float:
        synchronise(bench.device)
        return time.perf_counter()

    seconds = bench.watch(clock)
    bench.step(variant, 0)
    total = sum(seconds.values())
    rows = [{"phase": phase, "seconds": seconds[phase]} for phase in sorted(seconds, key=seconds.get, reverse=True)]
    rows = [row | {"share": row["seconds"] / total} for row in rows]
    print(columns_table({variant.title: "{phase}", "seconds": "{seconds:.2f}", "share": "{share:.1%}"}, rows))
    return dict(seconds)


# -------------------------------------------------------------------------------------------------------------- tables


def flops_table(variants: dict[str, dict], size: str) -> str:
    """FLOPs by phase."""
    columns = {name: found["tflop_a_sample"][size] for name, found in variants.items()}
    phases = dict.fromkeys(phase for column in columns.values() for phase in column)
    totals = {name: sum(column.values()) for name, column in columns.items()}
    first = next(iter(totals.values()))
    rows = [
        [phase, *(f"{c.get(phase, 0):.3f} ({c.get(phase, 0) / totals[name]:.0%})" for name, c in columns.items())]
        for phase in phases
    ]
    rows.append(["sum", *(f"{total:.3f}" for total in totals.values())])
    rows.append(["first over this", *(f"{first / total:.2f}" for total in totals.values())])
    return table([f"TFLOP a sample, size {size}", *columns], rows)


def compared(rows: list[dict], batch_size: int) -> list[dict]:
    """The rows, with what follows from them added: medians, and ratios to the first variant."""
    for row in rows:
        if "seconds" in row:
            row["samples_a_second"] = batch_size / median(row)
            row["speedup"] = ratio(rows[0], row)
            row["speedup_by_cpu_time"] = ratio(rows[0], row, "cpu_seconds")
    return [{**row, "time": written(row, ".2f")} for row in rows]


if __name__ == "__main__":
    run_cli(main)

"""How near a step comes to the device's own speed at multiplying matrices, and where its time goes."""

import argparse
from collections import defaultdict

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from feedface.settings import Settings
from research.benchmarks.measuring import log, median, seconds_of, synchronise, time_in_turns
from research.benchmarks.sampling.evaluations import Evaluator
from research.benchmarks.sampling.timing import Bench
from research.benchmarks.sampling.variants import Kind, Variant, Work

MULTIPLIED = {"cuda": 8192, "cpu": 2048, "mps": 4096}  # rows of square matrices, large enough to be at full speed
SERIES = 5
SORTS = (  # names of kernels and operations, and what they are; the first that fits
    (("attention", "flash", "fmha", "sdpa"), "attention"),
    (("mm", "gemm", "linear", "cutlass", "xmma", "nvjet", "mkldnn"), "matrix products"),
    (("norm", "layer_norm"), "norms"),
    (("gelu",), "GELU"),
    (("cat", "copy", "clone", "contiguous", "to_copy"), "copies"),
    (("conv",), "convolutions"),
)


def measure_rate(args: argparse.Namespace, bench: Bench) -> dict:
    """FLOP/s of one large matrix product and of a step by batch size, and the step's time by sort of operation."""
    peak = multiplication_rate(bench.device, bench.pipe(_variant(False)).dtype) / 1e12
    log(f"one large product: {peak:.3f} TFLOP/s")
    found: dict = {"multiplication_tflops": peak, "steps": []}
    for compiled in (False, True)[: 1 + args.compile]:
        for pictures in args.rate_batches:
            row = {"pictures": pictures, "compiled": compiled} | step_rate(args, bench, pictures, compiled)
            if "tflops" in row:
                row["share"] = row["tflops"] / peak
            log(f"step: {row}")
            found["steps"].append(row)
    pictures = args.rate_batches[0]
    found["profile"] = {"pictures": pictures, "seconds": profile(bench, pictures)}
    return found


def multiplication_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product: the best of some, as what a step could reach at most."""
    rows = MULTIPLIED[device.type]
    a, b = (torch.randn(rows, rows).to(device, dtype) for _ in range(2))
    series = [seconds_of(lambda: [a @ b for _ in range(SERIES)], device, SERIES)[0] for _ in range(SERIES)]
    return 2 * rows**3 / min(series)


def _variant(compiled: bool) -> Variant:
    return Variant("step", Settings(few_step=False), compiled=compiled)


def _evaluator(bench: Bench, pictures: int, compiled: bool) -> Evaluator:
    pipe, work = bench.pipe(_variant(compiled)), Work(pictures)
    inputs = bench.blueprint.inputs(work, bench.device, pipe.dtype)
    found = Evaluator(pipe.bundle.backbone, pipe.bundle.method, *inputs, bench.blueprint.latent_size(work))
    found.prepare(release=False)
    found.run(Kind())  # compiles, and picks its kernels
    return found


def step_rate(args: argparse.Namespace, bench: Bench, pictures: int, compiled: bool) -> dict:
    """Of an evaluation with both halves and the face: a row of seconds, and FLOP/s by count."""
    repeats = SERIES if bench.device.type == "cuda" else 1  # a GPU is waited for at their end only
    try:
        evaluator = _evaluator(bench, pictures, compiled)
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    actions = {"step": lambda number: [evaluator.run(Kind()) for _ in range(repeats)]}
    row = time_in_turns(actions, bench.device, args.rounds, units=repeats)["step"]
    if "seconds" in row:
        row["tflops"] = bench.blueprint.cost(Kind(), Work(pictures)).flops * pictures / median(row) / 1e12
    return row


def profile(bench: Bench, pictures: int) -> dict[str, float]:
    """Seconds of one evaluation by sort of operation; as the profiler sees them, so slower than without it."""
    evaluator = _evaluator(bench, pictures, compiled=False)
    gpu = bench.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    with torch_profile(activities=activities, acc_events=True) as profiler:
        evaluator.run(Kind())
        synchronise(bench.device)
    seconds: dict[str, float] = defaultdict(float)
    for row in profiler.key_averages():
        if gpu and row.device_type == torch.autograd.DeviceType.CUDA:  # kernels; operations would count them again
            seconds[_sort(row.key)] += row.self_device_time_total / 1e6
        elif not gpu:
            seconds[_sort(row.key)] += row.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _sort(name: str) -> str:
    return next((sort for words, sort in SORTS if any(word in name.lower() for word in words)), "the rest")

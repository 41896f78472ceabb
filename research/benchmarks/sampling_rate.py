"""How near a step comes to the device's own speed at multiplying matrices, and where its time goes."""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable

import torch
from sampling_steps import Evaluator, Kind, Variant, Work
from sampling_time import Bench
from torch.profiler import ProfilerActivity
from torch.profiler import profile as torch_profile

from feedface.settings import Settings

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
    """FLOP/s of one large matrix product, of a U-ViT step by batch size, and the step's time by sort of operation."""
    dtype = bench.pipe(Variant("plain", Settings(few_step=False))).dtype
    peak = multiplication_rate(bench.device, dtype)
    print(f"one large product: {peak / 1e12:.3f} TFLOP/s", file=sys.stderr, flush=True)
    found: dict = {"multiplication_tflops": peak / 1e12, "steps": []}
    for compiled in (False, True)[: 1 + args.compile]:
        for pictures in args.rate_batches:
            row = {"pictures": pictures, "compiled": compiled} | step_rate(args, bench, pictures, compiled)
            if "tflops" in row:
                row["share"] = row["tflops"] / found["multiplication_tflops"]
            print(f"step: {row}", file=sys.stderr, flush=True)
            found["steps"].append(row)
    found["profile"] = {"pictures": args.rate_batches[0], "seconds": profile(bench, args.rate_batches[0])}
    return found


def multiplication_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square product: the best of some, as what a step could reach at most."""
    rows = MULTIPLIED[device.type]
    a, b = (torch.randn(rows, rows).to(device, dtype) for _ in range(2))
    return 2 * rows**3 / min(_seconds(device, SERIES, lambda: a @ b) for _ in range(SERIES))


def _seconds(device: torch.device, repeats: int, action: Callable[[], object]) -> float:
    """Of one of `repeats` calls; a GPU is waited for at the end only."""
    synchronise(device)
    begun = time.perf_counter()
    for _ in range(repeats):
        action()
    synchronise(device)
    return (time.perf_counter() - begun) / repeats


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _evaluator(bench: Bench, pictures: int, compiled: bool) -> Evaluator:
    pipe = bench.pipe(Variant("step", Settings(few_step=False), compiled=compiled))
    work = Work(pictures, size_px=None)
    text, faces = bench.blueprint.inputs(work, bench.device, pipe.dtype)
    found = Evaluator(pipe.bundle.backbone, pipe.bundle.method, text, faces, bench.blueprint.latent_size(work))
    found.prepare(release=False)
    found.run(Kind())  # compiles, and picks its kernels
    return found


def step_rate(args: argparse.Namespace, bench: Bench, pictures: int, compiled: bool) -> dict:
    """Of an evaluation with both halves and the face: seconds, and FLOP/s by count."""
    try:
        evaluator = _evaluator(bench, pictures, compiled)
        repeats = SERIES if bench.device.type == "cuda" else 1
        seconds = [_seconds(bench.device, repeats, lambda: evaluator.run(Kind())) for _ in range(args.rounds)]
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    flops = bench.blueprint.cost(Kind(), Work(pictures)).flops * pictures
    return {"seconds": seconds, "tflops": flops / statistics.median(seconds) / 1e12}


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

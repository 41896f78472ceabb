"""What make_data.py does in a second: processes, worker threads, and where the time goes.

    python -m research.benchmarks.data [--pictures 300] [--size 512] [--rounds 3] [--out data.json]
    python -m research.benchmarks.data --processes 1 2 4 8 --workers 0 2 --threads 1
    python -m research.benchmarks.data --photos photos --detector buffalo_l --parser facer --device cuda

Portraits are rendered to a temporary folder (or --photos are taken) and run through make_data.py as it is, each time
into an empty folder. Variants take turns, round by round, so that other load on the machine hits them alike; medians
are shown. Loading the models is not counted. By default each process has one thread for its models: what processes
add is compared at the same number of threads each. On a machine that is busy otherwise, the CPU time that a picture
takes says more than the speed: two processes on two free cores are 2 x as fast if it stays the same.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from feedface.common.errors import UserError, run_cli
from feedface.common.json_files import load_json
from feedface.synthetic.world import make_portraits
from research.benchmarks.measuring import ROOT, check_least, describe_machine, in_turns, log
from research.pages import columns_table
from research.results import store

STAGES = ("read", "detect", "parse", "judge", "caption", "write")
CHUNK = 64  # portraits rendered at a time
RENDERED_PX = 96  # rendering takes longer than anything that is measured here
# Shares are of the time that all threads together spent in the stages; waiting is the main thread's.
COLUMNS = {
    "processes": "{processes}",
    "workers each": "{workers}",
    "pictures/s": "{pictures_a_second:.1f}",
    "× 1 process": "{speedup:.2f}",
    "CPU ms a picture": "{cpu_ms:.0f}",
    **{stage: f"{{shares[{stage}]:.0%}}" for stage in STAGES},
    "models wait": "{waiting:.0%}",
}
Variant = tuple[int, int]  # processes, worker threads of each


def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    args = read_arguments(argv)
    machine = describe_machine(
        pictures=args.photos or f"{args.pictures} of {args.size} px",
        models=f"{args.detector}, {args.parser} on {args.device}, {args.threads} thread(s) a process",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    )
    variants = [(processes, workers) for workers in args.workers for processes in args.processes]
    with tempfile.TemporaryDirectory() as temporary:
        photos = args.photos or render(Path(temporary) / "photos", args.pictures, args.size)

        def run(variant: Variant) -> Callable[[int], dict]:
            return lambda number: measure(args, photos, Path(temporary) / "out", *variant)

        runs = in_turns({variant: run(variant) for variant in variants}, args.rounds)
    rows = [summarise(variant, runs[variant], runs.get((1, variant[1]))) for variant in variants]
    shown = [row | {"cpu_ms": 1000 * row["cpu_seconds_a_picture"]} for row in rows]
    print(f"\n{columns_table(COLUMNS, shown)}")
    if args.out:
        store(args.out, {"command": argv, "machine": machine, "variants": rows})


def read_arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m research.benchmarks.data", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--pictures", type=int, default=300, help="portraits to render (default 300)")
    parser.add_argument("--size", type=int, default=512, help="of the portraits in pixels (default 512)")
    parser.add_argument("--photos", type=Path, help="a folder of pictures to take instead")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="threads a process (default 0 1 2)")
    parser.add_argument("--threads", type=int, default=1, help="of the models of each process (default 1)")
    parser.add_argument("--rounds", type=int, default=3, help="(default 3)")
    parser.add_argument("--batch_size", type=int, default=8, help="(default 8)")
    parser.add_argument("--model", default=str(ROOT / "models" / "mini"), help="(default models/mini)")
    parser.add_argument("--detector", default="mini", help="(default mini)")
    parser.add_argument("--parser", default="mini", help="(default mini)")
    parser.add_argument("--device", default="cpu", help="(default cpu)")
    parser.add_argument("--out", type=Path, help="write everything to this JSON file")
    args = parser.parse_args(argv)
    check_least(parser, args, pictures=1, threads=1, rounds=1, batch_size=1, processes=1, workers=0)
    return args


def render(folder: Path, count: int, size: int) -> Path:
    """Write `count` portraits as JPEG, ten of each person, enlarged to `size` pixels."""
    folder.mkdir(parents=True)
    for start in range(0, count, CHUNK):
        numbers = np.arange(start, min(start + CHUNK, count))
        portraits = make_portraits(numbers // 10, numbers % 10, size=RENDERED_PX).images
        for number, image in zip(numbers, portraits, strict=True):
            enlarged = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
            enlarged.save(folder / f"{number:06d}.jpg", quality=95)
    return folder


def measure(args: argparse.Namespace, photos: Path, out: Path, processes: int, workers: int) -> dict:
    """Run once; returns what `make_data.py --timings` says."""
    timings = out.with_name("timings.json")
    shutil.rmtree(out, ignore_errors=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    command = [sys.executable, *(launcher if processes > 1 else []), ROOT / "make_data.py"]
    command += ["--data_folder", photos, "--out_folder", out, "--workers", workers, "--batch_size", args.batch_size]
    command += ["--model", args.model, "--detector", args.detector, "--parser", args.parser, "--device", args.device]
    command += ["--timings", timings]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True)
    if done.returncode:
        log(f"{done.stdout}\n{done.stderr}")
        raise UserError(f"make_data.py failed with {processes} processes (exit code {done.returncode})")
    found = load_json(timings)
    log(f"{processes} processes, {workers} workers: {pictures_a_second(found):.1f}/s")
    return found


def pictures_a_second(timings: dict) -> float:
    return timings["pictures"] / max(process["all"] for process in timings["processes"])


def summarise(variant: Variant, runs: list[dict], alone: list[dict] | None) -> dict:
    """Medians over the rounds; `alone`: the same with one process."""

    def median_sum(key: str) -> float:
        return statistics.median(sum(process.get(key, 0) for process in run["processes"]) for run in runs)

    rate = statistics.median(map(pictures_a_second, runs))
    seconds = {stage: median_sum(stage) for stage in (*STAGES, "wait")}
    in_stages = sum(seconds[stage] for stage in STAGES)
    cpu = statistics.median(sum(process["cpu"] for process in run["processes"]) / run["pictures"] for run in runs)
    return {
        "processes": variant[0],
        "workers": variant[1],
        "pictures_a_second": rate,
        "speedup": rate / statistics.median(map(pictures_a_second, alone)) if alone else None,
        "cpu_seconds_a_picture": cpu,
        "seconds": seconds,
        "shares": {stage: seconds[stage] / in_stages for stage in STAGES},
        "waiting": seconds["wait"] / median_sum("all"),
        "runs": runs,
    }


if __name__ == "__main__":
    run_cli(main)

"""What make_data.py does in a second: processes, worker threads, and where the time goes.

    python research/benchmarks/data.py [--pictures 300] [--size 512] [--rounds 3] [--out data.json]
    python research/benchmarks/data.py --processes 1 2 4 8 --workers 0 2 --threads 1
    python research/benchmarks/data.py --photos photos --detector buffalo_l --parser facer --device cuda

Portraits are rendered to a temporary folder (or --photos are taken) and run through make_data.py as it is, each time
into an empty folder. Variants take turns, round by round, so that other load on the machine hits them alike; medians
are shown. Loading the models is not counted. By default each process has one thread for its models: what processes
add is compared at the same number of threads each. On a machine that is busy otherwise, the CPU time that a picture
takes says more than the speed: two processes on two free cores are 2 x as fast if it stays the same.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from feedface.common.errors import UserError, run_cli
from feedface.common.files import atomic_file
from feedface.synthetic.world import make_portraits

ROOT = Path(__file__).resolve().parents[2]
STAGES = ("read", "detect", "parse", "judge", "caption", "write")
CHUNK = 64  # portraits rendered at a time
RENDERED_PX = 96  # rendering takes longer than anything that is measured here


def main() -> None:
    args = read_arguments()
    variants = [(processes, workers) for workers in args.workers for processes in args.processes]
    result = {"command": sys.argv[1:], "machine": describe_machine(args), "variants": []}
    print("; ".join(f"{key} {value}" for key, value in result["machine"].items()), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        photos = args.photos or render(Path(temporary) / "photos", args.pictures, args.size)
        runs: dict[tuple[int, int], list[dict]] = {variant: [] for variant in variants}
        for number in range(args.rounds):
            for variant in variants:
                runs[variant].append(measure(args, photos, Path(temporary) / "out", *variant))
                rate = pictures_a_second(runs[variant][-1])
                print(f"round {number}: {variant[0]} processes, {variant[1]} workers: {rate:.1f}/s", file=sys.stderr)
    for variant in variants:
        result["variants"].append(summarise(variant, runs[variant], runs.get((1, variant[1]))))
    print_table(result["variants"])
    if args.out:
        with atomic_file(args.out) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
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
    args = parser.parse_args()
    if min(args.pictures, args.threads, args.rounds, args.batch_size, *args.processes) < 1 or min(args.workers) < 0:
        parser.error("counts must be at least 1, --workers at least 0")
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
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), str(ROOT / "make_data.py")]
    command += ["--data_folder", photos, "--out_folder", out, "--workers", workers, "--batch_size", args.batch_size]
    command += ["--model", args.model, "--detector", args.detector, "--parser", args.parser, "--device", args.device]
    command += ["--timings", timings]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        raise UserError(f"make_data.py failed with {processes} processes (exit code {done.returncode})")
    return json.loads(timings.read_text())


def pictures_a_second(timings: dict) -> float:
    return timings["pictures"] / max(process["all"] for process in timings["processes"])


def summarise(variant: tuple[int, int], runs: list[dict], alone: list[dict] | None) -> dict:
    """Medians over the rounds; `alone`: the same with one process."""
    rate = statistics.median(map(pictures_a_second, runs))
    seconds = {
        stage: statistics.median(sum(process.get(stage, 0) for process in run["processes"]) for run in runs)
        for stage in (*STAGES, "wait")
    }
    cpu = statistics.median(sum(process["cpu"] for process in run["processes"]) / run["pictures"] for run in runs)
    wall = statistics.median(sum(process["all"] for process in run["processes"]) for run in runs)
    return {
        "processes": variant[0],
        "workers": variant[1],
        "pictures_a_second": rate,
        "speedup": rate / statistics.median(map(pictures_a_second, alone)) if alone else None,
        "cpu_seconds_a_picture": cpu,
        "seconds": seconds,
        "shares": {stage: seconds[stage] / sum(seconds[stage] for stage in STAGES) for stage in STAGES},
        "waiting": seconds["wait"] / wall,
        "runs": runs,
    }


def print_table(variants: list[dict]) -> None:
    """Shares are of the time that all threads together spent in the stages; waiting is the main thread's."""
    print(
        "\n| processes | workers each | pictures/s | × 1 process | CPU ms a picture | "
        + " | ".join(STAGES)
        + " | models wait |"
    )
    print("| --- " * (6 + len(STAGES)) + "|")
    for row in variants:
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.2f}"
        shares = " | ".join(f"{row['shares'][stage]:.0%}" for stage in STAGES)
        print(
            f"| {row['processes']} | {row['workers']} | {row['pictures_a_second']:.1f} | {speedup} | "
            f"{1000 * row['cpu_seconds_a_picture']:.0f} | {shares} | {row['waiting']:.0%} |"
        )


def describe_machine(args: argparse.Namespace) -> dict[str, str]:
    """What the numbers depend on."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "pictures": str(args.photos) if args.photos else f"{args.pictures} of {args.size} px",
        "models": f"{args.detector}, {args.parser} on {args.device}, {args.threads} thread(s) a process",
        "cores": str(cores),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    run_cli(main)

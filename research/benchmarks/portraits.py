"""How fast portraits are rendered.

    python -m research.benchmarks.portraits [--sizes 64 128] [--seconds 10]

Renders in one process a core, one thread each, as `feedface.synthetic.world.write_world` does, and prints pictures/s.
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch

from feedface.common.errors import run_cli
from feedface.synthetic.world import render, sample_identities, sample_scenes

BATCH = 32


def render_for(seconds: float, size: int) -> float:
    """Pictures/s of this process, by itself, over about `seconds`."""
    torch.set_num_threads(1)
    people = torch.arange(BATCH)
    who, scenes = sample_identities(people), sample_scenes(people, people)
    render(who, scenes, size)
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        render(who, scenes, size)
        count += BATCH
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="sides in pixels (default 64 128)")
    parser.add_argument("--seconds", type=float, default=10, help="per size (default 10)")
    args = parser.parse_args()
    cores = os.cpu_count()
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        for size in args.sizes:
            speeds = list(pool.map(render_for, [args.seconds] * cores, [size] * cores))
            print(f"{size} px: {sum(speeds):.0f} pictures/s on {cores} cores ({', '.join(f'{s:.0f}' for s in speeds)})")


if __name__ == "__main__":
    run_cli(main)

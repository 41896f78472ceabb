"""How everything here is timed: variants take turns, so that other load on the machine hits them alike; medians count.

A row of results is {"seconds": […], "cpu_seconds": […]}, one of each a round: passed on the clock, and used by the CPU;
or {"out_of_memory": True}.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from feedface.common.errors import UserError

GIB = 2**30
ROOT = Path(__file__).resolve().parents[2]
Name = TypeVar("Name", bound=Hashable)


def log(line: str) -> None:
    """What a run is at, apart from its results."""
    print(line, file=sys.stderr, flush=True)


def synchronise(device: torch.device) -> None:
    """Wait until all that was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(action: Callable[[], object], device: torch.device, units: int = 1) -> tuple[float, float]:
    """Seconds on the clock and of the CPU that `action` takes for each of its `units`."""
    synchronise(device)
    begun = time.perf_counter(), time.process_time()
    action()
    synchronise(device)
    return (time.perf_counter() - begun[0]) / units, (time.process_time() - begun[1]) / units


def in_turns(actions: Mapping[Name, Callable[[int], Any]], rounds: int, warmup: int = 0) -> dict[Name, list]:
    """What each action returns in each round; it is called with the round's number, below 0 for those not counted.

    An action that does not fit into memory is left out from then on, and has None for its results.
    """
    found: dict[Name, list | None] = {name: [] for name in actions}
    for number in range(-warmup, rounds):
        for name, action in actions.items():
            if found[name] is None:
                continue
            try:
                result = action(number)
            except (torch.OutOfMemoryError, UserError) as error:
                if isinstance(error, UserError) and "out of memory" not in str(error):
                    raise
                found[name] = None
                continue
            if number >= 0:
                found[name].append(result)
    return found


def time_in_turns(
    actions: Mapping[Name, Callable[[int], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 0,
    units: int = 1,
) -> dict[Name, dict]:
    """A row for each action: what one of its `units` takes. Actions as for `in_turns`."""

    def timed(name: Name, action: Callable[[int], object]) -> Callable[[int], tuple[float, float]]:
        def run(number: int) -> tuple[float, float]:
            wall, cpu = seconds_of(lambda: action(number), device, units)
            log(f"{'warm-up' if number < 0 else f'round {number}'}, {name}: {wall:.3f} s, {cpu:.3f} s of CPU")
            return wall, cpu

        return run

    found = in_turns({name: timed(name, action) for name, action in actions.items()}, rounds, warmup)
    return {name: {"out_of_memory": True} if pairs is None else _row(pairs) for name, pairs in found.items()}


def _row(pairs: list[tuple[float, float]]) -> dict[str, list[float]]:
    return {"seconds": [wall for wall, _ in pairs], "cpu_seconds": [cpu for _, cpu in pairs]}


def median(row: Mapping[str, Any], key: str = "seconds") -> float | None:
    return statistics.median(row[key]) if row.get(key) else None


def ratio(first: Mapping[str, Any], row: Mapping[str, Any], key: str = "seconds") -> float | None:
    """How many times as long the first one took."""
    ours, theirs = median(row, key), median(first, key)
    return None if ours is None or theirs is None else theirs / ours


def written(row: Mapping[str, Any], form: str) -> str:
    """A row's median, or that there is none because it did not fit."""
    seconds = median(row)
    return f"{seconds:{form}}" if seconds is not None else "does not fit" * bool(row.get("out_of_memory"))


# -------------------------------------------------------------------------------------------------------------- memory


def in_own_process(module: str, arguments: Iterable[object]) -> dict:
    """The JSON line that `python -m MODULE ARGUMENTS` prints last; {"out_of_memory": True} when it is killed for it."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path))
    }  # also where all is not installed
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        return {"out_of_memory": True} if done.returncode == -9 else {"error": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def peak_gib(device: torch.device) -> float:
    """Most memory that this process, or its part of a GPU, has held."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    # macOS counts bytes, all others KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / GIB


# ------------------------------------------------------------------------------------------------------- command lines


def describe_machine(device: torch.device | None = None, **more: object) -> dict[str, str]:
    """What the numbers depend on; shown on stderr."""
    found = {name: str(value) for name, value in more.items()}
    if device is not None:
        threads = f"CPU, {torch.get_num_threads()} thread(s), {torch.backends.cpu.get_cpu_capability()}"
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
        found = {"device": name, **found}
    found |= {
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?",
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    log("; ".join(f"{key} {value}" for key, value in found.items()))
    return found


def check_least(parser: argparse.ArgumentParser, args: argparse.Namespace, **least: int) -> None:
    """A usage error for the first of these arguments that is (or holds) a smaller number."""
    for name, low in least.items():
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < low:
            parser.error(f"--{name} must be at least {low}")

"""Whether this CPU computes faster in bfloat16 than in float32: tried once on a machine, and kept.

With AMX matrix products are five times as fast, with AVX512-BF16 two and a half times; without either they are emulated
and up to a hundred times slower.
"""

import json
import os
import time
from functools import cache
from pathlib import Path

import torch

from feedface.common.files import atomic_file

WORTH_IT = 1.3  # how much faster it must be: pictures differ a little from float32's
EMULATED = ("DEFAULT", "AVX2")  # PyTorch's names of what a CPU without AVX-512 can do


@cache
def faster_in_bfloat16() -> bool:
    """The verdict of this machine's first trial, so that the same command goes on giving the same bits."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability in EMULATED:
        return False
    file = _cache_folder() / "bfloat16.json"
    machine = f"{capability}, AMX {torch.cpu._is_amx_tile_supported()}, torch {torch.__version__}"
    kept = _read(file)
    if machine not in kept:
        kept[machine] = speedup() > WORTH_IT
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(file) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        except OSError:
            pass  # a home that cannot be written to: tried again next time
    return kept[machine]


def speedup(width: int = 768, rows: int = 512, tries: int = 5) -> float:
    """How many times as fast a transformer's matrix product is in bfloat16; takes some 50 ms of one core."""
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(rows, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
        seconds.append(min(_seconds(x, weight) for _ in range(tries)))
    return seconds[0] / seconds[1]


def _seconds(x: torch.Tensor, weight: torch.Tensor) -> float:
    start = time.perf_counter()
    torch.nn.functional.linear(x, weight)
    return time.perf_counter() - start


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "feedface"


def _read(file: Path) -> dict[str, bool]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and all(isinstance(value, bool) for value in kept.values()) else {}

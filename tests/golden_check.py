"""Compute every array of a golden file with this project's classes, and compare:

    python tests/golden_check.py flashface FILE.npz
    python tests/golden_check.py adaface FILE.npz SHAPES.json

Prints each array's largest absolute difference and its tolerance, then the worst; exits with 1 beyond a tolerance, and
for an array that nothing here computes, unless a reason is known. A method's arrays are computed by `golden_METHOD.py`
beside this file; its `REASONS`, where it has any, say of the beginnings of names why these are not.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent

# (name, computed, tolerance) for each array.
Computed = Iterator[tuple[str, Tensor, float]]


def read(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the arrays of a golden file."""
    with np.load(file, allow_pickle=False) as content:
        arrays = {name: torch.from_numpy(np.array(content[name])) for name in content.files if name != "config"}
        config = json.loads(str(content["config"]))
    for name in ("buckets", "assignment"):  # of data, where a null stands for nothing
        if name in config:
            arrays[name] = torch.tensor([_flat(row) for row in config[name]])
    return config, arrays


def _flat(row: list) -> list[int]:
    """[w, h] as it is, [[w, h], [W, H] or null] -> [w, h, W, H], with -1 for null."""
    return row if isinstance(row[0], int) else [number for pair in row for number in pair or (-1, -1)]


def compare(
    computed: Computed, arrays: Mapping[str, Tensor], reasons: Mapping[str, str] | None = None
) -> tuple[list[str], bool]:
    """A line for each array, and whether all hold. `reasons`: by the beginning of a name, why it is not computed."""
    lines, good, worst, left = [], True, (0.0, ""), dict(arrays)
    for name, ours, tolerance in computed:
        theirs = left.pop(name).double()
        if ours.shape != theirs.shape:
            lines.append(f"{name}: shape {[*ours.shape]}, not {[*theirs.shape]}")
            good = False
            continue
        difference = float((ours.detach().double() - theirs).abs().max())
        within = difference <= tolerance  # NaN is not
        lines.append(f"{name}: {difference:.1e} of {tolerance:.0e}{'' if within else '  BEYOND'}")
        good &= within
        worst = max(worst, (difference / tolerance, name))
    for name in left:
        reason = next((why for start, why in (reasons or {}).items() if name.startswith(start)), None)
        lines.append(f"{name}: is not computed{f': {reason}' if reason else ''}")
        good &= reason is not None
    lines.append(f"worst: {worst[1]}, {worst[0]:.2f} of its tolerance; {len(arrays) - len(left)} arrays")
    return lines, good


def main(argv: list[str]) -> int:
    method, *files = argv or [""]
    known = Path(__file__).with_name(f"golden_{method}.py").is_file()
    if not known or len(files) not in (1, 2) or not all(Path(file).is_file() for file in files):
        print(__doc__, file=sys.stderr)
        return 2
    file, *others = files
    config, arrays = read(Path(file))
    shapes = [json.loads(Path(other).read_text()) for other in others]
    module = import_module(f"tests.golden_{method}")
    lines, good = compare(module.computed(config, arrays, *shapes), arrays, getattr(module, "REASONS", None))
    print("\n".join(lines))
    return 0 if good else 1


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "libs")]
    sys.exit(main(sys.argv[1:]))

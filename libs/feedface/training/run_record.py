"""What is written down about a run, and what is checked before one starts."""

import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ml_collections
from accelerate import Accelerator

from feedface import __version__
from feedface.data.dataset import check_broken
from feedface.errors import UserError
from feedface.files import atomic_file
from feedface.training.setup import build_models, build_store, check_config, make_accelerator

PACKAGES = ("torch", "accelerate", "transformers", "diffusers", "safetensors", "numpy")


def dry_run(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Check config, weights, records and disk, print what a run would need, and stop before the first step."""
    check_config(config)
    accelerator = make_accelerator(config, workdir)
    models = build_models(config, accelerator.device, accelerator.mixed_precision)
    store = build_store(config, models)
    paths = {path for r in store.records for path in (r.path, r.mask_path, *(ref.path for ref in r.ref))}
    missing = {str(path): "no such file" for path in sorted(paths) if not path.is_file()}
    check_broken(missing, config.data.max_broken)
    net = models.trained.face_controlnet
    trained = sum(p.numel() for p in net.trainable_parameters())
    weights = sum(p.numel() * p.element_size() for p in models.trained.parameters())
    checkpoint = checkpoint_bytes(trained, config.train.ema > 0)
    check_disk(workdir, checkpoint)
    samples = config.train.batch_size * config.train.accumulation * accelerator.num_processes
    with_others = sum(bool(record.ref) for record in store.records)
    print(config)
    print(f"records: {len(store.records)}, of which {with_others} list other pictures; files missing: {len(missing)}")
    print(f"trained parameters: {trained / 1e6:.1f} M at sites {', '.join(net.sites)}")
    print(f"memory: {(weights + 12 * trained) / 2**30:.2f} GiB for weights, gradients and optimizer, then activations")
    print(f"disk: {checkpoint * (config.checkpoint.keep + 1) / 2**30:.2f} GiB for checkpoints in {workdir}")
    print(f"steps: {config.train.steps} of {samples} samples on {accelerator.device}, {accelerator.mixed_precision}")
    return 0


def record_run(workdir: Path, config: ml_collections.ConfigDict, accelerator: Accelerator) -> None:
    """The resolved config, and what the run was made with, beside the checkpoints."""
    environment = {
        "command": sys.argv,
        "python": platform.python_version(),
        "packages": {"feedface": __version__, **{name: version(name) for name in PACKAGES}},
        "git": _git_revision(),
        "processes": accelerator.num_processes,
        "device": str(accelerator.device),
        "precision": accelerator.mixed_precision,
    }
    for name, content in (("config.json", json.loads(config.to_json())), ("environment.json", environment)):
        with atomic_file(workdir / name) as path:
            path.write_text(json.dumps(content, indent=1) + "\n")


def checkpoint_bytes(trained: int, ema: bool) -> int:
    """Size of a checkpoint with `trained` parameters: half-precision weights, and four to five float32 copies."""
    return trained * (2 + 4 * (3 + ema))


def check_disk(workdir: Path, needed: int) -> None:
    """`UserError` unless the disk of `workdir` has `needed` bytes free, and some to spare."""
    folder = workdir
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed * 1.1:
        raise UserError(
            f"{workdir}: {free / 2**30:.2f} GiB free, but one checkpoint takes {needed / 2**30:.2f} GiB; "
            f"make room or use another --workdir"
        )


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; lists become text, as trackers want it."""
    out = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return out


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Lines such as "train.lr 0.1 -> 0.2" for what differs between two flat configs."""
    keys = sorted(before.keys() | now.keys())
    return [f"{key} {before.get(key)} -> {now.get(key)}" for key in keys if before.get(key) != now.get(key)]


def _git_revision() -> str | None:
    folder = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None

"""`train.py --dry_run`: every file is checked and a step is measured, then it stops. Nothing is written."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import ml_collections
from accelerate import Accelerator

from feedface.common.progress import progress
from feedface.data.cache_shards import Items, Mirrored, as_kinds
from feedface.data.dataset import BrokenPicture, PictureStore, check_broken
from feedface.training.check import check_config
from feedface.training.data import build_store, cache_folder, mirrored_kinds
from feedface.training.frozen_predictions import prediction_bytes
from feedface.training.memory import check_batch
from feedface.training.profile_step import StepProfile, profile_step
from feedface.training.run_record import bytes_text, check_disk, checkpoint_bytes, existing
from feedface.training.setup import Models, build_models, make_accelerator, precision_of

# Bytes that an optimizer keeps for each trained number.
OPTIMIZER_BYTES = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
READERS = min(8, os.cpu_count() or 1)
BAR_FROM = 500  # records; fewer are done before a progress bar is of use


def dry_run(config: ml_collections.ConfigDict, workdir: Path) -> int:
    """Check config, weights, records and disk, print what a run would take, and stop before the first step.

    On several processes the first one does it alone. Raises `UserError` for what would stop the run.
    """
    check_config(config)
    accelerator = make_accelerator(config, workdir)
    if accelerator.is_main_process:
        _check_and_measure(config, workdir, accelerator)
    accelerator.end_training()
    return 0


def _check_and_measure(config: ml_collections.ConfigDict, workdir: Path, accelerator: Accelerator) -> None:
    print(config)
    models = build_models(config, accelerator.device, precision_of(config, accelerator))
    check_batch(config, models, accelerator.device)
    store = build_store(config, models)
    broken = check_records(store)
    with_others = int((store.records.refs > 0).sum())
    print(f"records: {len(store.records)}, of which {with_others} list other pictures; broken files: {len(broken)}")
    for path, reason in list(broken.items())[: config.data.max_broken]:
        print(f"  {reason if path in reason else f'{path}: {reason}'}")
    check_broken(broken, config.data.max_broken)

    cache = cache_folder(config, workdir)
    profile = profile_step(config, models, store, accelerator, cached=cache is not None)
    items = Items(store.records)
    trained = sum(p.numel() for p in models.trained.trained().values())
    sites = ", ".join(models.trained.method.config.get("sites", ()))
    print(f"trained parameters: {trained / 1e6:.1f} M{sites and f' at sites {sites}'}")
    print(memory_line(config, models, profile, accelerator, trained))
    needs = [(workdir / "checkpoints", _checkpoints(config) * checkpoint_bytes(trained, config.train.ema > 0))]
    if cache is not None:
        predictions = config.cache.get("draws_per_picture", 0) * len(store.records)
        kept = predictions * prediction_bytes(models.state_shapes["img"])
        needs.append((cache, cache_bytes(items, profile, mirrored_kinds(config)) + kept))
    for (folder, needed), what in zip(needs, ("checkpoints", "the feature cache"), strict=False):
        print(f"disk: {bytes_text(needed)} for {what} in {folder}")
    for line in time_lines(config, profile, accelerator.num_processes, len(items.pictures) if cache else 0):
        print(line)
    _check_disks(needs)


# -------------------------------------------------------------------------------------------------------------- checks


def check_records(store: PictureStore) -> dict[str, str]:
    """Decode every picture and mask of the records, and see that the pictures they list besides are there.

    Returns the files that cannot be used, with the reason.
    """
    rows = range(len(store.records))

    def check(row: int) -> None:
        for read in (store.image, store.masks):  # both, so that one run names all that is broken
            with suppress(BrokenPicture):
                read(row)

    pool = ThreadPoolExecutor(READERS)
    try:
        silent = len(rows) < BAR_FROM
        for _ in progress(pool.map(check, rows), total=len(rows), desc="checking", unit="record", disable=silent):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    own = {record.path for record in store.records}
    others = {ref.path for record in store.records for ref in record.ref} - own
    missing = {str(path): "no such file" for path in sorted(others) if not path.is_file()}
    return {**store.broken, **missing}


def _check_disks(needs: list[tuple[Path, int]]) -> None:
    """`UserError` unless each disk has room for what its folders are still to take."""
    by_disk: dict[int, list[tuple[Path, int]]] = {}
    for folder, needed in needs:
        there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        by_disk.setdefault(existing(folder).stat().st_dev, []).append((folder, max(0, needed - there)))
    for group in by_disk.values():
        check_disk(group[0][0], sum(needed for _, needed in group), "what this run still writes")


# ----------------------------------------------------------------------------------------------------------- estimates


def _checkpoints(config: ml_collections.ConfigDict) -> int:
    """How many lie on the disk at most: a new one is whole before the oldest is deleted."""
    every, keep, for_good = config.checkpoint.every, config.checkpoint.keep, config.checkpoint.keep_every
    most = keep + 1 + (config.train.steps // for_good if for_good else 0)
    return min(most, config.train.steps // every + 1)


def cache_bytes(items: Items, profile: StepProfile, mirrored: Mirrored) -> int:
    """Size of a feature cache of `items`; `mirrored` as for `FeatureCache.open`."""
    mirrored = as_kinds(mirrored)
    counts = {
        "pictures": (1 + ("pictures" in mirrored)) * len(items.pictures),
        "masks": len(items.pictures),
        "faces": (1 + ("faces" in mirrored)) * len(items.faces),
        "captions": len(items.captions),
    }
    return sum(count * profile.item_bytes[kind] for kind, count in counts.items())


def memory_line(
    config: ml_collections.ConfigDict, models: Models, profile: StepProfile, accelerator: Accelerator, trained: int
) -> str:
    """What a process needs in training: what was measured, and what the optimizer will add."""
    parts = {
        "weights": sum(p.numel() * p.element_size() for p in models.trained.parameters()),
        "gradients": 4 * trained,
        "optimizer": OPTIMIZER_BYTES[config.train.optimizer] * trained,
    }
    added = parts["optimizer"]
    if config.train.ema:
        parts["moving average"] = 4 * trained
        added += 4 * trained
    if accelerator.num_processes > 1:
        parts["gradients in exchange"] = 4 * trained  # DDP's buckets
        added += 4 * trained
    total = profile.peak + added
    cuda = accelerator.device.type == "cuda"
    parts["activations (measured)" if cuda else "activations and program (measured)"] = total - sum(parts.values())
    listed = ", ".join(f"{name} {value / 2**30:.2f}" for name, value in parts.items())
    return f"memory: {total / 2**30:.2f} GiB on {accelerator.device}: {listed}"


def time_lines(config: ml_collections.ConfigDict, profile: StepProfile, processes: int, to_cache: int) -> list[str]:
    """How long the run takes; `to_cache` pictures are encoded once, ahead; 0: every step encodes its own."""
    train, workers = config.train, config.data.workers
    samples = train.batch_size * train.accumulation
    encode_s, step_s = (train.accumulation * seconds for seconds in (profile.encode_s, profile.step_s))
    # Worker processes read while a step is computed; without them it waits.
    read_s = train.accumulation * profile.read_s / max(1, workers)
    on = f"on {processes} process{'es' if processes > 1 else ''}"
    lines = []
    if to_cache:
        views = 2 if config.data.flip else 1
        ahead = to_cache / train.batch_size * profile.encode_s * views / processes
        lines.append(f"time: {duration(ahead)} to encode {to_cache} pictures once, {on}")
        each, what = step_s, f"{step_s:.2g} s"
    else:
        compute = encode_s + step_s
        each = max(compute, read_s) if workers else compute + read_s
        what = f"{encode_s:.2g} s encoding (once for each picture with a cache) + {step_s:.2g} s"
        what += f", beside {read_s:.2g} s reading by {workers} workers" if workers else f" + {read_s:.2g} s reading"
    lines.append(f"time: a step of {samples} samples: {what}; {train.steps} steps {on}: {duration(train.steps * each)}")
    if config.log.samples_every:
        grids = train.steps * samples * processes // config.log.samples_every
        pictures = config.log.people * len(config.log.prompts)
        lines.append(f"time: besides, {grids} times a grid of {pictures} pictures, and the checkpoints")
    return lines


def duration(seconds: float) -> str:
    """Such as "12 s", "3.4 min", "26 h", "5.1 days"."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{seconds / 86400:.3g} days"

"""The trainings behind the claims: one face-controlnet from nothing each, by train.py, differing in one thing.

All start from the committed model's frozen parts and see the same number of samples of the same world.
"""

import subprocess
import sys
import time
from pathlib import Path

import ml_collections

from feedface.common.device import fast_bfloat16, pick_device
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.json_files import load_json
from feedface.common.progress import say
from feedface.data.records import read_records
from feedface.synthetic.train.common import ROOT, add_seconds
from feedface.synthetic.world import write_world
from research.reproduction.plan import FEWER_PEOPLE, SITES, Run, all_runs, checkpoint_folder
from research.results import store


def make_world(config: ml_collections.ConfigDict, workdir: Path, image_size: int) -> None:
    """The training portraits and, for `FEWER_PEOPLE`, lists of the records of the first so many people."""
    world = config.world
    folder = workdir / "world" / "train"
    write_world(folder, world.identities, world.per_identity, world.seed, image_size, world.first_identity)
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    records = read_records(folder / "records.jsonl")
    if len(lines) != len(records):
        raise UserError(f"{folder / 'records.jsonl'}: has empty lines; delete {folder} and run again")
    for people in FEWER_PEOPLE:
        known = list(dict.fromkeys(record.identity for record in records))[:people]
        kept = [line for line, record in zip(lines, records, strict=True) if record.identity in known]
        with atomic_file(records_file(workdir, people)) as path:
            path.write_text("".join(kept), encoding="utf-8")


def records_file(workdir: Path, people: int | None) -> Path:
    return workdir / "world" / "train" / ("records.jsonl" if people is None else f"records_{people}.jsonl")


def train(run: Run, config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train `run` to its end with configs/mini_face.py changed where the run differs; goes on where it was stopped."""
    settings, folder = config.train, workdir / "runs" / run.name
    if (checkpoint_folder(workdir, run.name, settings.samples, config) / "model_index.json").exists():
        return
    every = settings.measured_at[0] // settings.batch_size
    changes = {
        "seed": run.seed,
        "model": config.model,
        "face_encoder": config.model,
        "control.sites": SITES[run.sites],
        "control.mlp_ratio": settings.mlp_ratio,
        "control.control_input": run.control_input,
        "data.records": f"('{records_file(workdir, run.people)}',)",
        "cache.dir": workdir / ("features" if run.people is None else f"features_{run.people}"),
        "loss.kind": run.loss,
        # The paper's mask, of which the claims are; the miniature's own recipe departs from it.
        "data.hair_in_mask": 0.75,
        "loss.mask_margin": 0.0,
        "loss.min_snr": 0.0 if run.alike else settings.min_snr,
        "train.steps": settings.samples // settings.batch_size,
        "train.batch_size": settings.batch_size,
        "train.lr": settings.lr,
        "train.schedule": "constant",  # so that a checkpoint on the way is what a shorter run would have ended with
        "train.warmup_steps": settings.warmup_steps,
        "train.ema": settings.ema,
        "train.precision": "bf16" if fast_bfloat16(pick_device()) else "no",
        "checkpoint.every": every,
        "checkpoint.keep": 1,
        "checkpoint.keep_every": every,
        "log.samples_every": 0,
    }
    command = [sys.executable, ROOT / "train.py", f"--config={ROOT / 'configs' / 'mini_face.py'}"]
    command += [f"--workdir={folder}", *(f"--config.{key}={value}" for key, value in changes.items())]
    say(f"run {run.name}")
    begun = time.monotonic()
    code = subprocess.run(command, cwd=ROOT).returncode
    add_seconds(folder, time.monotonic() - begun)
    if code:
        raise UserError(f"run {run.name}: train.py ended with exit code {code}; the same command goes on from there")


def write_cost(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Put what the trainings and measurements took into `workdir/results/cost.json`."""
    files = [workdir / "runs" / run.name / "seconds.json" for run in all_runs(config)]
    training = [load_json(file) for file in files if file.is_file()]
    results = [load_json(file) for file in sorted((workdir / "results").glob("*.json"))]
    drawing = sum(result.get("seconds", 0) for result in results if "measurement" in result)
    cost = {"trainings": len(training), "training_hours": sum(training) / 3600, "measuring_hours": drawing / 3600}
    store(workdir / "results" / "cost.json", {key: round(value, 2) for key, value in cost.items()})

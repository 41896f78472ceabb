"""Two processes (gloo) do what one does: same samples, same loss; and one goes on where two were stopped."""

import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from tests.test_stable_diffusion import Toy
from tests.toy import make_toy_bundle
from tests.toy_records import make_records
from torch.nn.parallel import DistributedDataParallel

from feedface.data.draws import DrawSettings, draw
from feedface.training.engine import Engine

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
STEPS = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    return [
        "--config=configs/mini_face.py",
        f"--config.model={make_toy_bundle(folder / 'bundle')}",
        f"--config.data.records=('{make_records(folder / 'records')}',)",
        f"--config.train.steps={STEPS}",
        "--config.train.lr=0.01",
        "--config.data.max_faces=2",
        "--config.log.every=1",
        "--config.log.trackers=('tensorboard',)",
        "--config.checkpoint.every=5",
        "--config.checkpoint.keep=10",
        "--config.log.samples_every=0",
    ]


def train(processes, *arguments, script="train.py", **environment):
    launcher = [sys.executable]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    done = subprocess.run(
        [*launcher, str(ROOT / script), *map(str, arguments)],
        cwd=ROOT, env=ENVIRONMENT | environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(workdir):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    by_step = {}
    for folder in sorted({path.parent for path in (workdir / "logs").rglob("events.*")}):
        events = EventAccumulator(str(folder)).Reload()
        if "train/loss" in events.Tags()["scalars"]:
            by_step |= {event.step: event.value for event in events.Scalars("train/loss")}
    return [by_step[step] for step in range(1, STEPS + 1)]


def weights(workdir, step):
    state = torch.load(workdir / "checkpoints" / f"{step:08d}" / "training" / "state.pt", weights_only=True)
    return state["weights"]


def samples_seen(workdir):
    return json.loads((workdir / "checkpoints" / "last" / "training" / "progress.json").read_text())["samples"]


def test_a_closed_engine_has_let_go_of_ddp():
    """DDP's reducer must not be the last to hold gloo's group: its end would wait for itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        engine = Engine.__new__(Engine)
        engine.accelerator = Accelerator(cpu=True)
        engine.model = DistributedDataParallel(torch.nn.Linear(1, 1))
        engine.accelerator._models.append(engine.model)  # as `prepare` does
        held = weakref.ref(engine.model)
        engine.close()
        assert held() is None
    finally:
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cache", "draws"), [("features", 0), ("", 0), ("features", 3)], ids=["cached", "pictures", "few draws"]
)
def test_two_processes_of_four_equal_one_of_eight(world, tmp_path, cache, draws):
    def arguments(name, batch):
        cached = f"--config.cache.dir={tmp_path / name / cache}" if cache else "--config.cache.enabled=False"
        cached = [cached, f"--config.cache.draws_per_picture={draws}"]
        return [*world, *cached, f"--workdir={tmp_path / name}", f"--config.train.batch_size={batch}"]

    train(1, *arguments("one", 8))
    out = train(2, *arguments("two", 4))
    assert json.loads((tmp_path / "two" / "environment.json").read_text())["processes"] == 2
    assert samples_seen(tmp_path / "one") == samples_seen(tmp_path / "two") == 8 * STEPS
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    difference = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    print(f"largest relative difference of {STEPS} losses: {difference:.1e}")
    assert difference < 1e-5
    assert max(one) > 1.05 * min(one)  # something was learned, so equal curves mean something
    a, b = weights(tmp_path / "one", STEPS), weights(tmp_path / "two", STEPS)
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)
    assert out.count("going on") == 0

    # Stopped at step 10 by losing the later checkpoints; going on with one process instead of two.
    for step in range(15, STEPS + 1, 5):
        (tmp_path / "two" / "checkpoints" / f"{step:08d}").rename(tmp_path / f"lost-{step}")
    out = train(1, *arguments("two", 8))
    assert "the last checkpoint is gone" in out and "00000010" in out
    again = losses(tmp_path / "two")
    assert max(abs(a - b) / a for a, b in zip(one, again, strict=True)) < 1e-5


@pytest.mark.slow
def test_broken_files_of_all_processes_are_listed_and_counted(world, tmp_path):
    """Each process meets one of two broken masks; both are in the list, and both count."""
    records = make_records(tmp_path / "records")
    rows = [
        draw(DrawSettings(1234, {"img": (4, 8, 8), "clip_img": (1, 16)}), sample, 1, [2] * 12).row for sample in (0, 4)
    ]
    broken = [f"{tmp_path}/records/masks/{row // 3}_{row % 3}.png" for row in rows]
    for file in broken:
        Path(file).unlink()

    def arguments(name, most):
        records_flag = f"--config.data.records=('{records}',)"
        flags = (
            records_flag,
            "--config.cache.enabled=False",
            "--config.train.steps=1",
            f"--config.data.max_broken={most}",
        )
        rest = [flag for flag in world if "data.records" not in flag]  # given twice, both would be read
        return [*rest, *flags, f"--workdir={tmp_path / name}", "--config.train.batch_size=4"]

    out = train(2, *arguments("run", 2))
    assert json.loads((tmp_path / "run" / "broken.json").read_text()).keys() == set(broken)
    assert out.count("2 broken files were passed over") == 1
    with pytest.raises(AssertionError, match=r"error: 2 files cannot be used, more than data\.max_broken=1"):
        train(2, *arguments("fewer", 1))
    assert json.loads((tmp_path / "fewer" / "broken.json").read_text()).keys() == set(broken)
    assert not (tmp_path / "fewer" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "zero2"])
def test_sharded_run_is_the_same(world, tmp_path, kind):
    """Over two processes: the same losses as in one process, and checkpoints that either goes on from."""
    if kind == "zero2":
        pytest.importorskip("deepspeed", reason="pip install deepspeed==0.19.8 (not among the requirements)")

    def arguments(name, batch, *more):
        cached = f"--config.cache.dir={tmp_path / 'features'}"
        steps = ("--config.train.accumulation=2", "--config.train.grad_clip=0.03")  # clips every step
        return [*world, cached, *steps, f"--workdir={tmp_path / name}", f"--config.train.batch_size={batch}", *more]

    sharded = {"script": "tests/forced_launch.py", "FORCED": kind}
    train(1, *arguments("one", 4))
    train(2, *arguments("two", 2), **sharded)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    difference = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    print(f"largest relative difference of {STEPS} losses: {difference:.1e}")
    assert difference < 1e-5
    a, b = weights(tmp_path / "one", STEPS), weights(tmp_path / "two", STEPS)
    assert all(a[name].shape == b[name].shape and torch.allclose(a[name], b[name], atol=2e-4) for name in a)

    # Half of each by the other kind of launch.
    for name in ("one", "two"):
        for step in (15, 20):
            (tmp_path / name / "checkpoints" / f"{step:08d}").rename(tmp_path / f"{name}-{step}")
    assert "going on from" in train(2, *arguments("one", 2), **sharded)
    assert "going on from" in train(1, *arguments("two", 4))
    for name in ("one", "two"):
        again = losses(tmp_path / name)
        assert max(abs(a - b) / a for a, b in zip(one, again, strict=True)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_method_that_changes_the_backbone_runs_the_same(tmp_path, kind):
    """FlashFace trains both networks, on pictures that are dealt by their size: in two processes as in one."""
    Toy(tmp_path).save_folder(tmp_path / "model")
    described = tmp_path / "model" / "unet" / "config.json"
    described.write_text(json.dumps({**json.loads(described.read_text()), "sample_size": 16}))
    records = make_records(tmp_path / "records", people=8, size=128)

    def arguments(name, batch):
        return [
            "--config=configs/mini_flashface.py:both",
            f"--config.model={tmp_path / 'model'}",
            f"--config.data.records=('{records}',)",
            "--config.data.buckets=True",
            "--config.cache.enabled=False",
            "--config.control.reference_px=64",
            "--config.control.reference_latent=sample",
            f"--config.train.steps={STEPS}",
            f"--config.train.batch_size={batch}",
            "--config.train.warmup_steps=0",
            "--config.log.every=1",
            "--config.checkpoint.every=10",
            "--config.checkpoint.keep=10",
            "--config.log.samples_every=0",
            f"--workdir={tmp_path / name}",
        ]

    spread = {} if kind == "ddp" else {"script": "tests/forced_launch.py", "FORCED": kind}
    train(1, *arguments("one", 4))
    train(2, *arguments("two", 2), **spread)
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    difference = max(abs(a - b) / a for a, b in zip(one, two, strict=True))
    print(f"{kind}: largest relative difference of {STEPS} losses: {difference:.1e}")
    assert difference < 1e-4
    a, b = weights(tmp_path / "one", STEPS), weights(tmp_path / "two", STEPS)
    assert {name.partition(".")[0] for name in a} == {"backbone", "refnet"}
    assert a.keys() == b.keys()
    assert all(a[name].shape == b[name].shape and torch.allclose(a[name], b[name], atol=5e-4) for name in a)

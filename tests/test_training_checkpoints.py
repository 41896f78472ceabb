"""What checkpoints survive: damage of every kind, pruning, disks without links, folders behind links, old formats."""

import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.test_training import fresh_accelerate, make_config, stop_at, weights, world  # noqa: F401

from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.common.errors import UserError
from feedface.inference.model_files import load_model
from feedface.training import manifest
from feedface.training import state as module
from feedface.training.manifest import PROGRESS
from feedface.training.resume import check_state
from feedface.training.state import STATE, Progress, load_newest, newest_checkpoint, prune_checkpoints, save_checkpoint
from feedface.training.tracking import Diverged, Tracker
from feedface.training.trainer import train

CPU = torch.device("cpu")


@pytest.fixture
def saved(world, tmp_path):  # noqa: F811
    """Writes checkpoints of given steps into a workdir, without training."""

    def save(*steps, workdir=tmp_path / "run"):
        for step in steps:
            net = {"weight": torch.full((3, 5), float(step))}
            state = {"weights": net, "optimizer": {"name": "adamw", "state": {}}, "scaler": None, "ema": None}
            base = world.base
            save_checkpoint(
                workdir, Progress(step, 4 * step), base, "feedface", {"mlp_ratio": 5}, net, state, {"seed": 1}
            )
        return workdir

    return save


def names(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").glob("0*"))


def flip_bit(file: Path, at: int) -> None:
    content = bytearray(file.read_bytes())
    content[at // 8] ^= 1 << at % 8
    file.write_bytes(content)


def rewrite(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


# ------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", [STATE, PROGRESS, "feedface/model.safetensors", "model_index.json"])
def test_every_flipped_bit_is_found(saved, name, capsys):
    workdir = saved(1, 2)
    file = workdir / "checkpoints" / "00000002" / name
    whole = file.read_bytes()
    for at in np.random.default_rng(0).integers(0, 8 * len(whole), 25):
        flip_bit(file, int(at))
        found = load_newest(workdir)
        assert found.folder.name == "00000001" and found.damaged == (file.parents[name.count("/")],)
        file.write_bytes(whole)
    assert "00000002: not a whole checkpoint (" in capsys.readouterr().out
    assert load_newest(workdir).folder.name == "00000002"


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("samples"),
        lambda content: content.pop("files"),
        lambda content: content.update(step="two"),
        lambda content: content.update(step=-1),
        lambda content: content.update(samples=2.5),
        lambda content: content.update(config=[]),
        lambda content: content.update(files={STATE: None}),
        lambda content: content.update(files=[STATE]),
        lambda content: content.update(sha256={STATE: 7}),
        lambda content: content.update(sha256={STATE: "0" * 64}),
        lambda content: content["sha256"].pop("model_index.json"),
        lambda content: content.update(samples=9),
    ],
)
def test_wrong_types_and_missing_keys_are_damage(saved, change):
    workdir = saved(1, 2)
    rewrite(workdir / "checkpoints" / "00000002" / PROGRESS, change)
    lines = []
    assert load_newest(workdir, lines.append).folder.name == "00000001"
    assert len(lines) == 1 and "00000002: not a whole checkpoint" in lines[0]


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "null", '"x"', "[" * 10**5, '{"step": ' + "9" * 5000 + "}", "\x00\xff"]
)
def test_a_progress_file_of_anything(saved, text):
    workdir = saved(1, 2)
    (workdir / "checkpoints" / "00000002" / PROGRESS).write_text(text)
    assert load_newest(workdir, print).folder.name == "00000001"
    assert newest_checkpoint(workdir).name == "00000001"


@pytest.mark.parametrize("name", [STATE, PROGRESS, "model_index.json"])
@pytest.mark.parametrize("kind", ["pipe", "endless"])
def test_what_is_no_file_is_neither_waited_for_nor_read_whole(saved, name, kind):
    workdir = saved(1, 2)
    file = workdir / "checkpoints" / "00000002" / name
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.touch()
        os.truncate(file, 1 << 40)  # takes no room on the disk
    assert load_newest(workdir).folder.name == newest_checkpoint(workdir).name == "00000001"


WHOLE = {"weights": {"a": torch.zeros(2)}, "optimizer": {"state": {}}, "scaler": None, "ema": None}


@pytest.mark.parametrize(
    "content",
    [
        [],
        None,
        torch.zeros(2),
        {},
        WHOLE | {"weights": [torch.zeros(2)]},
        WHOLE | {"weights": {"a": 1}},
        WHOLE | {"weights": {1: torch.zeros(2)}},
        WHOLE | {"scaler": 1},
        WHOLE | {"ema": [torch.zeros(3)]},
        WHOLE | {"ema": [1]},
        WHOLE | {"ema": 7},
        WHOLE | {"optimizer": None},
        WHOLE | {"optimizer": {}},
        WHOLE | {"optimizer": {"state": {3: {}, 4: {"exp_avg": torch.zeros(2)}}}},
        WHOLE | {"optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
        WHOLE | {"optimizer": {"state": {0: {"exp_avg": "x"}}}},
        WHOLE | {"optimizer": {"state": {0: 1}}},
    ],
)
def test_a_state_of_anything_is_damage(saved, content):
    """Of a workdir without checksums: with them, only what training wrote passes."""
    workdir = saved(1, 2)
    file = workdir / "checkpoints" / "00000002" / STATE
    torch.save(content, file)

    def as_before(progress):
        progress.pop("sha256")
        progress["files"][STATE] = file.stat().st_size

    rewrite(workdir / "checkpoints" / "00000002" / PROGRESS, as_before)
    lines = []
    assert load_newest(workdir, lines.append, check_state).folder.name == "00000001"
    assert f"{STATE} does not hold what training saves" in lines[0]


def test_going_on_from_a_workdir_without_checksums(world, tmp_path, capsys):  # noqa: F811
    """As they were before: no checksums, settings of the optimizer in its state, no name of it."""
    assert train(make_config(world, **{"train.steps": 4}), tmp_path / "whole") == 0
    stop_at(2)(lambda: train(make_config(world), tmp_path / "run"))
    folder = tmp_path / "run" / "checkpoints" / "00000002"
    state = torch.load(folder / STATE, weights_only=True)
    del state["optimizer"]["name"]
    state["optimizer"]["param_groups"] = [{"lr": 9.0, "weight_decay": 9.0, "betas": (0, 0), "params": [0]}]
    torch.save(state, folder / STATE)

    def as_before(progress):
        progress.pop("sha256")
        progress["files"][STATE] = (folder / STATE).stat().st_size

    rewrite(folder / PROGRESS, as_before)
    shutil.copytree(tmp_path / "run", tmp_path / "flipped", symlinks=True)
    assert train(make_config(world), tmp_path / "run") == 0
    assert "going on from" in capsys.readouterr().out
    a, b = weights(tmp_path / "whole")[0], weights(tmp_path / "run")[0]
    assert all(torch.equal(a[name], b[name]) for name in a)
    # A flipped bit is found here too: the zip file has checksums of its own.
    file = tmp_path / "flipped" / "checkpoints" / "00000002" / STATE
    flip_bit(file, 8 * (file.stat().st_size // 2))
    with pytest.raises(UserError, match="none of its 1 checkpoints is whole"):
        train(make_config(world), tmp_path / "flipped")


def test_a_state_that_would_run_code_is_not_loaded(saved, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    workdir = saved(1, 2)
    folder = workdir / "checkpoints" / "00000002"
    torch.save({"weights": Evil()}, folder / STATE)

    def as_before(progress):
        progress.pop("sha256")
        progress["files"][STATE] = (folder / STATE).stat().st_size

    rewrite(folder / PROGRESS, as_before)
    assert load_newest(workdir, print).folder.name == "00000001" and not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------------ pruning


def test_pruning_keeps_the_last_and_every_mth(saved):
    workdir = saved(*range(10, 100, 10))
    prune_checkpoints(workdir, keep=2, keep_every=30)
    assert names(workdir) == [30, 60, 80, 90]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_checkpoints_go_and_do_not_count(saved, keep):
    workdir = saved(4, 6, 8, 10, 12)
    checkpoints = workdir / "checkpoints"
    (checkpoints / "00000008" / STATE).unlink()
    (checkpoints / "00000010" / PROGRESS).write_text("{")
    flip_bit(checkpoints / "00000012" / STATE, 3000)  # its size is right
    found = load_newest(workdir)
    assert found.folder.name == "00000006"
    saved(7, workdir=workdir)
    prune_checkpoints(workdir, keep, written=checkpoints / "00000007", damaged=found.damaged)
    assert names(workdir) == [6, 7][-keep:]
    assert load_newest(workdir).folder.name == "00000007"


def test_what_never_was_a_checkpoint_stays(saved):
    workdir = saved(1, 2, 3)
    for name in ("00000099", "7", "notes", "²"):
        (workdir / "checkpoints" / name).mkdir()
        (workdir / "checkpoints" / name / "mine.txt").write_text("x")
    prune_checkpoints(workdir, keep=2)
    assert names(workdir) == [2, 3, 99]
    assert all((workdir / "checkpoints" / name / "mine.txt").exists() for name in ("7", "notes", "²"))
    assert newest_checkpoint(workdir).name == "00000003"


def test_a_disk_that_does_not_answer_is_no_damage(saved, monkeypatch):
    workdir = saved(1, 2, 3)
    original = Path.read_bytes

    def read(self):
        if "00000002" in str(self):
            raise OSError(5, "Input/output error", str(self))
        return original(self)

    monkeypatch.setattr(Path, "read_bytes", read)
    prune_checkpoints(workdir, keep=1)
    assert names(workdir) == [2, 3]


def test_a_run_past_damaged_checkpoints_keeps_what_it_writes(world, tmp_path):  # noqa: F811
    kept = {"checkpoint.every": 1, "checkpoint.keep": 2}
    assert train(make_config(world, **kept, **{"train.steps": 3}), tmp_path) == 0
    flip_bit(tmp_path / "checkpoints" / "00000003" / STATE, 20000)
    every = {**kept, "checkpoint.every": 2}  # so that the damaged one is not written again
    assert train(make_config(world, **every, **{"train.steps": 4}), tmp_path) == 0
    assert names(tmp_path) == [2, 4]


# --------------------------------------------------------------------------------------------- links, and being a model


def refuse(self, target, target_is_directory=False):
    raise OSError(1, "Operation not permitted", str(self))


def test_a_disk_without_symbolic_links(world, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setattr(Path, "symlink_to", refuse)
    config = make_config(world, **{"train.steps": 2, "checkpoint.every": 1})
    assert train(config, tmp_path) == 0
    last = tmp_path / "checkpoints" / "last"
    assert last.is_file() and last.read_text() == "00000002\n"
    assert read_index(last).path.name == "00000002"
    assert load_bundle(last).name == "base, step 2"
    assert load_model(last, None, CPU, torch.float32).name == "base, step 2"
    for ckpt in (last, last / "feedface"):
        assert load_model(world.full, ckpt, CPU, torch.float32).method is not None
    # Training goes on from it as a model, and in the same workdir.
    further = make_config(world, **{"model": str(last), "face_encoder": str(last), "train.steps": 1})
    assert train(further, tmp_path / "further") == 0
    shutil.rmtree(tmp_path / "checkpoints" / "00000002")
    assert train(config, tmp_path) == 0
    assert "00000002: the last checkpoint is gone" in capsys.readouterr().out


def test_a_workdir_behind_a_symbolic_link(world, tmp_path):  # noqa: F811
    (tmp_path / "disk" / "deep" / "down").mkdir(parents=True)
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "deep" / "down")
    assert train(make_config(world, **{"train.steps": 1}), tmp_path / "run" / "a") == 0
    for workdir in (tmp_path / "run" / "a", tmp_path / "disk" / "deep" / "down" / "a"):
        assert load_bundle(workdir / "checkpoints" / "last").vae is not None


def test_a_checkpoint_that_is_no_model_is_noticed_at_the_first_save(world, tmp_path, monkeypatch):  # noqa: F811
    def wrong(path, base, own, name):
        original(path, base, own, name)
        rewrite(path / "model_index.json", lambda index: index["components"].update(vae="../nowhere"))

    original = module.write_derived_index
    monkeypatch.setattr(module, "write_derived_index", wrong)
    config = make_config(world, **{"train.steps": 5, "checkpoint.every": 2})
    with pytest.raises(UserError, match=r"00000002: is saved, and training can go on .*no whole model: .*nowhere"):
        train(config, tmp_path)
    assert load_newest(tmp_path).progress.step == 2


# ---------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("told_to_stop", [True, False])
def test_a_run_that_is_told_to_stop_saves_before_it_judges(world, tmp_path, monkeypatch, told_to_stop):  # noqa: F811
    config = make_config(world, **{"train.steps": 3, "checkpoint.every": 3})
    assert train(make_config(world, **{"train.steps": 1}), tmp_path) == 0
    original = Tracker.report

    def alarm(self, step, lr):
        original(self, step, lr)
        if step == 3:
            raise Diverged("the loss rose")

    monkeypatch.setattr(Tracker, "report", alarm)
    with pytest.raises(UserError, match=r"the loss rose at step 3; the last good checkpoint is .*00000001"):
        if told_to_stop:
            stop_at(3)(lambda: train(config, tmp_path))
        else:
            train(config, tmp_path)
    assert names(tmp_path) == ([1, 3] if told_to_stop else [1])


# --------------------------------------------------------------------------------------------------------------- disks


@pytest.mark.parametrize("after", [0, 20_000])
def test_a_disk_that_fills_up_while_saving(world, tmp_path, monkeypatch, after):  # noqa: F811
    assert train(make_config(world, **{"train.steps": 1}), tmp_path) == 0
    written = []

    def write(self, data):
        written.append(len(data))
        if sum(written) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    original = manifest._Hashing.write
    monkeypatch.setattr(manifest._Hashing, "write", write)
    with pytest.raises(OSError, match=r"No space left on device: .*00000002") as caught:
        train(make_config(world, **{"train.steps": 2}), tmp_path)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == [1] and not list((tmp_path / "checkpoints").glob(".*"))
    assert load_newest(tmp_path).progress.step == 1

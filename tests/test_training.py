"""Training runs: exact resuming, what a checkpoint is worth, and what stops a run."""

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from configs import mini_face
from safetensors.torch import load_file, save_file
from tests.toy import CLIP_CONFIG, make_toy_bundle
from tests.toy_records import make_records

from feedface.checkpoints.bundle import load_bundle, read_index, write_index
from feedface.common.errors import UserError
from feedface.training import trainer
from feedface.training.check import check_config
from feedface.training.state import locked, newest_checkpoint
from feedface.training.trainer import train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A toy bundle without face-controlnet, a face encoder's folder, and records."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("world")
    full = make_toy_bundle(folder / "full")
    parts = {kind: str(path.resolve()) for kind, path in read_index(full).components.items()}
    (folder / "base").mkdir()
    del parts["method"]
    write_index(folder / "base", name="base", image_size=64, components=parts)
    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(**CLIP_CONFIG)).save_pretrained(folder / "face_encoder")
    return SimpleNamespace(
        full=full, base=folder / "base", face_encoder=folder / "face_encoder", records=make_records(folder / "records")
    )


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps what it was made with for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def make_config(world, **changes):
    config = mini_face.get_config()
    config.model = str(world.base)
    config.face_encoder = str(world.face_encoder)
    config.control.sites = ("in_blocks.0", "out_blocks.0")
    config.data.records = (str(world.records),)
    config.cache.dir = ""
    config.train.steps, config.train.batch_size, config.train.lr, config.train.warmup_steps = 4, 4, 1e-2, 2
    config.checkpoint.every, config.log.every, config.log.trackers, config.log.samples_every = 100, 1, (), 0
    config.update_from_flattened_dict(changes)
    return config.lock()


def weights(workdir):
    state = torch.load(workdir / "checkpoints" / "last" / "training" / "state.pt", weights_only=True)
    return state["weights"], state


@pytest.mark.parametrize(("cached", "draws"), [(True, 0), (False, 0), (True, 3)])
def test_resumed_run_equals_an_unbroken_one_to_the_bit(world, tmp_path, cached, draws):
    changes = {
        "cache.enabled": cached,
        "cache.draws_per_picture": draws,
        "train.steps": 20,
        "data.max_faces": 2,
        "train.accumulation": 1 + cached,
    }
    whole = make_config(world, **changes)
    assert train(whole, tmp_path / "whole") == 0
    # Half of the run under the schedule of the whole, as if it were stopped there.
    stop_at(10)(lambda: train(make_config(world, **changes), tmp_path / "parts"))
    assert (tmp_path / "parts/checkpoints/last").resolve().name == "00000010"
    assert train(make_config(world, **changes), tmp_path / "parts") == 0

    (a, state_a), (b, state_b) = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert all(torch.equal(x, y) for x, y in zip(state_a["ema"], state_b["ema"], strict=True))
    moments = [state["optimizer"]["state"] for state in (state_a, state_b)]
    assert all(torch.equal(moments[0][i]["exp_avg_sq"], moments[1][i]["exp_avg_sq"]) for i in moments[0])


def stop_at(step):
    """Send this process SIGTERM when a run has done `step` steps."""

    def call(run):
        original = trainer.Trainer._step

        def counted(self, *arguments):
            original(self, *arguments)
            if self.progress.step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        trainer.Trainer._step = counted
        try:
            assert run() == 128 + signal.SIGTERM
        finally:
            trainer.Trainer._step = original

    return call


def test_run_reports_and_its_checkpoint_is_a_model(world, tmp_path):
    config = make_config(
        world, **{"train.steps": 40, "train.batch_size": 16, "log.trackers": ("tensorboard",), "checkpoint.every": 15}
    )
    before = {p: p.read_bytes() for p in world.base.parent.rglob("*.safetensors")}
    reports = []
    original = trainer.Tracker.report

    def noted(self, step, lr):
        reports.append(original(self, step, lr))
        return reports[-1]

    trainer.Tracker.report = noted
    try:
        assert train(config, tmp_path) == 0
    finally:
        trainer.Tracker.report = original
    assert reports[0]["loss_background"] < 1e-6 and reports[0]["grad_norm"] > 0
    assert all(p.read_bytes() == content for p, content in before.items())

    # keep=2 of 15, 30, 40
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["00000030", "00000040", "last"]
    bundle = load_bundle(tmp_path / "checkpoints" / "last")
    assert bundle.name == "base, step 40"
    state = weights(tmp_path)[1]
    trained = dict(bundle.method.trained_parameters(bundle.backbone))
    for value, average in zip(trained.values(), state["ema"], strict=True):
        assert torch.allclose(value, average, atol=1e-3)
    encoder = load_file(world.face_encoder / "model.safetensors")
    stored = bundle.method.face_encoder.state_dict()
    assert sum(v.numel() for v in encoder.values()) == sum(v.numel() for v in stored.values())
    assert list((tmp_path / "logs").rglob("events.*"))
    assert json.loads((tmp_path / "config.json").read_text())["train"]["steps"] == 40
    assert train(config, tmp_path) == 0  # done already


def test_bfloat16_keeps_trained_weights_in_float32(world, tmp_path):
    assert train(make_config(world, **{"train.precision": "bf16", "train.steps": 3}), tmp_path) == 0
    trained, _ = weights(tmp_path)
    assert {value.dtype for value in trained.values()} == {torch.float32}
    # Values that bfloat16 could not hold: the weights were not rounded on their way.
    assert any((value != value.bfloat16().float()).any() for value in trained.values())


def test_going_on_from_a_bundles_own_controlnet(world, tmp_path):
    config = make_config(world, **{"model": str(world.full), "face_encoder": "", "train.steps": 1, "train.lr": 0.0})
    assert train(config, tmp_path) == 0
    bundle = load_bundle(world.full, components=["backbone", "method"])
    own = dict(bundle.method.trained_parameters(bundle.backbone))
    trained, _ = weights(tmp_path)
    assert all(torch.equal(own[name], trained[name]) for name in own)


def test_nan_stops_and_names_the_last_good_checkpoint(world, tmp_path):
    assert train(make_config(world, **{"train.steps": 2}), tmp_path) == 0
    config = make_config(world, **{"train.steps": 6, "log.every": 50, "train.lr": float("inf")})
    with pytest.raises(UserError, match=r"not finite.*checkpoints/00000002"):
        train(config, tmp_path)
    assert newest_checkpoint(tmp_path).name == "00000002"


def test_damaged_and_lost_checkpoints_are_passed_over(world, tmp_path, capsys):
    kept = {"checkpoint.every": 1, "checkpoint.keep": 5}
    assert train(make_config(world, **kept, **{"train.steps": 5}), tmp_path) == 0
    checkpoints = tmp_path / "checkpoints"
    want = weights(tmp_path)[0]
    shutil.rmtree(checkpoints / "00000005")
    state = checkpoints / "00000004" / "training" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    (checkpoints / "00000003" / "feedface" / "model.safetensors").unlink()
    state = checkpoints / "00000002" / "training" / "state.pt"
    content = bytearray(state.read_bytes())
    content[-200:] = bytes(200)  # the size is right: only reading finds out
    state.write_bytes(content)

    assert train(make_config(world, **{"train.steps": 5}), tmp_path) == 0
    out = capsys.readouterr().out
    assert "00000005: the last checkpoint is gone" in out
    assert "00000004: not a whole checkpoint (training/state.pt is missing or cut short)" in out
    assert "00000003: not a whole checkpoint (feedface/model.safetensors is missing" in out
    assert "00000002: not a whole checkpoint (cannot be read" in out and "going on from" in out
    again = weights(tmp_path)[0]
    assert newest_checkpoint(tmp_path).name == "00000005"
    assert all(torch.equal(want[name], again[name]) for name in want)


def test_nothing_but_damaged_checkpoints(world, tmp_path):
    assert train(make_config(world, **{"train.steps": 1}), tmp_path) == 0
    (tmp_path / "checkpoints" / "00000001" / "training" / "progress.json").write_text("{")
    with pytest.raises(UserError, match="none of its 1 checkpoints is whole; delete them to start afresh"):
        train(make_config(world), tmp_path)


def test_two_runs_in_one_workdir(world, tmp_path):
    with locked(tmp_path), pytest.raises(UserError, match="another run"):
        train(make_config(world), tmp_path)
    with locked(tmp_path):
        pass


def test_checkpoint_of_another_model(world, tmp_path):
    assert train(make_config(world, **{"train.steps": 1}), tmp_path) == 0
    with pytest.raises(UserError, match="another model"):
        train(make_config(world, **{"control.sites": ("in_blocks.0",)}), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"loss.kind": "l1"}, "config.loss.kind"),
        ({"data.flip": 1.5}, "config.data.flip"),
        ({"cache.draws_per_picture": 8, "cache.enabled": False}, "config.cache.draws_per_picture: .* config.cache.dir"),
        ({"cache.draws_per_picture": 8, "loss.kind": "mask"}, "config.cache.draws_per_picture: feedface .* leave it 0"),
        ({"train.batch_size": 0}, "config.train.batch_size"),
        ({"train.lr": float("nan")}, "config.train.lr"),
        ({"log.trackers": ("comet",)}, "comet"),
        ({"train.precision": "fp16"}, "fp16"),
        ({"control.sites": ("in_blocks.7",)}, "in_blocks.7"),
        ({"face_encoder": ""}, "has no method feedface to go on from"),
        ({"face_encoder": "nowhere"}, "config.face_encoder"),
        ({"model": "nowhere"}, "nowhere"),
        ({"data.records": ("nowhere.jsonl",)}, "nowhere.jsonl"),
    ],
)
def test_mistakes(world, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        train(make_config(world, **change), tmp_path)


def test_face_encoder_with_missing_weights(world, tmp_path):
    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "config.json").write_bytes((world.face_encoder / "config.json").read_bytes())
    state = load_file(world.face_encoder / "model.safetensors")
    state.pop(next(name for name in state if name.endswith("class_embedding")))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="missing"):
        train(make_config(world, face_encoder=str(folder)), tmp_path / "run")


def test_paper_config_is_valid():
    from configs import train_config

    check_config(train_config.get_config())

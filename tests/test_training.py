"""The objective and the training loop: what is compared with what, exact resuming, and what stops a run."""

import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from configs import mini_face
from safetensors.torch import load_file, save_file
from tests.toy import CLIP_CONFIG, make_toy_bundle, toy_face_controlnet, toy_uvit
from tests.toy_records import make_records

from feedface.checkpoints.bundle import load_bundle, read_index, write_index
from feedface.data.draws import Draw, Draws, DrawSettings, draw
from feedface.data.features import Features
from feedface.diffusion.losses import regularization_mask_loss, standard_loss
from feedface.diffusion.schedule import add_noise, alphas_cumprod
from feedface.errors import UserError
from feedface.training import trainer
from feedface.training.ema import Ema
from feedface.training.objective import ControlledUViT, Objective
from feedface.training.setup import check_config
from feedface.training.state import locked, newest_checkpoint, prune_checkpoints
from feedface.training.trainer import learning_rate, train


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A toy bundle without face-controlnet, a face encoder's folder, and records."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("world")
    full = make_toy_bundle(folder / "full")
    parts = {kind: str(path.resolve()) for kind, path in read_index(full).components.items()}
    (folder / "base").mkdir()
    del parts["face_controlnet"]
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
    config.checkpoint.every, config.log.every, config.log.trackers = 100, 1, ()
    config.update_from_flattened_dict(changes)
    return config.lock()


def weights(workdir):
    state = torch.load(workdir / "checkpoints" / "last" / "training" / "state.pt", weights_only=True)
    return state["weights"], state


# --------------------------------------------------------------------------------------------------------- objective


def make_batch(count=6, standard=(), drop_face=()):
    settings = DrawSettings(0, (4, 8, 8), 16, standard_loss=0, face_dropout=0)
    draws = Draws.collate([draw(settings, s, 1, [0] * count) for s in range(count)])
    draws.standard[list(standard)] = True
    draws.drop_face[list(drop_face)] = True
    g = torch.Generator().manual_seed(0)
    features = Features(
        mean=torch.randn(count, 4, 8, 8, generator=g),
        std=torch.rand(count, 4, 8, 8, generator=g),
        clip_img=torch.randn(count, 1, 16, generator=g),
        text=torch.randn(count, 16, 8, generator=g),
        faces=torch.randn(count, 2, 5, 32, generator=g),
        mask=torch.rand(count, 1, 8, 8, generator=g),
    )
    return draws, features


def make_model(seed=0):
    torch.manual_seed(seed)
    uvit = toy_uvit().requires_grad_(False)
    return ControlledUViT(uvit, toy_face_controlnet(uvit), data_type=1)


class CountedModel:
    """Notes how many samples each kind of forward pass sees."""

    def __init__(self, model):
        self.model, self.adapted, self.frozen = model, [], []

    def __call__(self, latents, clip_img, text, t, faces):
        (self.frozen if faces is None else self.adapted).append(len(latents))
        assert faces is not None or not torch.is_grad_enabled()
        return self.model(latents, clip_img, text, t, faces)


@pytest.mark.parametrize("standard", [(), (1, 4), range(6)])
def test_loss_is_the_papers_per_sample(standard):
    model = make_model()
    draws, features = make_batch(standard=standard)
    counted = CountedModel(model)
    parts = Objective("regularization", torch.zeros(5, 32), torch.zeros(1, 16, 8))(counted, counted, draws, features)

    latents = add_noise(features.mean + features.std * draws.vae_noise, draws.noise, draws.t)
    clip_img = add_noise(features.clip_img, draws.clip_noise, draws.t)
    zeros, ones = torch.zeros(6), torch.ones(6, dtype=torch.long)
    net = model.face_controlnet
    control = net.bind(net.join(net.projector(features.faces)))
    with torch.no_grad():
        pred = model.uvit(latents, clip_img, features.text, draws.t, zeros, ones, control=control).img
        frozen = model.uvit(latents, clip_img, features.text, draws.t, zeros, ones).img
    wanted = regularization_mask_loss(draws.noise, pred, frozen, features.mask)
    wanted[list(standard)] = standard_loss(draws.noise, pred)[list(standard)]
    assert torch.allclose(parts.loss, wanted.mean(), atol=1e-6)
    assert torch.allclose(parts.sums[0], wanted.sum(), atol=1e-5)
    # The frozen model is asked only about the samples that are compared with it.
    assert counted.adapted == [6] and sum(counted.frozen) == 6 - len(standard)
    assert parts.counts.tolist() == [6, 6 - len(standard), 6 - len(standard)]


def test_dropped_faces_and_texts_and_what_learns():
    model = make_model()
    objective = Objective("mask", torch.full((5, 32), 0.5), torch.full((1, 16, 8), 0.25))
    draws, features = make_batch(drop_face=(2,))
    draws.drop_text[3] = True
    by_hand, clean = make_batch()
    clean.faces[2], clean.text[3] = 0.5, 0.25
    loss = objective(model, model, draws, features).loss
    assert loss == objective(model, model, by_hand, clean).loss
    assert loss != objective(model, model, *make_batch()).loss
    loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    trainable = {f"face_controlnet.{name}" for name in model.face_controlnet.trainable_state_dict()}
    assert learning == trainable


def test_a_batch_can_be_learned():
    model, batch = make_model(), make_batch()
    objective = Objective("regularization", torch.zeros(5, 32), torch.zeros(1, 16, 8))
    optimizer = torch.optim.AdamW(model.face_controlnet.trainable_parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        loss = objective(model, model, *batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]


def test_fresh_control_has_no_background_loss():
    model = make_model()
    for block in model.face_controlnet.blocks:
        torch.nn.init.zeros_(block.zero_linear.weight)
    parts = Objective("regularization", torch.zeros(5, 32), torch.zeros(1, 16, 8))(model, model, *make_batch())
    assert parts.sums[1] > 1 and abs(parts.sums[2]) < 1e-9


def test_min_snr_weights():
    draws, features = make_batch(1)
    model = make_model()
    losses = []
    for t in (1, 300, 1000):
        draws.t[:] = t
        pair = [
            Objective("standard", torch.zeros(5, 32), torch.zeros(1, 16, 8), gamma)(model, model, draws, features).loss
            for gamma in (0.0, 5.0)
        ]
        alpha_bar = alphas_cumprod()[t - 1]
        snr = alpha_bar / (1 - alpha_bar)
        assert torch.allclose(pair[1] / pair[0], (min(snr, torch.tensor(5.0)) / snr).float(), rtol=1e-4)
        losses.append(pair)
    assert losses[0][1] < losses[0][0] and losses[2][1] == losses[2][0]


def test_learning_rate():
    config = mini_face.get_config()
    config.train.lr, config.train.warmup_steps, config.train.steps = 1.0, 10, 110
    assert [learning_rate(s, config) for s in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert learning_rate(60, config) == pytest.approx(0.5) and learning_rate(110, config) == pytest.approx(0)
    config.train.schedule = "constant"
    assert learning_rate(109, config) == 1.0


def test_ema():
    parameter = torch.nn.Parameter(torch.zeros(3))
    ema = Ema([parameter], decay=0.5)
    for step in (1, 2):
        parameter.data.fill_(float(step))
        ema.update(step)
    first = 1 - 2 / 11
    assert torch.allclose(ema.averages[0], torch.full((3,), first + (1 - 3 / 12) * (2 - first)))
    with ema.applied():
        assert (parameter == ema.averages[0]).all()
    assert (parameter == 2).all()


# ------------------------------------------------------------------------------------------------------------ the run


@pytest.mark.parametrize("cached", [True, False])
def test_resumed_run_equals_an_unbroken_one_to_the_bit(world, tmp_path, cached):
    changes = {"cache.enabled": cached, "train.steps": 20, "data.max_faces": 2, "train.accumulation": 1 + cached}
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
    trained = bundle.face_controlnet.trainable_state_dict()
    for value, average in zip(trained.values(), state["ema"], strict=True):
        assert torch.allclose(value, average, atol=1e-3)
    encoder = load_file(world.face_encoder / "model.safetensors")
    stored = bundle.face_controlnet.face_encoder.state_dict()
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
    own = load_bundle(world.full, components=["face_controlnet"]).face_controlnet.trainable_state_dict()
    trained, _ = weights(tmp_path)
    assert all(torch.equal(own[name], trained[name]) for name in own)


def test_nan_stops_and_names_the_last_good_checkpoint(world, tmp_path):
    assert train(make_config(world, **{"train.steps": 2}), tmp_path) == 0
    config = make_config(world, **{"train.steps": 6, "log.every": 50, "train.lr": float("inf")})
    with pytest.raises(UserError, match=r"not finite.*checkpoints/00000002"):
        train(config, tmp_path)
    assert newest_checkpoint(tmp_path).name == "00000002"


def test_damaged_checkpoints_are_passed_over(world, tmp_path, capsys):
    assert train(make_config(world, **{"train.steps": 3, "checkpoint.every": 1, "checkpoint.keep": 5}), tmp_path) == 0
    state = tmp_path / "checkpoints" / "00000003" / "training" / "state.pt"
    state.write_bytes(state.read_bytes()[:-1])
    (tmp_path / "checkpoints" / "00000002" / "face_controlnet" / "model.safetensors").unlink()
    assert newest_checkpoint(tmp_path).name == "00000001"
    assert "state.pt is missing or cut short" in capsys.readouterr().out
    assert train(make_config(world, **{"train.steps": 3}), tmp_path) == 0
    assert newest_checkpoint(tmp_path).name == "00000003"


def test_pruning_keeps_the_last_and_every_mth(tmp_path):
    for step in range(10, 100, 10):
        (tmp_path / "checkpoints" / f"{step:08d}").mkdir(parents=True)
    prune_checkpoints(tmp_path, keep=2, keep_every=30)
    assert sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir()) == [30, 60, 80, 90]


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
        ({"train.batch_size": 0}, "config.train.batch_size"),
        ({"train.lr": float("nan")}, "config.train.lr"),
        ({"log.trackers": ("comet",)}, "comet"),
        ({"train.precision": "fp16"}, "fp16"),
        ({"control.sites": ("in_blocks.7",)}, "in_blocks.7"),
        ({"face_encoder": ""}, "face_controlnet"),
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


def test_draw_fields_reach_the_batch():
    one = Draw(
        row=3, flip=True, hair=False, standard=True, drop_face=False, drop_text=True, t=7, faces=(0,),
        vae_noise=torch.zeros(1).numpy(), noise=torch.ones(1).numpy(), clip_noise=torch.full((1,), 2.0).numpy(),
    )  # fmt: skip
    batch = Draws.collate([one, one])
    assert batch.rows.tolist() == [3, 3] and batch.t.tolist() == [7, 7]
    flags = [getattr(batch, name)[0].item() for name in ("flip", "hair", "standard", "drop_face", "drop_text")]
    assert flags == [True, False, True, False, True]
    assert batch.clip_noise.tolist() == [[2.0], [2.0]]

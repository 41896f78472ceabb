"""Distillation to few steps, on the toy model."""

import json
import math
import shutil
import sys
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from ml_collections import ConfigDict
from toy import attentive, make_toy_bundle
from toy_records import make_records

from feedface.checkpoints.bundle import load_bundle
from feedface.checkpoints.few_step import FewStep, read_few_step
from feedface.commands import distill
from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.data.records import read_records
from feedface.diffusion.sampling import jumps_at, sample
from feedface.diffusion.schedule import alphas_cumprod
from feedface.diffusion.state import pack, take, unpack
from feedface.distillation import train as train_module
from feedface.distillation.critic import Critic
from feedface.distillation.ddim import ddim_step
from feedface.distillation.draws import Draws
from feedface.distillation.pictures import real_pictures
from feedface.distillation.student import Student, low_rank
from feedface.distillation.teacher import Teacher, fine_timesteps
from feedface.distillation.trajectories import Piece, Trajectories
from feedface.encoders import resize_and_crop, to_tensor

CPU = torch.device("cpu")
TIMES = (1000, 600, 250)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distillation")
    make_toy_bundle(folder / "toy")
    make_records(folder / "world")  # 4 people, 3 pictures each
    return folder


@pytest.fixture
def bundle(folder):
    return load_bundle(folder / "toy")


def run(folder, stage, workdir, *options, **changes):
    """A stage through the command line, at a toy's size."""
    changes = {
        "model": folder / "toy",
        "data.records": f"('{folder / 'world' / 'records.jsonl'}',)",
        "timesteps": TIMES,
        "trajectories.count": 24,
        "trajectories.batch_size": 8,
        "trajectories.faces": (1, 0, 2),
        "held_out": 1,
        "train.minutes": 0.0,
        "train.steps": 30,
        "train.batch_size": 4,
        "train.warmup_steps": 5,
        "refine.minutes": 0.0,
        "refine.batch_size": 4,
        "refine.patch": 2,
        "refine.sites": ("in_blocks.0", "out_blocks.0"),
        "refine.likeness": 0.0,  # the toy has no recogniser
        **changes,
    }
    before = sys.argv
    sys.argv = ["distill.py", stage, "--workdir", str(folder / workdir), *options]
    sys.argv += [f"--config.{key}={value}" for key, value in changes.items()]
    try:
        return distill.main()
    finally:
        sys.argv = before


# ------------------------------------------------------------------------------------------------------------ pieces


def test_fine_timesteps_pass_the_students_and_are_even_in_log_snr_between():
    fine = fine_timesteps(TIMES, 4)
    assert len(fine) == 12 and fine[::4] == list(TIMES)
    alpha_bar = alphas_cumprod()
    level = ((1 - alpha_bar) / alpha_bar).log() / 2
    for start, end in pairwise([*TIMES, 1]):
        gap = (level[start - 1] - level[end - 1]) / 4
        inside = [t for t in fine if end < t <= start]
        gaps = torch.tensor([level[a - 1] - level[b - 1] for a, b in pairwise(inside)])
        assert gaps == pytest.approx(gap.expand(3), rel=0.1)  # timesteps are whole
    for times, substeps in (((1000, 999), 3), ((1000, 600, 600), 1), ((900, 300), 2), ((1000, 0), 1)):
        with pytest.raises(ValueError, match="timesteps"):
            fine_timesteps(times, substeps)


def test_a_ddim_step_is_the_samplers_step():
    x, noise, solver = torch.randn(2, 50), torch.randn(2, 50), jumps_at(TIMES)
    for (start, end), timestep in zip(pairwise([*TIMES, 0]), solver.timesteps, strict=True):
        assert ddim_step(x, noise, start, end) == pytest.approx(solver.step(noise, timestep, x).prev_sample, abs=1e-5)


@pytest.mark.parametrize("uncond", ["true_uncond", "paper"])
def test_the_teachers_last_state_is_the_guided_models_picture(bundle, uncond):
    bundle.defaults["uncond"] = uncond
    prompt, empty = ({"text": bundle.text_encoder.encode(texts)} for texts in (["a", "b c"], [""]))
    identity, seeds = {"tokens": torch.randn(2, 5, 32)}, [3, 4]
    states = Teacher(bundle, TIMES, 10, CPU).draw(prompt, seeds, identity)
    options = {"prompt": prompt, "seeds": seeds, "guidance": 2.0, "uncond_mode": uncond, "identity": identity}
    options |= {"empty_prompt": empty, "method": bundle.method}
    exact = pack(sample(bundle.backbone, steps=100, **options))
    coarse = pack(sample(bundle.backbone, steps=3, scheduler="ddim", **options))
    assert states.shape == (2, 4, exact.shape[1])
    assert (states[:, -1] - exact).norm() < 0.05 * (coarse - exact).norm()
    torch.manual_seed(0)
    again = Teacher(bundle, TIMES, 1, CPU).draw(take(prompt, slice(1, 2)), seeds[1:], take(identity, slice(1, 2)))
    assert torch.equal(again[0, 0], states[1, 0])  # the noise depends on the seed only


def test_the_teacher_has_the_models_perturbed_attention_guidance(bundle):
    attentive(bundle.backbone)
    prompt, seeds = {"text": bundle.text_encoder.encode(["a", "b c"])}, [3, 4]

    def drawn(**pag):
        bundle.defaults |= pag
        return Teacher(bundle, TIMES, 10, CPU).draw(prompt, seeds, None)[:, -1]

    def sampled(**pag):
        return pack(sample(bundle.backbone, prompt, seeds, steps=100, guidance=2.0, uncond_mode="true_uncond", **pag))

    without, everywhere = drawn(), drawn(pag_scale=3.0)
    assert (everywhere - sampled(pag_scale=3.0)).norm() < 0.5 * (everywhere - sampled()).norm()
    assert torch.equal(drawn(pag_interval=(0.0, 0.5)), without)  # before the last of its steps
    early = drawn(pag_interval=(900.0, 1000.0))
    assert not torch.equal(early, without) and not torch.equal(early, everywhere)


def test_only_the_low_rank_matrices_are_trained_and_fresh_ones_change_nothing(bundle):
    student, piece = toy_student(bundle)
    plain, layers = student.draw(piece), [*bundle.backbone.modules(), *bundle.method.modules()]
    own = torch.tensor([True, False, True])
    with low_rank(bundle.backbone, bundle.method, {"backbone": 2, "method": 3}) as matrices:
        names = set(matrices.weights())
        assert "backbone.decoder_pred" in names and "backbone.out_blocks.0.skip_linear" in names
        assert "method.blocks.0.cross_attn.to_k" in names and "backbone.text_embed" not in names
        assert torch.equal(student.draw(piece), plain)
        student.loss(piece, own)[0].backward()
        grown = {name for name, p in matrices.named_parameters() if name.endswith("B") and p.grad.abs().sum() > 0}
        assert len(grown) == len(names)
        for parameter in matrices.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        assert not torch.equal(student.draw(piece), plain)
    assert torch.equal(student.draw(piece), plain)
    assert [*bundle.backbone.modules(), *bundle.method.modules()] == layers
    networks = (*bundle.backbone.parameters(), *bundle.method.parameters())
    assert all(parameter.grad is None for parameter in networks)


def test_matrices_are_in_single_precision_and_a_seeds_own(folder):
    """Whatever the networks are in, and whatever peft draws besides."""
    drawn = []
    for dtype in (torch.float32, torch.bfloat16):
        bundle = load_bundle(folder / "toy", dtype=dtype)
        torch.manual_seed(3)
        with low_rank(bundle.backbone, bundle.method, {"backbone": 2, "method": 0}) as matrices:
            assert {parameter.dtype for parameter in matrices.parameters()} == {torch.float32}
            drawn.append(matrices.weights())
    assert all(name.startswith("backbone.") for name in drawn[0])
    torch.manual_seed(3)
    for name, (a, b) in drawn[0].items():
        assert torch.equal(a, torch.nn.init.kaiming_uniform_(torch.empty(a.shape), a=math.sqrt(5)))
        assert torch.equal(a, drawn[1][name][0]) and not b.any()


def test_a_jump_starts_where_the_teacher_was_or_where_the_student_has_come_to(bundle):
    student, piece = toy_student(bundle)
    taught, own = (student.loss(piece, torch.full((3,), flag))[1] for flag in (False, True))
    assert taught["jump1"] == own["jump1"] and taught["jump2"] != own["jump2"]
    # Taught, the second jump is the closed form from the teacher's state.
    noise = _noise(bundle, student, piece, 1)
    reached = ddim_step(piece.states[:, 1], noise, TIMES[1], TIMES[2])
    expected = unpack((reached - piece.states[:, 2]).square(), student.shapes)["img"].mean()
    assert float(taught["jump2"]) == pytest.approx(float(expected), rel=1e-4)


def _noise(bundle, student, piece, index):
    state = unpack(piece.states[:, index], student.shapes)
    t = torch.full((3,), float(TIMES[index]))
    control = bundle.method.bind(bundle.backbone, piece.identity, 0.5)
    return pack(bundle.backbone(state, t, bundle.backbone.conditions(piece.prompt), control))


def toy_student(bundle):
    numbers = sum(math.prod(shape) for shape in bundle.backbone.state_shapes().values())
    torch.manual_seed(0)
    states, text, tokens = torch.randn(3, len(TIMES) + 1, numbers), torch.randn(3, 16, 8), torch.randn(3, 5, 32)
    piece = Piece(states, {"text": text}, {"tokens": tokens})
    return Student(bundle.backbone, bundle.method, FewStep(TIMES, 2.0, 0.5, "paper"), 0.1), piece


def test_the_critics_loss_reaches_its_heads_and_the_students_the_pictures(bundle):
    _, piece = toy_student(bundle)
    critic = Critic(bundle.backbone, bundle.method, ("in_blocks.0", "out_blocks.0"), 1.0)
    drawn, real = piece.states[:, -1].clone().requires_grad_(), piece.states[:, 0]
    noise = torch.randn(drawn.shape)
    of_student, of_critic = critic.losses(drawn, real, piece, 200, noise)
    heads = list(critic.parameters())
    assert heads and all(p.requires_grad for p in heads)
    assert torch.autograd.grad(of_student, heads, retain_graph=True, allow_unused=True) == (None,) * len(heads)
    assert torch.autograd.grad(of_critic, drawn, retain_graph=True, allow_unused=True) == (None,)
    assert float(torch.autograd.grad(of_student, drawn, retain_graph=True)[0].abs().sum()) > 0
    gradients = torch.autograd.grad(of_critic, heads)
    learns = [float(gradient.abs().max()) > 1e-6 for gradient in gradients]
    assert sum(learns) == len(heads) - 2  # a head's last bias moves real and drawn alike
    assert all(p.grad is None for p in (*bundle.backbone.parameters(), *bundle.method.parameters()))


@pytest.mark.parametrize("change", ["text", "identity", None])
def test_the_critic_looks_as_the_model_does_at_this_person_and_text(bundle, change):
    _, piece = toy_student(bundle)
    attentive(bundle.backbone)
    critic = Critic(bundle.backbone, bundle.method, ("out_blocks.0",), 1.0)
    with torch.no_grad():
        seen = critic.features(piece.states[:, 0], 200, piece)[0]
    assert seen.shape == (3, 16, 32)
    torch.manual_seed(1)
    other = piece
    if change == "text":
        other = replace(piece, prompt={"text": torch.randn(3, 16, 8)})
    elif change == "identity":
        other = replace(piece, identity={"tokens": torch.randn(3, 5, 32)})
    with torch.no_grad():
        assert torch.equal(critic.features(piece.states[:, 0], 200, other)[0], seen) == (change is None)
    # As real pictures are seen, without gradients, so are the student's, with them.
    states = piece.states[:, 0].clone().requires_grad_()
    if change is None:
        assert torch.equal(critic.features(states, 200, piece)[0], seen)


def test_the_critic_learns_what_is_amiss(bundle):
    _, piece = toy_student(bundle)
    piece = replace(piece, identity=None)
    critic = Critic(bundle.backbone, bundle.method, ("in_blocks.0", "out_blocks.0"), 0.1)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    for step in range(40):
        torch.manual_seed(step)
        real, noise = torch.randn(2, *piece.states[:, 0].shape)
        drawn = real.clone()
        drawn[:, : 8 * 8] *= 0.2  # the first channel lacks contrast
        of_student, of_critic = critic.losses(drawn, real, piece, 50, noise)
        if step == 0:
            assert of_critic.item() == pytest.approx(math.log(2), abs=0.05)
        optimizer.zero_grad()
        of_critic.backward()
        optimizer.step()
    assert of_critic.item() < 0.5 < 1 < of_student.item()

    drawn.requires_grad_()
    of_student, _ = critic.losses(drawn, real, piece, 50, noise)
    (gradient,) = torch.autograd.grad(of_student, drawn)
    assert (-gradient * (real - drawn)).sum() > 0  # the student is led to where real pictures are


def test_the_critic_learns_whose_picture_it_is(bundle):
    """People of two kinds, whose pictures are bright or dark; drawn ones are as good as real."""
    _, piece = toy_student(bundle)
    critic = Critic(bundle.backbone, bundle.method, ("mid_block", "out_blocks.0"), 0.01)
    optimizer = torch.optim.Adam(critic.parameters(), 3e-3)
    tokens = torch.randn(2, 5, 32)
    losses = []
    for step in range(150):
        torch.manual_seed(step)
        real, drawn, noise = torch.randn(3, 2, piece.states.shape[-1])
        for states in (real, drawn):
            states[:, : 8 * 8] += torch.tensor([[2.0], [-2.0]])
        pair = Piece(piece.states[:2], {"text": piece.prompt["text"][:1].expand(2, -1, -1)}, {"tokens": tokens})
        _, of_critic = critic.losses(drawn, real, pair, 50, noise)
        losses.append(of_critic.item())
        optimizer.zero_grad()
        of_critic.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(2 * math.log(2), abs=0.1)
    assert sum(losses[-10:]) / 10 < 1.6 * math.log(2)  # strangers are told apart, drawn pictures cannot be


# ----------------------------------------------------------------------------------------------------- the whole way


def test_trajectories_go_on_from_where_they_were_and_shares_make_the_whole(folder):
    run(folder, "trajectories", "one")
    shards = sorted((folder / "one" / "trajectories").glob("0*"))
    bytes_before = [shard.read_bytes() for shard in shards]
    kept = [shard.stat().st_mtime_ns for shard in shards]
    shards[1].unlink()
    run(folder, "trajectories", "one")
    assert [shard.read_bytes() for shard in shards] == bytes_before
    assert [shard.stat().st_mtime_ns for shard in shards][::2] == kept[::2]
    for share in ("1/2", "0/2"):
        run(folder, "trajectories", "shared", "--share", share)
    assert [(folder / "shared" / "trajectories" / shard.name).read_bytes() for shard in shards] == bytes_before

    lessons = Trajectories(folder / "one" / "trajectories")
    people = [lessons.piece(shard, slice(2, 5), CPU).identity for shard in range(3)]
    one, two = (people[shard]["tokens"] for shard in (0, 2))
    assert people[1] is None and one.shape[0] == 3 and two.shape[1] == 2 * one.shape[1]
    states = lessons.piece(0, slice(0, 8), CPU).states
    assert len({tuple(row) for row in states[:, 0, :4].tolist()}) == 8  # all of different noise
    with pytest.raises(UserError, match="another seed"):
        run(folder, "trajectories", "one", seed=1)


def test_the_student_comes_nearer_and_is_a_model(folder):
    run(folder, "trajectories", "two")
    run(folder, "train", "two")
    metrics = json.loads((folder / "two" / "student" / "metrics.json").read_text())["metrics"]
    assert metrics["latent_rms"] < 0.8 * metrics["latent_rms_untrained"]

    # What `inference` draws with the adapter is what was measured.
    bundle = load_bundle(folder / "two" / "model")
    adapter, (backbone, method) = bundle.few_step, bundle.networks(few_step=True)
    assert adapter.timesteps == TIMES and adapter.guidance == 2.0
    lessons = Trajectories(folder / "two" / "trajectories")
    seeds = [(1 << 40) + row for row in range(8)]  # shard 0
    piece = lessons.piece(0, slice(0, 8), CPU)
    drawn = sample(
        backbone,
        piece.prompt,
        seeds,
        timesteps=adapter.timesteps,
        guidance=1.0,
        method=method,
        identity=piece.identity,
        scale=adapter.face_scale,
    )["img"]
    teacher = unpack(piece.states[:, -1], bundle.backbone.state_shapes())["img"]
    distance = float((drawn - teacher).square().mean().sqrt())
    assert distance == pytest.approx(metrics["latent_rms"], rel=0.01)  # trajectories are in half precision

    run(folder, "train", "two")  # used up: nothing is trained any more
    assert read_few_step(folder / "two" / "model" / "few_step").digest == adapter.digest


def test_refining_goes_on_from_the_student_and_the_anchor_holds_it(folder):
    run(folder, "trajectories", "refined")
    run(folder, "train", "refined")
    student = read_few_step(folder / "refined" / "model" / "few_step")
    off = {}
    for anchor in (1000.0, 0.0):
        shutil.copytree(folder / "refined", folder / f"refined{anchor}")
        run(folder, "train", f"refined{anchor}", **{"refine.steps": 20, "refine.anchor": anchor, "refine.lr": 1e-2})
        made = folder / f"refined{anchor}"
        metrics = json.loads((made / "refined" / "metrics.json").read_text())
        assert metrics["training"]["steps"] == 20 and (made / "refined" / "samples.png").is_file()
        adapter = read_few_step(made / "model" / "few_step")
        assert adapter.digest != student.digest and adapter.weights.keys() == student.weights.keys()
        off[anchor] = metrics["metrics"]["latent_rms"]
        assert len(list((made / "pictures").glob("*.safetensors"))) == 3
        run(folder, "train", made.name, **{"refine.steps": 20, "refine.anchor": anchor, "refine.lr": 1e-2})
        assert read_few_step(made / "model" / "few_step").digest == adapter.digest
    assert off[1000.0] < off[0.0]

    with pytest.raises(UserError, match=r"has no faces and no recogniser; use .*likeness=0"):
        run(folder, "train", "refined", **{"refine.steps": 1, "refine.likeness": 1.0})
    with pytest.raises(UserError, match="student_steps"):
        run(
            folder,
            "train",
            made.name,
            **{"train.steps": 31, "refine.steps": 20, "refine.anchor": 0.0, "refine.lr": 1e-2},
        )
    make_records(folder / "elsewhere", people=3)
    shutil.rmtree(made / "pictures")
    others = f"('{folder / 'elsewhere' / 'records.jsonl'}',)"
    with pytest.raises(UserError, match="draw those anew"):
        run(folder, "train", made.name, **{"refine.steps": 30, "refine.anchor": 0.0, "data.records": others})


def test_refining_follows_the_recogniser_by_its_weight(folder, monkeypatch):
    """One that likes pictures the better the higher their latents are."""
    asked = []

    class Likes:
        digest = "liked"

        def __init__(self, bundle, device):
            pass

        def of_pictures(self, pictures):
            return torch.arange(len(pictures))[:, None].float()

        def loss(self, latents, wanted):
            assert wanted.flatten().diff().eq(1).all()  # rows in a row of a shard
            asked.append(len(wanted))
            return -latents.mean()

    monkeypatch.setattr(train_module, "Likeness", Likes)
    run(folder, "trajectories", "liked")
    run(folder, "train", "liked")
    heights = []
    for weight in (0.01, 10.0):
        made = folder / f"liked{weight}"
        shutil.copytree(folder / "liked", made)
        run(folder, "train", made.name, **{"refine.steps": 20, "refine.likeness": weight, "refine.lr": 1e-2})
        bundle = load_bundle(made / "model")
        student = Student(*bundle.networks(few_step=True), bundle.few_step, 0.1)
        piece = Trajectories(made / "trajectories").piece(0, slice(0, 8), CPU)
        heights.append(unpack(student.draw(piece), student.shapes)["img"].mean().item())
    assert heights[0] < heights[1] - 1
    assert 0 < len(asked) <= 40 and set(asked) == {4}  # not where nobody is shown


def test_the_average_of_two_runs_is_the_mean_of_what_they_change(folder):
    run(folder, "trajectories", "first")
    run(folder, "train", "first")
    shutil.copytree(folder / "first" / "trajectories", folder / "second" / "trajectories")
    run(folder, "train", "second", **{"train.seed": 1, "train.steps": 20})
    of = ["--of", str(folder / "first"), str(folder / "second")]
    distill.main(["average", "--workdir", str(folder / "mean"), *of])
    first, second, mean = (read_few_step(folder / name / "model" / "few_step") for name in ("first", "second", "mean"))
    assert mean.timesteps == TIMES
    for name, (a, b) in mean.weights.items():
        (a1, b1), (a2, b2) = first.weights[name], second.weights[name]
        assert b @ a == pytest.approx((b1 @ a1 + b2 @ a2) / 2, abs=1e-4)
        assert (b1 @ a1 - b2 @ a2).abs().max() > 2e-3
    run(folder, "trajectories", "other", timesteps=(1000, 500, 250))
    run(folder, "train", "other", timesteps=(1000, 500, 250))
    with pytest.raises(UserError, match=r"other.* cannot be averaged"):
        distill.main(["average", "--workdir", str(folder / "bad"), *of, str(folder / "other")])
    with pytest.raises(UserError, match="would be lost"):
        distill.main(["average", "--workdir", str(folder / "first"), *of])
    index = folder / "second" / "model" / "few_step" / "config.json"
    config = json.loads(index.read_text())
    config["made_by"]["model"] = "another"
    index.write_text(json.dumps(config))
    with pytest.raises(UserError, match="made of another model"):
        distill.main(["average", "--workdir", str(folder / "bad"), *of])
    with pytest.raises(UserError, match="--of is for the stage average"):
        distill.main(["add", "--workdir", str(folder / "first"), *of])
    with pytest.raises(UserError, match="--of is missing"):
        distill.main(["average", "--workdir", str(folder / "bad")])
    assert not (folder / "bad").exists()


def test_real_pictures_are_those_that_the_captions_are_of(folder, bundle):
    run(folder, "trajectories", "real")
    lessons, records = Trajectories(folder / "real" / "trajectories"), folder / "world" / "records.jsonl"
    config = ConfigDict({"data": {"records": (str(records),), "max_broken": 0}})
    shards = real_pictures(config, bundle, lessons, None, folder / "real" / "pictures")
    record = Draws(read_records(records), lessons.settings["faces"], 0).shard(1, 8, lessons.settings["seed"])[3][0]
    pixels = resize_and_crop(to_tensor(read_image(record.path))[None], bundle.image_size)
    expected = {"img": bundle.vae.encode(pixels, sample=False), "clip_img": bundle.image_encoder.encode(pixels)}
    assert shards[1].faces is None
    assert shards[1].states[3] == pytest.approx(pack(expected)[0].detach(), abs=2e-3)
    piece = lessons.piece(1, slice(3, 4), CPU)
    assert piece.prompt["text"] == pytest.approx(bundle.text_encoder.encode([record.caption]), abs=2e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"timesteps": (1000, 999)}, "config.timesteps"),
        ({"trajectories.substeps": 0}, "substeps"),
        ({"trajectories.faces": (3,)}, "no person of the records has 3 pictures"),
        ({"precision": "fp16"}, "precision"),
        ({"data.records": "('nowhere.jsonl',)"}, "nowhere.jsonl"),
        ({"trajectories.sizes": 3}, "sizes"),
        ({"refine.steps": 1, "refine.noise": 1001}, "config.refine.noise: 1001"),
        ({"refine.steps": 1, "refine.patch": 0}, "config.refine.patch: 0"),
        ({"refine.steps": 1, "refine.patch": 9}, "config.refine.patch: 9"),
        ({"refine.steps": 1, "refine.sites": ("mid",)}, "config.refine.sites: mid; .* mid_block"),
        ({"refine.steps": 1, "refine.sites": ()}, "config.refine.sites: none"),
        ({"refine.steps": 1, "refine.likeness": -1.0}, "config.refine.likeness: -1"),
    ],
)
def test_bad_settings(folder, changes, words):
    with pytest.raises(UserError, match=words):
        run(folder, "trajectories", "bad", **changes)


def test_broken_pictures_are_passed_over_up_to_a_number(folder, tmp_path):
    records = read_records(make_records(tmp_path))
    (tmp_path / "images" / "0_1.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"data\.max_broken=0.*0_1\.png"):
        Draws(records, (2,), 0).shard(0, 20, 0)
    drawn = Draws(records, (2,), 3).shard(0, 20, 0)
    assert len(drawn) == 20 and all(len(crops) == 2 for _, crops in drawn)


def test_training_needs_its_trajectories(folder):
    with pytest.raises(UserError, match="no trajectories"):
        run(folder, "train", "none")
    run(folder, "trajectories", "few", **{"trajectories.count": 8})
    with pytest.raises(UserError, match="draw more"):
        run(folder, "train", "few")


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--share", "2/2"), "--share 2/2"), (("--model", "models/mini"), "--config.model"), (("--steps=3",), "steps")],
)
def test_bad_arguments(folder, options, words):
    with pytest.raises(UserError, match=words):
        run(folder, "trajectories", "bad", *options)

"""benchmarks/sampling.py: the release's way draws the same pictures, counts are right, what is printed adds up."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from research.benchmarks.models import SIZES, write_random_bundle
from research.benchmarks.sampling import __main__ as sampling
from research.benchmarks.sampling import growth, rate, tables
from research.benchmarks.sampling.evaluations import Blueprint, release_sample
from research.benchmarks.sampling.variants import VARIANTS, Kind, Variant, Work
from tests.toy import CLIP_CONFIG, make_toy_bundle, toy_face_controlnet, toy_unet, toy_uvit

from feedface.checkpoints.bundle import read_index, save_component, write_index
from feedface.checkpoints.few_step import FewStep, save_few_step
from feedface.diffusion.sampling import sample
from feedface.methods.feedface import FeedFace
from feedface.settings import PLAIN, Settings


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


def test_the_releases_way_draws_what_sample_draws():
    torch.manual_seed(0)
    uvit = toy_uvit().eval()
    net = toy_face_controlnet(uvit).eval()
    prompt, identity = {"text": torch.randn(1, 16, 8)}, {"tokens": torch.randn(1, 5, 32)}
    settings = Settings(steps=6, scheduler="dpmsolver++singlestep", guidance=3.0, face_scale=0.8)
    bundle = SimpleNamespace(backbone=uvit, method=net)
    theirs = release_sample(bundle, prompt, identity, [1, 2], settings, (8, 8))
    ours = sample(
        uvit, prompt, [1, 2], steps=6, guidance=3.0, method=net, identity=identity, scale=0.8,
        scheduler="dpmsolver++singlestep",
    )  # fmt: skip
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-4, rtol=0)


def test_flops_of_an_evaluation(toy: Path):
    # By hand: 16 image tokens among 36 of width 32; 3 blocks with an MLP of twice the width, one of them with a skip.
    tokens, width = 2 + 1 + 16 + 1 + 16, 32
    block = tokens * width * (3 * width + width + 2 * 2 * width) + 2 * tokens**2 * width
    ends = 2 * 16 * (4 * 2 * 2) * width + 2 * 16 * width  # patches and the CLIP image's token, in and out
    expected = 2 * (3 * block + tokens * 2 * width * width + ends)
    assert Blueprint(toy).cost(Kind(guided=False, controlled=False), Work()).flops == expected


def test_passes_are_counted(toy: Path):
    blueprint = Blueprint(toy)
    part = Variant("guided in part", Settings(steps=10, guidance_interval=(75, 815)).over(PLAIN))
    release, same, part = (
        blueprint.count(variant, Work(pictures=2)) for variant in (VARIANTS["release"], VARIANTS["same"], part)
    )
    for row in (release, same):
        assert (row["evaluations"], row["unconditional"], row["backbone_passes"], row["control_passes"]) == (
            40,
            40,
            80,
            40,
        )
    assert release["tflop_sampling"] > same["tflop_sampling"]  # keys, values and embeddings at each evaluation
    # 10 evaluations, 4 of them within the interval: t = 1000, 876, 725, 539, 331, 154, 53, 15, 4, 1.
    assert (part["evaluations"], part["unconditional"], part["backbone_passes"], part["control_passes"]) == (
        10,
        4,
        14,
        10,
    )
    # Three blocks, one of them deep; both controls stand at shallow ones.
    reused = blueprint.cost(Kind(reused=True), Work())
    assert (reused.backbone_passes, reused.control_passes) == (pytest.approx(4 / 3), 1)
    perturbed = blueprint.cost(Kind(perturbed=True), Work())
    assert (perturbed.backbone_passes, perturbed.control_passes) == (pytest.approx(3), 1)


@pytest.mark.parametrize("whole", ["--whole", "--no-whole"])
def test_a_run(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture, whole: str):
    out = tmp_path / "out.json"
    few = ["--model", str(toy), "--device", "cpu", "--rounds", "2", "--warmup", "0", "--out", str(out), whole]
    sampling.main([*few, "--variants", "release", "reuse", "balanced", "few_step", "--measure", "time"])
    result = json.loads(out.read_text())
    assert list(result["variants"]) == ["release", "reuse", "balanced"]  # the toy has no few-step adapter
    for row in result["variants"].values():
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
        if whole == "--no-whole":
            evaluations = sum(
                part["count"] for name, part in row["parts"].items() if "half" in name or "halves" in name
            )
            assert evaluations == row["evaluations"]
            total = sum(part["count"] * part["seconds"] for part in row["parts"].values())
            assert total == pytest.approx(statistics.median(row["seconds"]))  # of two rounds: their mean
    printed = capsys.readouterr().out
    assert "| the release's way | 40 | 40 | 80.0 | 40.0 |" in printed
    assert ("composed of" in printed) == (whole == "--no-whole")


def test_few_step_adapter_is_measured_where_there_is_one(tmp_path: Path):
    folder = make_toy_bundle(tmp_path)
    weights = {"backbone.mid_block.mlp.fc1": (torch.randn(2, 32), torch.randn(64, 2))}
    save_few_step(folder / "few_step", FewStep((1000, 700, 300), 2.0, 1.0, "true_uncond", weights))
    index = read_index(folder)
    components = {**index.components, "few_step": "few_step"}
    write_index(folder, name="toy", image_size=64, components=components, defaults=index.defaults)
    out = tmp_path / "out.json"
    few = ["--model", str(folder), "--device", "cpu", "--rounds", "1", "--warmup", "0", "--out", str(out)]
    sampling.main([*few, "--variants", "2m_10", "few_step", "fast", "--measure", "time"])
    variants = json.loads(out.read_text())["variants"]
    for name in ("few_step", "fast"):
        assert (variants[name]["evaluations"], variants[name]["unconditional"]) == (3, 0)
        assert variants[name]["seconds"][0] > 0


@pytest.mark.parametrize("whole", ["--whole", "--no-whole"])
def test_a_run_on_another_backbone(tmp_path: Path, capsys: pytest.CaptureFixture, whole: str):
    folder = make_toy_bundle(tmp_path)
    unet = toy_unet()
    sites = [site for site in unet.sites.values() if site.kind == "block"]
    net = FeedFace([site.name for site in sites], [site.width for site in sites], 4, CLIP_CONFIG)
    parts = {"backbone": unet, "method": net}
    for name, module in parts.items():
        save_component(name, module, folder / f"other_{name}")
    others = {name: path for name, path in read_index(folder).components.items() if name not in parts}
    components = {**others, **{name: f"other_{name}" for name in parts}}
    write_index(folder, name="toy", image_size=64, components=components, defaults={"uncond": "empty_token"})
    out = tmp_path / "out.json"
    few = ["--model", str(folder), "--device", "cpu", "--rounds", "1", "--warmup", "0", "--out", str(out), whole]
    sampling.main([*few, "--variants", "release", "same", "2m_10", "reuse", "balanced", "--measure", "time"])
    result = json.loads(out.read_text())
    assert list(result["variants"]) == ["release", "same", "2m_10", "balanced"]  # it has no blocks to reuse
    assert "no reusable blocks" in capsys.readouterr().err
    release, same, few, _ = result["variants"].values()
    for row in (release, same):
        counts = [row[name] for name in ("evaluations", "unconditional", "backbone_passes", "control_passes")]
        assert counts == [40, 40, 80, 40]
    assert release["tflop_sampling"] > same["tflop_sampling"] > 3 * few["tflop_sampling"]
    assert all(row["seconds"][0] > 0 for row in result["variants"].values())


def test_scaling_batches_and_rate(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(rate.MULTIPLIED, "cpu", 64)
    monkeypatch.setattr(growth, "PROMPTS", 2)
    monkeypatch.setattr(growth, "SAMPLES", 2)
    out = tmp_path / "out.json"
    few = ["--model", str(toy), "--device", "cpu", "--rounds", "1", "--warmup", "0", "--out", str(out)]
    few += ["--samples", "1", "2", "--references", "1", "2", "--sides", "32", "64", "--rate_batches", "1", "2"]
    sampling.main([*few, "--variants", "balanced", "--measure", "scaling", "batches", "rate"])
    result = json.loads(out.read_text())
    flops = {grows: [row["tflop_sampling"] for row in rows] for grows, rows in result["scaling"].items()}
    assert flops["samples"][0] == flops["samples"][1]  # of a picture
    assert flops["references"][0] < flops["references"][1]
    assert 2 * flops["pixels"][0] < 4 * flops["pixels"][1]
    assert all(row["pictures"] == 4 and row["seconds"] for row in result["batches"].values())
    assert all(row["share"] > 0 for row in result["rate"]["steps"])
    assert "matrix products" in result["rate"]["profile"]["seconds"]
    page = tmp_path / "page.md"
    tables.main([str(out), "--out", str(page)])
    assert all(head in page.read_text() for head in ("| references |", "| people |", "| 4 pictures |", "profiled"))


def test_random_model_of_a_size(tmp_path: Path):
    from feedface.checkpoints.bundle import load_bundle

    folder = write_random_bundle(tmp_path / "tiny", SIZES["tiny"], "random-tiny")
    bundle = load_bundle(folder)
    prompt = {"text": bundle.text_encoder.encode(["a man"])}
    latents = sample(bundle.backbone, prompt, [0], steps=1)["img"]
    assert bundle.vae.decode(latents).isfinite().all()


@pytest.mark.slow
def test_memory_of_a_process_of_its_own(toy: Path, tmp_path: Path):
    out = tmp_path / "out.json"
    few = ["--model", str(toy), "--device", "cpu", "--out", str(out), "--measure", "memory"]
    sampling.main([*few, "--variants", "release", "balanced", "low_memory"])
    variants = json.loads(out.read_text())["variants"]
    assert all(row["peak_gib"] > 0.1 and row["seconds_from_files"] > 0 for row in variants.values())

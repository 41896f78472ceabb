"""research.benchmarks.quality on the toy model: words, counts, distances, going on, and the page."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from research.benchmarks.quality import measure as measuring
from research.benchmarks.quality.measure import Artist, distance
from research.benchmarks.quality.page import write_study
from research.benchmarks.quality.settings import PRIORITY, RELEASE, parse
from tests.toy import IMAGE_SIZE, make_toy_bundle

from feedface import settings as presets
from feedface.checkpoints.bundle import load_bundle, read_index, write_index
from feedface.checkpoints.few_step import FewStep, save_few_step
from feedface.common.errors import UserError
from feedface.settings import EVERYWHERE, Settings

CPU = torch.device("cpu")
PEOPLE, EACH = 3, 2
TOY = (
    {"guidance": 2.0, "face_scale": 1.0, "uncond": "true_uncond"},
    IMAGE_SIZE,
    16,
)  # what `Settings.for_model` is told


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def cases():
    """What `Bench` takes of a `Measurer`; its judge likes red."""
    crops = np.empty((PEOPLE, 1), dtype=object)
    for person in range(PEOPLE):
        crops[person, 0] = np.random.default_rng(person).integers(0, 256, (32, 32, 3), dtype=np.uint8)

    def judge(pictures, shown):
        red = pictures[..., 0].mean(axis=(1, 2, 3)) / 255
        return {name: red for name in ("nearest", "other", "attributes_shown", "attributes_asked")}

    pictures = np.zeros((PEOPLE, EACH, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    prompts = [f"person {number}" for number in range(PEOPLE * EACH)]
    return SimpleNamespace(crops=crops, prompts=prompts, cases=SimpleNamespace(pictures=pictures), judge=judge)


@pytest.fixture(scope="module")
def bundle(toy):
    return load_bundle(toy)


@pytest.fixture(scope="module")
def artist(bundle, cases):
    return Artist(bundle, cases.prompts, cases.crops, 0, CPU, torch.float32)


def complete(words):
    return parse(words).settings.for_model(*TOY)


def test_words_name_one_setting_each():
    settings = [parse(words) for words in PRIORITY]
    assert [setting.name for setting in settings] == list(PRIORITY) and PRIORITY[0] == RELEASE
    assert len({setting.file_name for setting in settings}) == len(PRIORITY)


@pytest.mark.parametrize(
    "words", ["dpmsolver 10", "unipc", "unipc 10, reuse", "unipc 10, reuse 2, reuse 3", "few-step, reuse 2",
              "unipc 10, guidance 900-100", "unipc 0", "preset best", "unipc 10, face 0-2000"],
)  # fmt: skip
def test_other_words_are_refused(words):
    with pytest.raises(UserError):
        parse(words)


def test_what_is_not_said_is_not_approximated(monkeypatch):
    approximate = Settings(steps=7, guidance_interval=(1, 2), face_interval=(1, 2), reuse=5).over(presets.PLAIN)
    monkeypatch.setitem(presets.PRESETS, "balanced", approximate)
    plain, preset = (parse(words).settings.for_model(*TOY) for words in ("unipc 8", "preset balanced"))
    assert (plain.steps, plain.scheduler, plain.reuse) == (8, "unipc", 1)
    assert plain.guidance_interval == plain.face_interval == EVERYWHERE
    assert (preset.steps, preset.reuse, preset.face_interval) == (7, 5, (1, 2))


def counts(cost, *names):
    return tuple(cost[name] for name in names)


def test_passes_are_counted(artist):
    """dpmsolver++ 10 stands at t = 1000, 876, 725, 539, 331, 154, 53, 15, 4, 1."""
    plain = artist.cost(complete("dpmsolver++ 10"))
    assert counts(plain, "conditional", "unconditional", "control", "blocks") == (10, 10, 10, 1)
    guided = artist.cost(complete("dpmsolver++ 10, guidance 100-1000"))
    assert counts(guided, "conditional", "unconditional", "control") == (10, 6, 10)
    faced = artist.cost(complete("dpmsolver++ 10, face 0-800"))
    assert counts(faced, "unconditional", "control") == (10, 8)
    reused = artist.cost(complete("dpmsolver++ 10, reuse 2"))
    assert counts(reused, "conditional", "unconditional") == (10, 10) and 0.5 < reused["blocks"] < 1
    assert max(cost["gflop"] for cost in (guided, faced, reused)) < plain["gflop"]
    half = artist.cost(complete("dpmsolver++ 5"))
    assert half["gflop"] == pytest.approx(plain["gflop"] / 2, rel=0.1)


def test_more_evaluations_come_nearer_to_the_fine_solution(artist):
    fine, coarse, close = (artist.latents([0, 3], complete(f"dpmsolver++ {steps}"), 2) for steps in (60, 5, 20))
    assert (distance(close, fine) < distance(coarse, fine) / 2).all()
    alone = artist.latents([3], complete("dpmsolver++ 5"), 1)
    assert distance(alone, coarse[1:])[0] < 1e-5
    assert distance(torch.zeros(2, 3), torch.tensor([[3.0, 0, 0], [2, 2, 2]])) == pytest.approx([3**0.5, 2])


def test_the_adapter_is_merged_for_its_pictures_only(cases, tmp_path):
    folder = make_toy_bundle(tmp_path)
    weights = {"backbone.mid_block.mlp.fc1": (torch.ones(2, 32), torch.eye(64, 2))}
    adapter = FewStep((1000, 600, 250, 60), 2.0, 1.0, "true_uncond", weights)
    save_few_step(folder / "few_step", adapter)
    index = read_index(folder)
    components = {**index.components, "few_step": "few_step"}
    write_index(folder, name="toy", image_size=IMAGE_SIZE, components=components, defaults=index.defaults)
    artist = Artist(load_bundle(folder), cases.prompts, cases.crops, 0, CPU, torch.float32)
    few = parse("few-step").settings.for_model(*TOY, artist.bundle.few_step)
    before = artist.latents([0], complete("ddim 4"), 1)
    cost = artist.cost(few)
    assert counts(cost, "conditional", "unconditional", "control") == (4, 0, 4)
    assert distance(artist.latents([0], few, 1), before)[0] > 0.01
    assert torch.equal(artist.latents([0], complete("ddim 4"), 1), before)


@pytest.fixture
def bench(toy, bundle, cases, tmp_path, monkeypatch):
    """Makes benches that keep their results in one folder."""
    monkeypatch.setattr(measuring, "Measurer", lambda config, device: SimpleNamespace(
        **vars(cases), bundle=bundle, device=CPU))  # fmt: skip

    def make(seed=0):
        measure = {"people": PEOPLE, "samples_per_person": EACH, "references": 1, "seed": seed, "batch_size": 4}
        return measuring.Bench(ConfigDict({"model": str(toy), "measure": measure}), tmp_path, "cpu", 8, 2)

    return make


def test_settings_are_measured_once_and_with_one_set_of_cases(bench, monkeypatch):
    fine, other, preset = map(parse, ("dpmsolver++ 8", "dpmsolver++ 8, int8", "preset fast"))
    first = bench()
    results = {setting: first.measure(setting) for setting in (fine, other, preset)}
    people = results[fine]["people"]
    assert len(people["other"]) == PEOPLE and people["distance_latent"] == people["distance_pixel"] == [0, 0]
    assert 0 < max(results[other]["people"]["distance_latent"]) < 0.5
    assert results[other]["cost"] == results[fine]["cost"]
    again = bench()
    assert all(again.is_done(setting) for setting in (fine, other, preset)) and not again.is_done(parse("ddim 3"))
    monkeypatch.setitem(presets.PRESETS, "fast", Settings(steps=2).over(presets.PRESETS["fast"]))
    assert not again.is_done(preset) and again.is_done(other)
    with pytest.raises(UserError, match="no few-step adapter"):
        again.measure(parse("few-step"))
    with pytest.raises(UserError, match="another cases"):
        bench(seed=1)


def result(words, identity, gflop):
    """Made up: identity and attributes of 12 people who differ a lot."""
    setting, person = parse(words), np.random.default_rng(0).normal(0, 0.1, 12)
    people = {"nearest": [1.0, 0.0] * 6, "other": list(identity + person), "attributes_shown": [6] * 12,
              "attributes_asked": [10] * 12, "distance_latent": [0.1, 0.3], "distance_pixel": [1.0, 3.0]}  # fmt: skip
    cost = {
        "conditional": setting.settings.steps or 4,
        "unconditional": 2,
        "control": 2.5,
        "blocks": 0.5,
        "gflop": gflop,
    }
    return {"setting": words, "cost": cost, "people": people}


def test_the_page_compares_with_the_releases_way(tmp_path):
    made_up = {RELEASE: (0.3, 40.0), "unipc 8": (0.3, 8.0), "unipc 4": (0.1, 4.0), "unipc 8, reuse 2": (0.29, 6.0)}
    cases = {"people": 12, "samples_per_person": 1, "references": 1, "seed": 0}
    about = {"model": "abc", "cases": cases, "fine": {"setting": "dpmsolver++ 200", "people": 2}}
    (tmp_path / "about.json").write_text(json.dumps(about))
    for words, (identity, gflop) in list(made_up.items())[::-1]:
        if words == RELEASE:
            with pytest.raises(UserError, match="not measured yet"):
                write_study(tmp_path, tmp_path / "out")
        (tmp_path / parse(words).file_name).write_text(json.dumps(result(words, identity, gflop)))
    page = write_study(tmp_path, tmp_path / "out").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    by_name = {row[0]: row for row in rows}
    assert [row[0] for row in rows if row[0] in made_up] == [RELEASE, "unipc 4", "unipc 8", "unipc 8, reuse 2"]
    assert [by_name[words][4] for words in made_up] == ["100.0 %", "20.0 %", "10.0 %", "15.0 %"]
    assert by_name["unipc 4"][7] == "**-0.200 [-0.200, -0.200]**" and by_name["unipc 4"][-1] == "not identity"
    assert by_name["unipc 8"][7] == "0.000 [0.000, 0.000]" and by_name["unipc 8"][-1] == "all"
    kept = [row[1] for row in rows if "interval" in row[0]]
    assert kept[0].startswith("unipc 8, reuse 2 (15.0 %); unipc 8 (20.0 %)") and kept[1].startswith("unipc 8 (20.0 %)")
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {
        f"sampling_{what}_{x}.png" for what in ("identity", "attributes", "distance") for x in ("evaluations", "cost")
    }

"""DreamBooth with LoRA: what it learns, what it leaves alone, and that a stopped run goes on."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from research.baselines import sessions as sessions_module
from research.baselines.compare import differences, figures, measure_references, normalised
from research.baselines.dreambooth import contact_sheet, first_people, parse, run
from research.baselines.personalise import (
    DreamBoothSettings,
    draw_prior,
    encode_pictures,
    personalise,
    pick_identifier,
    with_identifier,
)
from research.baselines.sessions import Sessions, class_prompts, noun_of, people_of
from research.people import judged
from tests.toy import make_toy_bundle

from feedface.checkpoints.bundle import load_bundle
from feedface.common.errors import UserError
from feedface.encoders import load_tokenizer
from feedface.evaluation.cases import FIRST_IDENTITY, WORLD_SEED, make_cases
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.mini import Judge
from feedface.settings import Settings
from feedface.synthetic.world import ATTRIBUTES, make_portraits

PEOPLE, REFERENCES, SAMPLES = 2, 2, 2
TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "skip_linear")  # all linears of the U-ViT's blocks
PARTS = ("backbone", "vae", "text_encoder", "image_encoder")
CPU = torch.device("cpu")
QUICK = DreamBoothSettings(train_steps=3, rank=2, batch_size=2, warmup_steps=1, prior_weight=1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def bundle(model):
    return load_bundle(model, CPU, torch.float32, PARTS)


@pytest.fixture(scope="module")
def settings(bundle):
    return Settings(steps=2).for_model(bundle.defaults, bundle.image_size, bundle.size_multiple)


@pytest.fixture(scope="module")
def prior(bundle, settings):
    return draw_prior(bundle, ["a man", "a man in a hat", "a happy man"], settings, seed=5, batch_size=2)


@pytest.fixture(scope="module")
def cases():
    return make_cases(PEOPLE, REFERENCES, SAMPLES, size=64)


@pytest.fixture(scope="module")
def learned(bundle, prior, cases):
    person = people_of(cases)[0]
    return personalise(bundle, person.pictures, person.captions, QUICK, CPU, prior)


@pytest.mark.parametrize(
    "caption, wanted",
    [
        ("a photo of a smiling man on a beach", "a photo of a smiling sks man on a beach"),
        ("Woman, in a red hat", "sks Woman, in a red hat"),
        ("a woman and a man", "a sks woman and a man"),
    ],
)
def test_the_identifier_stands_before_the_first_noun(caption, wanted):
    assert with_identifier(caption, "sks") == wanted


def test_a_caption_about_nobody_is_named():
    with pytest.raises(UserError, match="a red mandolin"):
        with_identifier("a red mandolin", "sks")


def test_the_mini_identifier_is_one_token_that_no_caption_has(cases):
    tokenizer = load_tokenizer("models/mini/tokenizer")
    identifier = pick_identifier(tokenizer)
    (token,) = tokenizer(identifier, add_special_tokens=False).input_ids
    captions = [caption for person in people_of(cases) for caption in person.captions + person.prompts]
    assert len(captions) == PEOPLE * (REFERENCES + SAMPLES)
    assert all(token not in tokenizer(caption).input_ids for caption in captions)
    assert all(token in tokenizer(with_identifier(caption, identifier)).input_ids for caption in captions)


def test_captions_are_those_of_the_references(cases):
    people = people_of(cases)
    assert [person.case for person in people] == [f"{FIRST_IDENTITY + i:06d}" for i in range(PEOPLE)]
    drawn = make_portraits([FIRST_IDENTITY + 1] * REFERENCES, range(100, 100 + REFERENCES), WORLD_SEED, 64)
    assert np.array_equal(drawn.images, people[1].pictures)
    assert drawn.captions == people[1].captions


def test_class_prompts_are_of_the_class():
    prompts = class_prompts("woman", 5)
    assert len(prompts) == 5
    assert all(noun_of(prompt) == "woman" and "woman" in prompt for prompt in prompts)


def test_the_prior_does_not_depend_on_the_batch(bundle, settings, prior):
    whole = draw_prior(bundle, ["a man", "a man in a hat", "a happy man"], settings, seed=5)
    assert len(prior) == 3 and prior.mean.shape == (3, 1, 4, 8, 8)
    assert torch.allclose(whole.mean, prior.mean, atol=1e-4)
    assert torch.allclose(whole.others["clip_img"], prior.others["clip_img"], atol=1e-4)
    assert not prior.std.any()


def test_both_views_of_a_picture_are_encoded(bundle, cases):
    picture = cases.references[0, 0]
    examples = encode_pictures(bundle, [picture, picture[:, ::-1].copy()], ["a man", "a man"], CPU)
    assert torch.allclose(examples.mean[0, 0], examples.mean[1, 1], atol=1e-5)
    assert torch.allclose(examples.others["clip_img"][0, 1], examples.others["clip_img"][1, 0], atol=1e-5)
    assert (examples.mean[0, 0] - examples.mean[0, 1]).abs().max() > 1e-3


def test_only_the_targets_of_a_copy_change(model, bundle, learned):
    before, after = (
        load_bundle(model, CPU, torch.float32, ["backbone"]).backbone.state_dict(),
        learned.backbone.state_dict(),
    )
    assert list(after) == list(before)
    for name, value in bundle.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    targeted = {name for name in before if name.removesuffix(".weight").endswith(tuple(f".{t}" for t in TARGETS))}
    assert targeted and changed == targeted
    # A product of two matrices of rank 2 is what LoRA adds.
    change = after["in_blocks.0.attn.qkv.weight"] - before["in_blocks.0.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(change, atol=1e-5) == QUICK.rank
    assert not any(parameter.requires_grad for parameter in learned.backbone.parameters())
    assert learned.steps == len(learned.losses) == len(learned.prior_losses) == 3 and learned.seconds > 0


def test_the_same_seed_gives_the_same_weights(bundle, prior, cases, learned):
    person = people_of(cases)[0]
    state = torch.random.get_rng_state()
    again = personalise(bundle, person.pictures, person.captions, QUICK, CPU, prior)
    assert torch.equal(state, torch.random.get_rng_state())
    assert again.losses == learned.losses
    other = personalise(bundle, person.pictures, person.captions, replace(QUICK, seed=1), CPU, prior)
    assert other.losses != learned.losses


def test_the_person_is_learned(bundle, cases):
    person = people_of(cases)[0]
    learning = DreamBoothSettings(train_steps=60, lr=1e-2, batch_size=16, prior_weight=0)
    losses = personalise(bundle, person.pictures, person.captions, learning, CPU).losses
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:5])


def test_what_is_missing_is_said(bundle, cases):
    person = people_of(cases)[0]
    with pytest.raises(UserError, match="one caption a picture"):
        personalise(bundle, person.pictures, person.captions[:1], QUICK, CPU)
    with pytest.raises(UserError, match="needs prior pictures"):
        personalise(bundle, person.pictures, person.captions, QUICK, CPU)
    with pytest.raises(UserError, match="--rank 0: out of range"):
        DreamBoothSettings(rank=0)


def test_finished_people_are_kept_and_broken_ones_made_again(bundle, settings, cases, tmp_path, monkeypatch):
    person = people_of(cases)[0]
    made = Sessions(bundle, QUICK, 2, settings, tmp_path)(person, 0, 8)
    trainings = []

    def counting(*args, **kwargs):
        trainings.append(1)
        return personalise(*args, **kwargs)

    monkeypatch.setattr(sessions_module, "personalise", counting)
    kept = Sessions(bundle, QUICK, 2, settings, tmp_path)(person, 0, 8)
    assert not trainings
    assert np.array_equal(kept[0], made[0]) and kept[1] == made[1]
    (tmp_path / person.case / "0001.png").unlink()
    repaired = Sessions(bundle, QUICK, 2, settings, tmp_path)(person, 0, 8)
    assert len(trainings) == 1
    assert np.array_equal(repaired[0], made[0])
    Sessions(bundle, replace(QUICK, lr=2 * QUICK.lr), 2, settings, tmp_path)(person, 0, 8)
    assert len(trainings) == 2


@pytest.fixture(scope="module")
def judge(cases):
    torch.manual_seed(0)
    return Judge(Inspector({name: len(classes) for name, classes in ATTRIBUTES.items()}, width=8).eval(), cases)


def test_the_judge_chooses_among_the_whole_crowd(cases, judge):
    own = judged(judge, first_people(cases, 1).gallery[:, :SAMPLES])
    assert own["nearest_identity"] == [1.0]  # even a random judge finds a gallery picture again
    assert judged(judge, cases.gallery[1:, :SAMPLES])["nearest_identity"] == [0.0]


def test_references_are_held_against_every_prompt(cases, judge):
    values = measure_references(judge, cases.references)
    seen = judge.look(cases.references)[1]
    for person in range(PEOPLE):
        pairs = [
            (seen[name][person, picture], cases.asked[name][person, prompt])
            for name in ATTRIBUTES
            for picture in range(REFERENCES)
            for prompt in range(SAMPLES)
        ]
        named = [(shown, asked) for shown, asked in pairs if asked >= 0]
        assert values["attributes_asked"][person] == len(named)
        assert values["attributes_shown"][person] == sum(shown == asked for shown, asked in named)
    cosine = (judge.references[0, 0] * judge.references[0, 1]).sum()
    assert values["similarity_to_reference"][0] == pytest.approx(cosine, abs=1e-5)


def values_of(face, shown, asked=(4, 2)):
    face = np.array(face)
    counts = {"attributes_shown": np.array(shown), "attributes_asked": np.array(asked)}
    return {"nearest_identity": face, "similarity_to_another_picture": face, "similarity_to_reference": face, **counts}


def test_normalised_scores_and_differences():
    systems = {
        "no face": values_of([0.0, 0.1], [4, 2]),
        "references": values_of([0.6, 0.5], [1, 0], (2, 2)),
        "a": values_of([0.3, 0.3], [3, 1]),
        "b": values_of([0.1, 0.2], [4, 1]),
    }
    assert [figure.value for figure in normalised(systems, "no face").values()] == pytest.approx([0, 1, 1])
    assert [figure.value for figure in normalised(systems, "references").values()] == pytest.approx([1, 0, 1])
    # face (0.3 - 0.05) / (0.55 - 0.05); text (4/6 - 1/4) / (6/6 - 1/4)
    a = normalised(systems, "a")
    assert [a[name].value for name in ("face", "text", "overall")] == pytest.approx([0.5, 5 / 9, 0.5 + 5 / 9])
    gaps = differences(systems, "a", "b")
    assert gaps["similarity_to_another_picture"].value == pytest.approx(0.15)
    assert gaps["attributes"].value == pytest.approx(-1 / 6)
    assert gaps["overall"].value == pytest.approx(a["overall"].value - normalised(systems, "b")["overall"].value)


def test_one_reference_cannot_be_normalised():
    systems = {name: values_of([0.2, 0.3], [1, 1]) for name in ("no face", "a", "b")}
    systems["references"] = values_of([np.nan, np.nan], [1, 1])
    assert normalised(systems, "a") is None
    assert "overall" not in differences(systems, "a", "b")
    assert "similarity_to_reference" not in figures(systems["references"])


def test_the_command_writes_scores_and_a_sheet(model, tmp_path, monkeypatch):
    torch.manual_seed(0)
    judge_folder = tmp_path / "inspector"
    Inspector({name: len(classes) for name, classes in ATTRIBUTES.items()}, width=8).save_pretrained(judge_folder)
    out = tmp_path / "new" / "dreambooth.json"
    arguments = f"--model {model} --inspector {judge_folder} --out {out} --people 2 --crowd 3 --references 2"
    arguments += " --samples_per_identity 1 --train_steps 1 --rank 2 --batch_size 1 --prior_pictures 1 --steps 2"
    scores = run(parse([*arguments.split(), "--device", "cpu"]))
    assert json.loads(out.read_text()) == scores
    assert scores["cases"]["people"] == [f"{FIRST_IDENTITY + i:06d}" for i in range(2)]
    assert set(scores["systems"]) == {"dreambooth", "no face", "face-controlnet", "references"}
    for system in scores["systems"].values():
        assert all(len(row) == 2 for row in system["per_person"].values())
    assert scores["seconds"]["dreambooth"] > 0
    assert scores["training"]["train_steps"] == 1
    assert (out.parent / "dreambooth_sheet.png").is_file()

    def never(*args, **kwargs):
        raise AssertionError("was learned already")

    monkeypatch.setattr(sessions_module, "personalise", never)
    again = run(parse([*arguments.split(), "--device", "cpu"]))
    assert again["systems"] == scores["systems"] and again["people"] == scores["people"]


def test_the_sheet_shows_every_system(cases):
    drawn = {"one": cases.pictures, "other": np.zeros_like(cases.pictures)}
    one = contact_sheet(cases, {"one": cases.pictures})
    both = contact_sheet(cases, drawn)
    assert both.width > one.width


@pytest.mark.parametrize("arguments", ["--people 0", "--references 0", "--crowd 1", "--prior_pictures 0"])
def test_numbers_out_of_range_are_user_errors(arguments):
    with pytest.raises(UserError, match="out of range"):
        parse(["--out", "x.json", *arguments.split()])

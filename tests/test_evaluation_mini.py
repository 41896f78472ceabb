"""The evaluation in the mini world from end to end, with a tiny random model and a random judge."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toy import make_toy_bundle

from feedface.checkpoints.bundle import load_bundle
from feedface.common.errors import UserError
from feedface.diffusion.state import take
from feedface.evaluation.cases import crop_references, make_cases
from feedface.evaluation.cli import main
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.judges import InspectorJudge
from feedface.evaluation.mini import Judge, draw, encode_faces, load_judge
from feedface.evaluation.protocols import MiniCases
from feedface.faces.detect import Face
from feedface.settings import Settings
from feedface.synthetic.world import ATTRIBUTES

PEOPLE, SAMPLES = 4, 2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("judge") / "inspector"
    Inspector({name: len(classes) for name, classes in ATTRIBUTES.items()}, width=8).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def cases():
    return make_cases(PEOPLE, references=2, samples=SAMPLES, size=64)


def test_prompts_name_what_is_asked_for_and_fit_the_person(cases):
    named = 0
    for person, prompts in enumerate(cases.prompts):
        for sample, prompt in enumerate(prompts):
            asked = {name: ATTRIBUTES[name][values[person, sample]] for name, values in cases.asked.items()
                     if values[person, sample] >= 0}  # fmt: skip
            assert asked["gender"] in prompt.split()
            for name in {"clothes", "clothes_colour", "hat", "glasses"} & asked.keys():
                assert asked[name] in prompt
                named += 1
            assert ("sunglasses" in prompt or "glasses" in prompt) == ("glasses" in asked)
    assert named >= 2 * PEOPLE * SAMPLES
    genders = cases.asked["gender"]
    assert (genders == genders[:, :1]).all()


def test_more_references_change_neither_prompts_nor_gallery(cases):
    fewer = make_cases(PEOPLE, references=1, samples=SAMPLES, size=64)
    assert fewer.prompts == cases.prompts
    assert np.array_equal(fewer.gallery, cases.gallery)
    assert np.array_equal(fewer.references, cases.references[:, :1])


def test_reference_crops_follow_the_true_boxes(cases):
    crops, found = crop_references(cases, "truth", None)
    assert crops.shape == (PEOPLE, 2) and found == 1.0
    x0, y0, x1, y1 = cases.boxes[1, 1]
    assert crops[1, 1].shape[0] == round(1.1 * float(max(x1 - x0, y1 - y0)))


def test_without_a_found_face_the_whole_picture_is_taken_and_counted(cases):
    empty = cases.__class__(**{**vars(cases), "references": np.zeros_like(cases.references)})
    crops, found = crop_references(empty, "opencv", None)
    assert found == 0
    assert crops[0, 0].shape == (64, 64, 3)


def test_a_real_picture_counts_as_itself(cases, judge_folder):
    judge = Judge(Inspector.from_pretrained(judge_folder), cases)
    row, _ = judge.score(cases.gallery[:, :SAMPLES], shown=1)
    # Even a random judge finds a picture again that is part of the gallery.
    assert row["nearest_identity"].value == 1.0
    swapped, _ = judge.score(np.roll(cases.gallery[:, :SAMPLES], 1, axis=0), shown=1)
    assert swapped["nearest_identity"].value == 0.0


def test_pictures_do_not_depend_on_the_batch_and_follow_the_face(model, cases):
    bundle = load_bundle(model)
    crops, _ = crop_references(cases, "truth", None)
    faces = encode_faces(bundle, crops, torch.device("cpu"), torch.float32)
    prompts = [row[0] for row in cases.prompts]
    settings = Settings().for_model(bundle.defaults, bundle.image_size, 16)

    def run(tokens, batch_size):
        return draw(bundle, prompts, tokens, settings, 7, batch_size, torch.device("cpu"), "test").astype(int)

    together, apart, without = run(faces, 4), run(faces, 3), run(None, 4)
    assert together.shape == (PEOPLE, 64, 64, 3)
    assert np.abs(together - apart).max() <= 1
    assert np.abs(together - without).max() > 3
    other = run(take(faces, [3, 0, 1, 2]), 4)
    assert np.abs(together - other).max() > 1


def test_a_picture_without_a_face_is_nobodys(cases, judge_folder):
    class Pack:
        def faces(self, pictures):
            return [
                None if (picture == 0).all() else Face(np.array([1, 1, 9, 9], np.float32), 1.0) for picture in pictures
            ]

    pictures = [cases.gallery[0, 0], np.zeros((64, 64, 3), np.uint8)]
    inspector = Inspector.from_pretrained(judge_folder)
    looks = InspectorJudge(inspector, Pack()).look(pictures)
    assert looks.found.tolist() == [True, False] and not looks.embeddings[1].any() and looks.faces[1] is None
    assert InspectorJudge(inspector, None).look(pictures).found.all()


def test_cases_of_the_protocol(cases, judge_folder):
    protocol = MiniCases(PEOPLE, SAMPLES, references=2, size=64, seed=5, stride=3)
    case = protocol.load(1, InspectorJudge(Inspector.from_pretrained(judge_folder), None))
    assert case.name == protocol.names[1] == "person_20001"
    assert list(case.prompts) == cases.prompts[1] and case.seeds == (5 + 2 * 3, 5 + 3 * 3)
    assert np.array_equal(case.references[0], cases.references[1, 0]) and len(case.crops) == 2
    assert case.own.shape == (2, 128) and case.others.shape == (4, 128)
    assert np.array_equal(case.real[1], cases.pictures[1, 1])
    assert case.asked[0]["gender"] == cases.asked["gender"][1, 0]


def test_the_protocol(model, judge_folder, tmp_path):
    out = tmp_path / "out"
    arguments = f"--protocol mini --model {model} --inspector {judge_folder} --out {out} --identities {PEOPLE}"
    arguments += f" --samples_per_identity {SAMPLES} --references 0 1 2 --steps 2 --device cpu --batch_size 5"
    assert main(arguments.split()) == 0
    scores = json.loads((out / "scores.json").read_text())
    real = ["real other picture", "real other picture through the VAE"]
    assert list(scores["systems"]) == [*real, "0 references", "1 reference", "2 references"]
    assert list(scores["comparisons"]) == ["1 reference - 0 references", "2 references - 0 references"]
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * PEOPLE * SAMPLES
    for name, system in scores["systems"].items():
        for figure in system["figures"].values():
            assert figure["low"] <= figure["value"] <= figure["high"]
        assert ("seconds" in system["figures"]) == (name not in real)
        assert "attribute_all" in system["figures"] and "no face models" in system["not_measured"]["clip_face"]
    assert scores["systems"]["1 reference"]["settings"]["steps"] == 2
    assert (
        scores["cases"]["chance"] == 1 / PEOPLE
        and scores["systems"][real[0]]["normalised"]["text_measure"] == "attributes"
    )
    # The real pictures are those that the prompts describe, so a judge of them agrees with itself.
    of_real = {row["case"]: row for row in rows if row["system"] == real[0] and row["prompt"] == 0}
    case = of_real["person_20002"]
    assert np.array_equal(np.asarray(Image.open(out / case["file"])), make_cases(PEOPLE, 2, SAMPLES, 64).pictures[2, 0])
    assert {row["seed"] for row in rows} == set(range(PEOPLE * SAMPLES))


def test_model_folders_are_compared_on_the_same_people_prompts_and_seeds(model, judge_folder, tmp_path):
    other, out = make_toy_bundle(tmp_path / "other", seed=1), tmp_path / "out"
    arguments = f"--protocol mini --systems {model} {other} --inspector {judge_folder} --out {out} --identities 2"
    arguments += " --samples_per_identity 1 --references 0 2 --steps 2 --device cpu --batch_size 4"
    assert main(arguments.split()) == 0
    scores = json.loads((out / "scores.json").read_text())
    names = ["toy, 0 references", "toy, 2 references", "other, 0 references", "other, 2 references"]
    assert list(scores["systems"])[2:] == names
    # Each with the first system, and with the first that is shown as many references.
    assert set(scores["comparisons"]) == {
        f"{names[1]} - {names[0]}", f"{names[2]} - {names[0]}", f"{names[3]} - {names[0]}", f"{names[3]} - {names[1]}"
    }  # fmt: skip
    figures = scores["comparisons"][f"{names[3]} - {names[1]}"]
    for key in ("nearest", "attributes", "face_other", "seconds"):
        assert figures[key]["low"] <= figures[key]["value"] <= figures[key]["high"]
    rows = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    asked = [[(row["case"], row["prompt"], row["seed"]) for row in rows if row["system"] == name] for name in names]
    assert asked[0] == asked[1] == asked[2] == asked[3] and len(asked[0]) == 2
    digests = {scores["systems"][name]["model"]["digest"] for name in names}
    assert len(digests) == 2


def test_a_model_without_a_judge_says_what_to_do(model, tmp_path):
    with pytest.raises(UserError, match="--inspector"):
        load_judge(None, load_bundle(model), torch.device("cpu"))
    with pytest.raises(UserError, match="--inspector"):
        main(["--protocol", "mini", "--model", str(model), "--out", str(tmp_path / "out"), "--device", "cpu"])

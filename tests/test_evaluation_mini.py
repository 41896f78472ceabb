"""The evaluation of a mini model from end to end, with a tiny random model and a random judge."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toy import make_toy_bundle

from feedface.checkpoints.bundle import load_bundle
from feedface.errors import UserError
from feedface.evaluation.cases import crop_references, make_cases
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.mini import Judge, draw, encode_faces, evaluate, parse
from feedface.evaluation.report import people_sheet
from feedface.portraits import ATTRIBUTES
from feedface.settings import Settings

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
    other = run(faces.roll(1, dims=0), 4)
    assert np.abs(together - other).max() > 1


def test_evaluation_writes_scores_tables_and_sheets(model, judge_folder, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = f"--model {model} --inspector {judge_folder} --out {out} --identities {PEOPLE}"
    arguments += f" --samples_per_identity {SAMPLES} --references 0 1 2 --steps 2 --device cpu --batch_size 5"
    scores = evaluate(parse(arguments.split()))
    assert json.loads((out / "scores.json").read_text()) == scores
    assert list(scores["rows"]) == [
        "real other picture", "real other picture through the VAE", "0 references", "1 reference", "2 references",
    ]  # fmt: skip
    for row in scores["rows"].values():
        for figure in row.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
    assert scores["settings"]["steps"] == 2
    assert set(scores["attributes_relative_to_no_face"]) == {"1", "2"}
    assert sorted(path.name for path in out.iterdir()) == [
        "scores.json", "scores.md", "sheet.png", "sheet_0_references.png", "sheet_2_references.png",
    ]  # fmt: skip
    table = (out / "scores.md").read_text()
    assert table in capsys.readouterr().out
    shown = scores["rows"]["1 reference"]["nearest_identity"]["value"]
    line = next(line for line in table.splitlines() if line.startswith("| 1 reference"))
    assert f"{shown:.1%}" in line

    again = evaluate(parse([*arguments.split(), "--out", str(tmp_path / "again")]))
    assert again["rows"] == scores["rows"]


def test_sheet_holds_every_person_and_prompt():
    references = np.full((2, 64, 64, 3), 200, np.uint8)
    samples = np.zeros((2, 3, 64, 64, 3), np.uint8)
    samples[1, 2] = 90
    sheet = people_sheet(references, samples, [["a very long prompt " * 5] * 3] * 2)
    assert isinstance(sheet, Image.Image)
    pixels = np.asarray(sheet)
    for value, cells in ((200, 2), (0, 5), (90, 1)):
        area = (pixels == value).all(axis=2).sum() / (64 * 3) ** 2
        assert area == pytest.approx(cells, abs=0.2)


@pytest.mark.parametrize(
    "arguments", ["--identities 1", "--samples_per_identity 0", "--references -1", "--batch_size 0", "--seed -1"]
)
def test_numbers_out_of_range_are_user_errors(arguments):
    with pytest.raises(UserError, match="out of range"):
        parse(["--out", "x", *arguments.split()])


def test_a_model_without_a_judge_says_what_to_do(model, tmp_path):
    with pytest.raises(UserError, match="--inspector"):
        evaluate(parse(["--model", str(model), "--out", str(tmp_path / "out"), "--device", "cpu"]))

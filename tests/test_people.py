"""Several people in one picture, and people as files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import make_toy_bundle

from feedface.commands import inference
from feedface.common.errors import UserError
from feedface.inference.jobs import read_jobs
from feedface.inference.people import find_regions
from feedface.inference.person import load_person
from feedface.inference.regions import apart, box_mask, together
from feedface.inference.somebody import described, parse_people
from feedface.pipeline import FeedFacePipeline, Request
from feedface.settings import Settings


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def pipe(toy):
    return FeedFacePipeline.from_pretrained(toy, device="cpu")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        pixels = np.random.default_rng(index).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


def run(toy, *options):
    return inference.main([*map(str, ("--model", toy, "--device", "cpu", "--no_detect", "--steps", 2, *options))])


def results():
    return json.loads(Path("outputs/results.json").read_text())


def pixels():
    return [np.asarray(Image.open(path)) for path in sorted(Path("outputs").glob("[0-9]*.png"))]


LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
SETTINGS = Settings(steps=2, preset="quality")


def drawn(pipe, *identities):
    [image] = pipe.draw([Request("a man", 3, identity) for identity in identities], SETTINGS)
    return np.asarray(image).astype(int)


def identities(pipe, here):
    for name in ("a.png", "b.png"):
        pipe.set_faces([here / name])
        yield pipe._identity


def test_the_same_person_in_both_halves_is_that_person(pipe, here):
    anna, ben = identities(pipe, here)
    alone = drawn(pipe, anna)
    assert np.abs(drawn(pipe, pipe.together([anna, anna], [LEFT, RIGHT])) - alone).max() <= 1
    assert np.abs(drawn(pipe, pipe.together([anna, ben], [(0, 0, 1, 1), box_mask(LEFT) * 0])) - alone).max() <= 1
    both, turned = (drawn(pipe, pipe.together(pair, [LEFT, RIGHT])) for pair in ((anna, ben), (ben, anna)))
    assert np.abs(both - alone).max() > 3 and np.abs(both - turned).max() > 3


def test_rows_of_a_batch_have_people_and_regions_of_their_own(pipe, here):
    anna, ben = identities(pipe, here)
    wishes = [pipe.together([anna, ben], [LEFT, RIGHT]), pipe.together([ben, anna], [RIGHT, LEFT])]
    wishes.append(pipe.together([ben, anna], [LEFT, RIGHT]))
    images = list(pipe.draw([Request("a man", 3, wish) for wish in wishes], SETTINGS))
    first, same, other = (np.asarray(image).astype(int) for image in images)
    assert np.abs(first - same).max() <= 2 < np.abs(first - other).max()
    assert np.abs(first - drawn(pipe, wishes[0])).max() <= 2


def test_a_joint_identity_comes_apart_as_it_was_put_together():
    people = [{"tokens": torch.ones(1, 2, 3)}, {"tokens": torch.zeros(1, 4, 3), "more": torch.ones(1, 1)}]
    found = apart(together(people, [LEFT, torch.ones(8, 8)]))
    assert [sorted(person) for person, _ in found] == [["tokens"], ["more", "tokens"]]
    assert found[0][1].shape == found[1][1].shape == (1, 256, 256)
    assert found[0][1].mean() == 0.5 and found[1][1].min() == 1


def test_people_by_name_on_the_command_line(toy, here):
    people = ["--person", "anna:woman=a.png,c.png", "--person", "ben=b.png", "--prompt", "anna and ben at sea"]
    run(toy, *people, "--region", "anna=0,0,0.5,1", "--region", "ben=0.5,0,1,1")
    found = results()
    assert found["pictures"][0]["prompt"] == "a woman and a person at sea"
    assert set(found["pictures"][0]["people"]) == {"anna", "ben"} and len(found["references"]) == 3
    run(toy, *people, "--region", "anna=0,0,0.5,1", "--region", "ben=0.5,0,1,1")
    assert len(pixels()) == 1  # known again
    run(toy, *people, "--region", "ben=0,0,0.5,1", "--region", "anna=0.5,0,1,1")
    first, second = pixels()
    assert (first != second).any()
    mask = np.zeros((32, 32), np.uint8)
    mask[:, :16] = 255
    Image.fromarray(mask).save("left.png")
    Image.fromarray(255 - mask).save("right.png")
    run(toy, *people, "--region", "anna=left.png", "--region", "ben=right.png")
    assert np.abs(pixels()[2].astype(int) - first).max() <= 1


def test_without_regions_faces_are_found_from_the_left(toy, here, pipe):
    class Detector:
        name, has_recogniser = "two", False

        def __init__(self, *middles):
            self.middles = middles

        def detect(self, image):
            from feedface.faces.types import Face

            width = image.shape[1]
            return [Face(np.float32([m * width - 4, 8, m * width + 4, 16]), 1.0) for m in self.middles]

    full = pipe.settings(SETTINGS)
    boxes, note = find_regions(pipe, Request("two men", 3), full, Detector(0.75, 0.15), 2)
    assert boxes == [(0.0, 0.0, pytest.approx(0.45), 1.0), (pytest.approx(0.45), 0.0, 1.0, 1.0)] and not note
    boxes, note = find_regions(pipe, Request("two men", 3), full, Detector(0.5), 2)
    assert boxes == [(0, 0, 0.5, 1), (0.5, 0, 1, 1)] and "shows 1 of 2 faces" in note
    run(toy, "--person", "x=a.png", "--person", "y=b.png", "--prompt", "x and y")
    assert any("each person gets an equal strip" in note for note in results()["notices"])


def test_a_job_has_people(toy, here):
    job = {
        "id": "both",
        "caption_list": ["anna and ben"],
        "people": {
            "anna": {"source_group": [{"path": "a.png"}], "region": [0, 0, 0.5, 1], "class_word": "woman"},
            "ben": {"source_group": [{"path": "b.png"}], "region": [0.5, 0, 1, 1]},
        },
    }
    (here / "job.json").write_text(json.dumps(job))
    run(toy, "-j", "job.json")
    run(
        toy, "--person", "anna:woman=a.png", "--person", "ben=b.png", "--region", "anna=0,0,0.5,1",
        "--region", "ben=0.5,0,1,1", "--prompt", "anna and ben",
    )  # fmt: skip
    [mine] = pixels()
    assert (np.asarray(Image.open("outputs/both/0000.png")) == mine).all()
    job["people"]["ben"] = {"region": [0.5, 0, 2, 1], "source_group": [{"path": "b.png"}]}
    job["people"]["anna"] = {}
    (here / "job.json").write_text(json.dumps(job, indent=1))
    problems = read_jobs(["job.json"])[1]
    assert "people.anna: give " in problems[0] and "people.ben: region: give x0,y0,x1,y1" in problems[1]


def test_a_person_is_kept_and_drawn_without_pictures(toy, here, tmp_path):
    run(toy, "--image", "a.png", "b.png", "--prompt", "a man", "--save_person", "anna.person")
    run(toy, "--person", "anna:man=anna.person", "--prompt", "anna", "--output", "again")
    assert (np.asarray(Image.open("again/0000.png")) == pixels()[0]).all()
    run(toy, "--person", "anna:man=anna.person", "--person", "ben=c.png", "--prompt", "anna, ben", "--output", "both")
    other = make_toy_bundle(tmp_path / "other")
    weights = next(other.rglob("face_controlnet/model.safetensors"))
    from safetensors.torch import load_file, save_file

    save_file({name: value * 1.01 for name, value in load_file(weights).items()}, weights)
    with pytest.raises(UserError, match=r"anna.person: made by the method feedface of the model .* with other weights"):
        run(other, "--person", "anna=anna.person", "--prompt", "anna")
    Path("b.person").write_bytes(b"nothing")
    for name in ("b.person",):
        with pytest.raises(UserError, match="not a person's file"):
            load_person(Path(name), FeedFacePipeline.from_pretrained(toy, device="cpu"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--person", "anna"], "--person anna: give NAME=FILE"),
        (["--person", "a b=a.png"], "give NAME=FILE"),
        (["--person", "anna=none.png"], "--person anna: no such file: none.png"),
        (["--person", "x=a.png", "--person", "x=b.png"], "--person x: is given twice"),
        (["--person", "x=a.png", "--region", "y=0,0,1,1"], "--region y: nobody has this name"),
        (["--person", "x=a.png", "--region", "x=0,0,1,2"], "--region x: give x0,y0,x1,y1"),
        (["--person", "x=a.png", "--person", "z=b.png"], "--person z: the prompt does not say the name"),
        (["--person", "x=a.png", "--image", "b.png"], "leave out --image"),
        (["--image", "a.png", "--save_person", "a.txt"], r"ends in \.person"),
        (["--person", "x=a.png", "--person", "y=b.png", "--region", "x=0,0,1,1"], "--region: give one for y too"),
    ],
)
def test_what_is_wrong_with_people_is_said(toy, here, options, words):
    with pytest.raises(UserError, match=words):
        run(toy, "--prompt", "x and y", *options)
    assert not list(Path("outputs").glob("[0-9]*.png"))


def test_names_become_words(here):
    people = parse_people(["anna:actor=a.png", "ben=a.png"], [])
    assert described("anna, banana and ben", people) == "an actor, banana and a person"

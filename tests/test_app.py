"""The web page, without a browser: what its parts do. tests/test_browser.py has it in one."""

import json
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from feedface.app.background import Stopped, events
from feedface.app.batch import run_batch
from feedface.app.drawing import Order, add_photos, as_zip, draw
from feedface.app.models import Models
from feedface.app.session import Sessions
from feedface.commands import inference
from feedface.commands.app import logins
from feedface.common.errors import UserError
from feedface.common.places import CHECKOUT
from feedface.faces.detect import make_detector
from feedface.inference.job_run import RunPlan
from feedface.settings import Settings

pytest.importorskip("gradio")
ASSETS = CHECKOUT / "assets"
MINI = "FeedFace (mini)"


@pytest.fixture(scope="module")
def models():
    return Models()


@pytest.fixture(scope="module")
def detector(models):
    return make_detector("mini", models.folders[MINI] / "faces")


@pytest.fixture
def session(tmp_path):
    return Sessions(tmp_path).of("me")


def upload(tmp_path, *names):
    """Copies of pictures, as the browser leaves them."""
    files = []
    for name in names:
        files.append(tmp_path / "upload" / name)
        files[-1].parent.mkdir(exist_ok=True)
        files[-1].write_bytes((ASSETS / name).read_bytes())
    return files


def pictures_of(session, known, detector, **order):
    order = {"prompt": "a woman on a beach", "models": [MINI], "settings": Settings(preset="fast"), "seed": 3} | order
    return [one for _, _, one in draw(session, known, detector, Order(**order)) if one]


def test_photos_are_read_and_deleted_and_one_person_is_chosen(tmp_path, session, detector):
    files = upload(tmp_path, "demo_person_1.png", "demo_face.png", "demo_person_2.png", "demo_person_3.png")
    empty = tmp_path / "upload/wall.png"
    Image.new("RGB", (64, 64), (90, 120, 90)).save(empty)
    broken = tmp_path / "upload/broken.jpg"
    broken.write_bytes(b"no picture")
    notices = add_photos(session, [*files, empty, broken], detector)
    assert not any(file.exists() for file in (*files, empty, broken))
    assert [notice.partition(":")[0] for notice in notices] == ["wall.png", "broken.jpg"]
    assert str(tmp_path) not in " ".join(notices)
    assert [label for label, _ in session.choices()] == [f"{n}: {file.name}" for n, file in enumerate(files, 1)]
    assert len(session.chosen) == 4
    shown = session.shown()
    assert len(shown) == 4 and Image.open(shown[0]).size == Image.open(ASSETS / "demo_person_1.png").size
    session.chosen = {1}
    assert [face.name for face in session.references] == [files[1].name]
    session.clear()
    assert not session.faces and not list(session.folder.glob("*_photo.jpg"))


def test_a_picture_comes_with_the_job_that_makes_it_again(tmp_path, session, models, detector, monkeypatch):
    add_photos(session, upload(tmp_path, "demo_face.png"), detector)
    [one] = pictures_of(session, models, detector, strengths=[0.7])
    assert one.caption.startswith("seed 3 · strength 0.7 · likeness ")
    with zipfile.ZipFile(as_zip(one, tmp_path / "one.zip")) as archive:
        assert sorted(archive.namelist()) == sorted([one.file.name, "face_1.png", "job.json"])
        archive.extractall(tmp_path / "again")
    monkeypatch.chdir(tmp_path / "again")
    assert inference.main(["-j", "job.json", "--model", str(one.model), "--output", "out"]) == 0
    [made] = (tmp_path / "again/out").glob("*/0000.png")
    assert np.array_equal(np.asarray(Image.open(made)), np.asarray(Image.open(one.file)))
    assert Image.open(made).text["fingerprint"] == Image.open(one.file).text["fingerprint"]


def test_models_and_strengths_side_by_side_share_seeds(tmp_path, session, models, detector):
    add_photos(session, upload(tmp_path, "demo_face.png"), detector)
    both = [MINI, "FeedFace (mini-unet)"]
    settings = Settings(preset="fast", steps=2)
    found = pictures_of(session, models, detector, models=both, strengths=[0.0, 1.0], settings=settings, seed=5)
    assert [one.caption.partition(" · likeness")[0] for one in found] == [
        f"{name} · seed 5 · strength {strength}" for name in ("mini", "mini-unet") for strength in (0, 1)
    ]
    assert session.history == found[::-1]


def test_a_negative_prompt_and_any_seed(session, models, detector):
    asked = Settings(preset="quality", steps=2, negative_prompt="a hat")
    [one] = pictures_of(session, models, detector, settings=asked, seed=-1)
    assert one.job["uncond"] == "empty_token" and one.job["negative_prompt"] == "a hat"
    assert one.seed >= 0 and "likeness" not in one.caption


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"prompt": " "}, "prompt is empty"),
        ({"number": 65}, "more than 64 pictures"),
        ({"seed": -2}, "seed -2"),
        ({"models": ["another"]}, "no model is called 'another'"),
        ({"settings": Settings(size=(63, 63))}, "must be a multiple of"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(session, models, detector, order, words):
    with pytest.raises(UserError, match=words):
        pictures_of(session, models, detector, **order)
    assert not session.history


def test_stop_ends_it_at_the_next_step(session, models, detector):
    order = Order("a woman", [MINI], settings=Settings(preset="quality", steps=500), seed=1)
    steps = []
    for done, _, _ in draw(session, models, detector, order):
        steps.append(done)
        if done == 2:
            session.stop.set()
    assert max(steps) <= 4 and not session.history


def test_work_in_the_background_ends_with_its_reader_and_hands_on_errors():
    ended = threading.Event()

    def endless(emit):
        try:
            while True:
                emit(1)
                time.sleep(0.001)
        except Stopped:
            ended.set()
            raise

    reader = events(endless, threading.Event())
    assert next(reader) == 1
    reader.close()
    assert ended.is_set()

    def fails(emit):
        emit(2)
        raise UserError("no")

    reader = events(fails, threading.Event())
    assert next(reader) == 2
    with pytest.raises(UserError, match="no"):
        next(reader)


def test_a_batch_runs_the_jobs_that_it_can(tmp_path, session, models, detector):
    [face] = upload(tmp_path, "demo_face.png")
    jobs = [
        {"id": "one", "caption_list": ["a woman"], "source_group": [{"path": "../assets/demo_face.png"}]},
        {"id": "two", "caption_list": ["a woman"], "source_group": [{"path": "missing.png"}]},
    ]
    (tmp_path / "upload/jobs.json").write_text(json.dumps(jobs))
    plan = RunPlan(Settings(preset="fast"), n_samples=2)
    states = list(run_batch(session, models, MINI, detector, [str(face), str(tmp_path / "upload/jobs.json")], plan))
    assert states[0][0][0] == ["one", "", "waiting"]
    assert ["one", "0 of 2", "drawing"] in [table[0] for table, _ in states]
    table, output = states[-1]
    assert table[0] == ["one", "2 of 2", "done"]
    assert table[1][2].startswith("cannot be run: jobs.json:1: [1].source_group[0].path: no such picture: missing.png")
    assert len(list(output.glob("one/0*.png"))) == 2
    assert not face.exists() and not list(session.folder.glob("*_jobs"))


def test_visitors_do_not_meet_and_leave_nothing(tmp_path, models, detector):
    sessions = Sessions(tmp_path)
    me, you = sessions.of("me"), sessions.of("you")
    add_photos(me, upload(tmp_path, "demo_face.png"), detector)
    me.shown()
    assert not you.photos and sessions.of("me") is me
    sessions.forget("me")
    assert not me.folder.exists() and me.stop.is_set() and you.folder.exists()
    assert sessions.of("me") is not me


def test_logins():
    assert logins(["anna:se:cret", "ben:x"]) == [("anna", "se:cret"), ("ben", "x")]
    with pytest.raises(UserError, match="--auth anna: give NAME:PASSWORD"):
        logins(["anna"])


def test_words_for_the_command_line_become_words_for_fields():
    from feedface.app.page import messages, numbers, sentence

    assert sentence("--face_scale 9: out of range; use 0 to 5") == "Face scale 9: out of range; use 0 to 5."
    assert numbers("0, 0.5;1") == [0, 0.5, 1] and numbers(" ") == []
    with pytest.raises(UserError, match="write numbers with commas"):
        numbers("a lot")
    assert "<b>" not in messages("<b>bad</b>", ["<i>"])


def test_the_page_asks_nothing_of_other_machines():
    css = (CHECKOUT / "libs/feedface/app/page.css").read_text()
    from feedface.app.page import THEME

    assert "http" not in css and "@import" not in css
    assert not THEME._stylesheets

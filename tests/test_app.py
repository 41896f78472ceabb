"""The web page, without a browser: what its parts do. tests/test_browser.py has it in one."""

import asyncio
import json
import logging
import threading
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from starlette.requests import ClientDisconnect
from starlette.responses import FileResponse

from feedface.app.background import Stopped, events
from feedface.app.batch import run_batch
from feedface.app.drawing import as_zip, draw
from feedface.app.models import Models
from feedface.app.order import Beginning, Order, Said, region
from feedface.app.people import add_file, add_photos, keep_file
from feedface.app.session import Sessions
from feedface.commands import inference
from feedface.commands.app import logins, tells_more_than_a_leaving
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
    me = session.people[0]
    notices = add_photos(me, [*files, empty, broken], detector)
    assert not any(file.exists() for file in (*files, empty, broken))
    assert [notice.partition(":")[0] for notice in notices] == ["wall.png", "broken.jpg"]
    assert str(tmp_path) not in " ".join(notices)
    assert [label for label, _ in me.choices()] == [f"{n}: {file.name}" for n, file in enumerate(files, 1)]
    assert len(me.chosen) == 4
    shown = me.shown()
    assert len(shown) == 4 and Image.open(shown[0]).size == Image.open(ASSETS / "demo_person_1.png").size
    me.chosen = {1}
    assert [face.name for face in me.references] == [files[1].name]
    me.clear()
    assert not me.faces and not list(session.folder.rglob("*_photo.jpg"))


def test_a_picture_comes_with_the_job_that_makes_it_again(tmp_path, session, models, detector, monkeypatch):
    add_photos(session.people[0], upload(tmp_path, "demo_face.png"), detector)
    [one] = pictures_of(session, models, detector, strengths=[0.7])
    assert one.caption.startswith("seed 3 · strength 0.7 · likeness ")
    with zipfile.ZipFile(as_zip(one, tmp_path / "one.zip")) as archive:
        assert sorted(archive.namelist()) == sorted([one.file.name, "face_1.png", "job.json"])
    assert_same(run_again(one, tmp_path, monkeypatch), one)


def run_again(one, folder, monkeypatch):
    """The picture that the job of a page's picture makes."""
    with zipfile.ZipFile(as_zip(one, folder / "one.zip")) as archive:
        archive.extractall(folder / "again")
    monkeypatch.chdir(folder / "again")
    assert inference.main(["-j", "job.json", "--model", str(one.model), "--output", "out"]) == 0
    [made] = (folder / "again/out").glob("*/0000.png")
    return Image.open(made)


def assert_same(made, one):
    drawn = Image.open(one.file)
    assert np.array_equal(np.asarray(made), np.asarray(drawn))
    assert made.text["fingerprint"] == drawn.text["fingerprint"]


def test_two_people_one_of_them_kept_in_a_file(tmp_path, session, models, detector, monkeypatch):
    anna, ben, third = session.people
    add_photos(anna, upload(tmp_path, "demo_face.png"), detector)
    add_photos(third, upload(tmp_path, "demo_person_1.png"), detector)
    kept = keep_file(third, "ben", models.load(MINI), detector)
    third.clear()
    assert add_file(ben, kept, models.load(MINI)) == 1 and not kept.exists() and ben.there and not third.there
    said = [Said("anna", "woman", "left"), Said("ben", "man", "right"), Said()]
    [one] = pictures_of(session, models, detector, prompt="anna and ben on a beach", said=said)
    assert Image.open(one.file).text["prompt"] == "a woman and a man on a beach"
    assert one.job["people"]["ben"]["region"] == [0.5, 0, 1, 1]
    assert_same(run_again(one, tmp_path, monkeypatch), one)
    anna.clear()  # one who is left needs no name
    assert "region" not in pictures_of(session, models, detector)[0].job["people"]["somebody"]
    with pytest.raises(UserError, match=r"ben\.person: made by the method feedface of the model"):
        pictures_of(session, models, detector, models=["FlashFace (mini-unet-flashface)"])


def test_a_picture_to_begin_with_stays_where_it_is_not_brushed(tmp_path, session, models, detector, monkeypatch):
    add_photos(session.people[0], upload(tmp_path, "demo_face.png"), detector)
    picture = np.asarray(Image.open(ASSETS / "demo_person_1.png").convert("RGB").resize((64, 64)))
    from feedface.app.actions import beginning, order_of
    from feedface.app.layout import Fields

    layer = np.zeros((64, 64, 4), np.uint8)
    layer[32:, :, 3] = 255
    editor = {"background": np.dstack([picture, np.full((64, 64), 255, np.uint8)]), "layers": [layer]}
    fields = Fields(
        "a woman", "", MINI, "fast", 1, 3, "64x64", 1, None, 0, "", "webp", [], "", editor, False, 0.7
    )  # fmt: skip
    order = order_of((*fields, *(None, "person", "found") * 3))
    [one] = [one for _, _, one in draw(session, models, detector, replace(order, format="png")) if one]
    drawn = np.asarray(Image.open(one.file)).astype(int)
    assert np.array_equal(drawn[:32], picture[:32]) and np.abs(drawn[40:] - picture[40:]).max() > 10
    assert_same(run_again(one, tmp_path, monkeypatch), one)
    assert order.format == "webp" and order.begin.strength == 0.7 and order.settings.pag_scale is None
    cleaner = order_of((*fields._replace(pag_scale="1.5"), *(None, "person", "found") * 3))
    assert cleaner.settings.pag_scale == 1.5
    layer[:] = 255
    assert beginning(fields).mask is None  # all of it
    assert beginning(fields._replace(picture={"background": None, "layers": []})) is None


def test_the_found_face_alone_is_drawn_anew(tmp_path, session, models, detector, monkeypatch):
    add_photos(session.people[0], upload(tmp_path, "demo_face.png"), detector)
    picture = np.asarray(Image.open(ASSETS / "demo_person_1.png").convert("RGB"))
    [one] = pictures_of(session, models, detector, begin=Beginning(picture, face=True))
    drawn = np.asarray(Image.open(one.file))
    assert drawn.shape == picture.shape and np.array_equal(drawn[:8], picture[:8]) and not (drawn == picture).all()
    assert_same(run_again(one, tmp_path, monkeypatch), one)
    empty = np.full((64, 64, 3), 120, np.uint8)
    with pytest.raises(UserError, match="no face found in the base picture"):
        pictures_of(session, models, detector, begin=Beginning(empty, face=True))


def test_a_persons_file_is_saved_and_loaded_in_sentences(tmp_path, models, detector):
    from feedface.app.person_actions import PersonActions

    do, me = PersonActions(models, detector, Sessions(tmp_path), 1), SimpleNamespace(session_hash="me")
    button, text = do.keep(MINI, "ben", me)
    assert "There are no faces to save" in text and not button["visible"]
    do.add([(str(file), None) for file in upload(tmp_path, "demo_face.png")], me)
    assert "one word of letters" in do.keep(MINI, "ben smith", me)[1]
    button, text = do.keep(MINI, "ben", me)
    assert not text and button["label"] == "Download ben.person"
    do.clear(me)
    wrong = tmp_path / "upload/wrong.person"
    wrong.write_bytes(b"nothing")
    *_, text, name = do.load(str(wrong), MINI, None, me)
    assert "Wrong.person: not a person" in text or "wrong.person: not a person" in text
    assert name is None and not wrong.exists() and str(tmp_path) not in text
    *_, text, name = do.load(button["value"], MINI, None, me)
    assert "ben.person is used, made of 1 face, for" in text and name == "ben"


def test_places_are_halves_or_thirds():
    assert region("right", ["left", "right"]) == (0.5, 0, 1, 1) and region("found", []) is None
    assert region("middle", ["middle", "left"]) == pytest.approx((1 / 3, 0, 2 / 3, 1))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([Said("anna"), Said("")], "Person 2: each of several people needs a name"),
        ([Said("anna"), Said("ben smith")], "Person 2: each of several people needs a name"),
        ([Said("anna"), Said("anna")], "the same name"),
        ([Said("anna"), Said("ben", place="left")], "a place for each person"),
        ([Said("anna", place="left"), Said("ben", place="left")], "cannot both be left"),
        ([Said("anna"), Said("cleo")], "does not say 'cleo'"),
    ],
)
def test_what_is_wrong_with_people_is_one_sentence(session, said, words):
    for someone in session.people[:2]:
        someone.file = someone.folder / "kept.person"
    with pytest.raises(UserError, match=words):
        Order("anna and ben", [MINI], said=said).people(session.people)


def test_models_and_strengths_side_by_side_share_seeds(tmp_path, session, models, detector):
    add_photos(session.people[0], upload(tmp_path, "demo_face.png"), detector)
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
    add_photos(me.people[0], upload(tmp_path, "demo_face.png"), detector)
    me.people[0].shown()
    assert not you.people[0].photos and sessions.of("me") is me
    sessions.forget("me")
    assert not me.folder.exists() and me.stop.is_set() and you.folder.exists()
    assert sessions.of("me") is not me


@pytest.mark.parametrize(
    "error, told",
    [
        (None, True),
        (ValueError("a fault"), True),
        (RuntimeError("a fault"), True),
        (ClientDisconnect(), False),
        (FileNotFoundError(2, "No such file or directory", "/visitors/a/photo.png"), False),
        (FileNotFoundError(2, "No such file or directory", "/models/a/model.safetensors"), True),
    ],
)
def test_a_tab_that_is_closed_is_no_fault(monkeypatch, error, told):
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/visitors")
    record = logging.makeLogRecord({"exc_info": error and (type(error), error, None)})
    assert tells_more_than_a_leaving(record) == told


@pytest.mark.parametrize("gone, told", [("photo.png", False), ("../model.safetensors", True)])
def test_a_picture_deleted_while_starlette_answers_is_no_fault(monkeypatch, tmp_path, gone, told):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    answer = FileResponse((tmp_path / gone).resolve())
    with pytest.raises(RuntimeError, match="does not exist") as raised:
        asyncio.run(answer({"type": "http", "method": "GET", "headers": []}, None, None))
    record = logging.makeLogRecord({"exc_info": (raised.type, raised.value, raised.tb)})
    assert tells_more_than_a_leaving(record) == told


def test_logins():
    assert logins(["anna:se:cret", "ben:x"]) == [("anna", "se:cret"), ("ben", "x")]
    with pytest.raises(UserError, match="--auth anna: give NAME:PASSWORD"):
        logins(["anna"])


def test_words_for_the_command_line_become_words_for_fields():
    from feedface.app.words import fitting_size, messages, numbers, one_number, sentence

    assert sentence("--face_scale 9: out of range; use 0 to 5") == "Face scale 9: out of range; use 0 to 5."
    assert numbers("0, 0.5;1") == [0, 0.5, 1] and numbers(" ") == []
    assert one_number(" ", "Guidance") is None and one_number(" 4.5", "Guidance") == 4.5
    with pytest.raises(UserError, match="Guidance 'much': write a number, or leave the field empty"):
        one_number("much", "Guidance")
    with pytest.raises(UserError, match="write numbers with commas"):
        numbers("a lot")
    assert sentence("the size 9") == "The size 9."
    assert fitting_size(64, 8, (400, 300)) == "72x56" and fitting_size(64, 8, (9, 1)) == "88x48"
    assert "<b>" not in messages("<b>bad</b>", ["<i>"])


def test_the_page_asks_nothing_of_other_machines():
    css = (CHECKOUT / "libs/feedface/app/page.css").read_text()
    from feedface.app.look import THEME

    assert "http" not in css and "@import" not in css
    assert not THEME._stylesheets

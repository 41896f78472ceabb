"""The web page in a real browser, Chromium: what a visitor does with mouse and keyboard, from upload to pictures.

One page is served for all tests, as `app.py` serves it. FEEDFACE_SCREENSHOTS=FOLDER keeps pictures of it.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import zipfile
from pathlib import Path

import pytest

from feedface.common.places import CHECKOUT

pytestmark = pytest.mark.browser
CHROMIUM = "/usr/bin/chromium"
FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync"
PATIENCE_S = 90  # a busy machine
ASSETS = CHECKOUT / "assets"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


class Served:
    """`app.py` in a process of its own."""

    def __init__(self, tmp, *arguments):
        self.tmp, self.log = tmp, tmp / "log.txt"
        tmp.mkdir()
        env = os.environ | {"TMPDIR": str(tmp), "HF_HUB_OFFLINE": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "app.py", *arguments], cwd=CHECKOUT, env=env, stdout=log, stderr=subprocess.STDOUT
            )
        self.url = self._wait()

    def _wait(self):
        for _ in range(10 * PATIENCE_S):
            if found := re.search(r"http://127\.0\.0\.1:\d+", self.log.read_text()):
                return found[0]
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def files(self):
        """What is kept on the disk of visitors' things."""
        return [path for path in self.tmp.rglob("*") if path.is_file() and path != self.log]

    def end(self):
        self.process.send_signal(signal.SIGTERM)  # what runs in the background may ignore SIGINT
        self.process.wait(30)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    served = Served(tmp_path_factory.mktemp("served") / "tmp")
    yield served
    served.end()
    assert not served.files()  # nothing outlives the server
    assert "Traceback" not in served.log.read_text()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path(CHROMIUM).exists():
        pytest.fail(f"{CHROMIUM} is not there: apt-get install chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        yield browser
        browser.close()


class Visitor:
    """A tab."""

    def __init__(self, browser, url, viewport=DESKTOP, **options):
        self.context = browser.new_context(viewport=viewport, accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(1000 * PATIENCE_S)
        self.elsewhere, self.errors = [], []
        self.page.on("request", self._asked)
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(url)
        self.page.wait_for_selector("#draw")

    def _asked(self, request):
        if not request.url.startswith(("http://127.0.0.1:", "data:", "blob:")):
            self.elsewhere.append(request.url)

    def upload(self, *names, person=""):
        before = self.page.locator(f"#chosen{person} input").count()
        self.page.set_input_files(f"#photos{person} input[type=file]", [str(ASSETS / name) for name in names])
        self.page.wait_for_function(
            f"document.querySelectorAll('#chosen{person} input').length == {before + len(names)}",
            timeout=1000 * PATIENCE_S,
        )

    def fill(self, label, value):
        self.page.get_by_label(label, exact=True).first.fill(str(value))

    def status(self):
        return self.page.locator("#progress").inner_text()

    def wait_for_status(self, words):
        self.page.wait_for_function("words => document.querySelector('#progress').innerText.includes(words)", arg=words)

    def draw(self, prompt, number=1, seed=3):
        self.fill("Prompt", prompt)
        self.fill("Number", number)
        self.fill("Seed", seed)
        self.page.click("#draw")
        self.wait_for_status("drawn")

    def captions(self):
        return [text.strip() for text in self.page.locator("#pictures .caption-label").all_inner_texts()]

    def shot(self, name):
        if folder := os.environ.get("FEEDFACE_SCREENSHOTS"):
            time.sleep(0.7)  # for what moves
            self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)

    def close(self):
        assert not self.elsewhere and not self.errors
        self.context.close()


@pytest.fixture
def visit(served, browser):
    visitors = []

    def visit(**options):
        visitors.append(Visitor(browser, served.url, **options))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        visitor.close()


def test_from_photos_to_pictures_and_back_to_the_same_picture(served, visit, tmp_path):
    from playwright.sync_api import expect

    me = visit()
    me.upload("demo_person_1.png", "demo_person_2.png")
    assert me.page.locator("#faces img").count() == 2
    assert me.page.locator("#chosen input:checked").count() == 2
    assert not [path for path in served.files() if path.name.startswith("demo_person")]  # uploads are deleted
    me.page.get_by_text("More", exact=True).click()  # where fields are that stay empty
    me.draw("a man in a blue suit with glasses in front of a brick wall", number=4, seed=7)
    me.page.get_by_text("More", exact=True).click()
    me.shot("app")
    captions = me.captions()
    assert [re.match(r"seed (\d+) · strength 1\.25 · likeness -?0\.\d\d$", text)[1] for text in captions] == [
        "10",
        "9",
        "8",
        "7",
    ]

    me.page.locator("#pictures button:has(img)").nth(3).click()
    me.page.get_by_text("Again with this seed").click()
    for label, value in (("Seed", "7"), ("Number", "1")):
        expect(me.page.get_by_label(label, exact=True).first).to_have_value(value)
    me.page.get_by_text("Settings, for inference.py -j").click()
    assert '"seed": 7' in me.page.locator(".cm-content").inner_text()
    me.shot("app_settings")
    with me.page.expect_download() as download:
        me.page.get_by_text("Picture, faces and settings (.zip)").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        job = json.loads(archive.read("job.json"))
        assert {"face_1.png", "face_2.png"} < set(archive.namelist())
    assert job["seed"] == 7 and job["preset"] == "fast" and job["detect"] is False
    assert job["guidance"] == 4.0  # the model's own


def test_it_goes_by_keyboard_alone(visit):
    me = visit()
    me.page.get_by_label("Prompt", exact=True).focus()
    me.page.keyboard.type("a woman at night")
    for _ in range(60):
        me.page.keyboard.press("Tab")
        if me.page.evaluate("document.activeElement.id") == "draw":
            break
    me.page.keyboard.press("Enter")
    me.wait_for_status("4 pictures drawn.")
    assert "No face was given" in me.page.inner_text("body")
    first = int(me.captions()[-1].split()[1])
    assert first > 100 and me.captions()[0].split()[1] == str(first + 3)  # any seed, unless one is set


def test_two_tabs_at_once_get_their_own_pictures(visit):
    me, you = visit(), visit()
    for one, name in ((me, "demo_face.png"), (you, "demo_person_1.png")):
        one.upload(name)
        one.fill("Prompt", "a photo on a beach")
    me.fill("Seed", 100)
    you.fill("Seed", 200)
    me.page.click("#draw")
    you.page.click("#draw")
    for one, seeds in ((me, range(103, 99, -1)), (you, range(203, 199, -1))):
        one.wait_for_status("4 pictures drawn.")
        assert [text.split()[1] for text in one.captions()] == [str(seed) for seed in seeds]
        assert one.page.locator("#chosen label").count() == 1
    assert "demo_face" in me.page.locator("#chosen").inner_text()


def test_stop(visit):
    me = visit()
    me.fill("Prompt", "a woman on a beach")
    me.fill("Number", 16)
    me.page.get_by_text("quality", exact=True).first.click()
    me.page.click("#draw")
    me.wait_for_status("step")
    assert me.page.locator("#draw").is_disabled()
    me.page.click("#stop")
    me.wait_for_status("Stopped.")
    me.page.wait_for_function("!document.querySelector('#draw').disabled")
    assert not me.captions()
    me.draw("a woman on a beach")
    assert len(me.captions()) == 1


def test_a_picture_without_a_face_and_a_bad_size_are_said_in_sentences(visit, tmp_path):
    from PIL import Image

    wall = tmp_path / "wall.png"
    Image.new("RGB", (200, 160), (90, 140, 90)).save(wall)
    me = visit()
    me.page.set_input_files("#photos input[type=file]", [str(wall)])
    me.page.get_by_text("wall.png: no face was found in this picture; it is left out.").wait_for()
    me.shot("app_no_face")
    me.page.click("#draw")
    alert = me.page.get_by_role("alert").filter(has_text="The prompt is empty; describe the picture")
    alert.wait_for()
    body = me.page.inner_text("body")
    assert "Traceback" not in body and "--" not in alert.inner_text()


def test_a_reload_in_the_middle_frees_the_queue_and_deletes_what_was_there(served, visit):
    me = visit()
    me.upload("demo_face.png")
    folders = set(served.tmp.rglob("visitor-*"))
    me.fill("Prompt", "a woman on a beach")
    me.fill("Number", 16)
    me.page.get_by_text("quality", exact=True).first.click()
    me.page.click("#draw")
    me.wait_for_status("step")
    me.page.reload()
    me.page.wait_for_selector("#draw")
    me.draw("a woman at night")  # does not wait for the sixteen
    assert len(me.captions()) == 1
    for _ in range(100):
        if not any(folder.exists() and list(folder.rglob("*_photo.jpg")) for folder in folders):
            break
        time.sleep(0.1)
    assert not any(folder.exists() and list(folder.rglob("*_photo.jpg")) for folder in folders)


def test_side_by_side(visit):
    me = visit()
    me.upload("demo_face.png")
    me.page.get_by_text("Compare side by side").click()
    me.fill("Strengths", "0, 1")
    me.page.get_by_role("checkbox", name="FeedFace (mini)").check()
    me.page.get_by_role("checkbox", name="FeedFace (mini-unet)").check()
    me.draw("a woman in a red hat", seed=3)
    assert [text.rpartition(" · likeness")[0] or text for text in me.captions()] == [
        f"{name} · seed 3 · strength {strength}" for name in ("mini-unet", "mini") for strength in (1, 0)
    ]


def test_two_people_and_one_of_them_kept(visit, tmp_path):
    from playwright.sync_api import expect

    me = visit()
    me.upload("demo_face.png")
    me.page.get_by_text("Name, place, saved person").first.click()
    me.fill("Name 1", "anna")
    me.page.get_by_role("button", name="Save as a .person file").first.click()
    with me.page.expect_download() as download:
        me.page.get_by_text("Download anna.person").first.click()
    download.value.save_as(tmp_path / "anna.person")
    me.page.get_by_role("radio", name="left").check()
    me.page.get_by_role("tab", name="Person 2").click()
    me.upload("demo_person_1.png", "demo_person_2.png", person=2)
    me.page.click("#draw")
    me.page.get_by_role("alert").filter(has_text="The prompt is empty").wait_for()
    me.fill("Prompt", "anna and ben on a beach")
    me.page.click("#draw")
    me.page.get_by_role("alert").filter(has_text="Person 2: each of several people needs a name").wait_for()
    me.fill("Name 2", "ben")
    me.page.get_by_role("radio", name="right").check()
    me.page.get_by_label("Method", exact=True).first.click()
    me.page.get_by_role("option", name="FeedFace (mini-unet)").click()
    strength = me.page.get_by_label("number input for Strength of the face").first
    expect(strength).to_have_value("1", timeout=1000 * PATIENCE_S)  # its own, once it is loaded
    me.fill("Size", "256x128")
    me.page.keyboard.press("Enter")
    me.draw("anna and ben on a beach", number=2)
    assert re.match(r"seed 4 · strength 1 · likeness anna (-?0\.\d\d|—), ben (-?0\.\d\d|—)$", me.captions()[0])
    me.shot("app_people")

    you = visit()
    you.page.get_by_text("Name, place, saved person").first.click()
    you.page.locator("input[type=file][accept='.person']").first.set_input_files(str(tmp_path / "anna.person"))
    you.page.get_by_text("anna.person is used, made of 1 face").wait_for()
    you.draw("anna at night", number=1)
    assert " · likeness " in you.captions()[0]


def test_a_picture_to_begin_with(visit):
    from playwright.sync_api import expect

    me = visit()
    me.upload("demo_face.png")
    me.page.get_by_text("Begin with a picture").click()
    canvas = me.page.locator("#picture canvas").first
    canvas.wait_for()
    time.sleep(1)  # until gradio's editor is ready, which nothing on the page says
    me.page.set_input_files("#picture input[type=file]", str(ASSETS / "demo_person_1.png"))
    canvas.scroll_into_view_if_needed()
    time.sleep(1)
    box = canvas.bounding_box()
    me.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.5)
    me.page.mouse.down()
    me.page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + box["height"] * 0.5, steps=8)
    me.page.mouse.up()
    me.draw("a woman with a red hat", number=1)
    me.shot("app_begin")
    me.page.locator("#pictures button:has(img)").first.click()
    me.page.get_by_text("Settings, for inference.py -j").click()
    expect(me.page.locator(".cm-content")).to_contain_text('"mask": "mask.png"')
    me.draw("a woman with a blue hat", number=1)  # the picture to begin with is still there
    expect(me.page.locator("#pictures .caption-label")).to_have_count(2, timeout=1000 * PATIENCE_S)
    me.page.locator("#pictures button:has(img)").first.click()
    expect(me.page.locator(".cm-content")).to_contain_text('"mask": "mask.png"')


def test_a_batch(visit):
    from playwright.sync_api import expect

    me = visit()
    me.page.get_by_role("tab", name="Batch").click()
    me.page.set_input_files(
        "#files input[type=file]", [str(CHECKOUT / "json_examples/demo_face.json"), str(ASSETS / "demo_face.png")]
    )
    expect(me.page.locator("#files .file-preview .file")).to_have_count(2, timeout=1000 * PATIENCE_S)  # uploaded
    me.page.click("#run")
    me.page.get_by_role("gridcell", name="done").first.wait_for()
    with me.page.expect_download() as download:
        me.page.get_by_text("All pictures (.zip)").click()
    me.shot("app_batch")
    with zipfile.ZipFile(download.value.path()) as archive:
        assert "demo_face/0000.png" in archive.namelist() and "demo_face/results.json" in archive.namelist()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone(visit, scheme):
    me = visit(viewport=PHONE, color_scheme=scheme)
    me.upload("demo_face.png")
    me.draw("a sad woman in a city at night, wearing a yellow hoodie", number=2)
    assert me.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]  # nothing to scroll sideways
    assert me.page.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
    me.shot(f"app_phone_{scheme}")


def test_who_leaves_in_the_middle_of_an_upload_leaves_no_stack(served):
    address = urllib.parse.urlsplit(served.url)
    head = (
        f"POST /gradio_api/upload HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: 100000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as visitor:
        visitor.sendall(head.encode())
    time.sleep(1)
    assert "ClientDisconnect" not in served.log.read_text()


def test_the_api(served, tmp_path, monkeypatch):
    """The snippet of docs/app.md, as it stands there."""
    code = re.search(r"```python\n(.*?)```", (CHECKOUT / "docs/app.md").read_text(), re.S)[1]
    found = {}
    monkeypatch.chdir(CHECKOUT)
    exec(code.replace("http://127.0.0.1:7860", served.url), found)
    assert len(found["files"]) == 2
    from PIL import Image

    assert {Image.open(file).text["seed"] for file in found["files"]} == {"7", "8"}


def test_a_password(tmp_path):
    served = Served(tmp_path / "tmp", "--auth", "anna:secret")
    try:
        with urllib.request.urlopen(f"{served.url}/") as answer:
            assert b"demo_face" not in answer.read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{served.url}/config")
        assert refused.value.code == 401
    finally:
        served.end()

"""The committed model does the main job: the person shown comes out, and comes out nearer than without the face."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from feedface.commands.inference import main
from feedface.common.images import read_image
from feedface.faces.detect import make_detector
from feedface.faces.identity import cosine_similarity
from feedface.pipeline import FeedFacePipeline

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "models" / "mini"


def test_the_demo_person_comes_out_in_new_pictures():
    pipe = FeedFacePipeline.from_pretrained(MINI, device="cpu")
    detector = make_detector("mini", pipe.bundle.faces_root)
    prompt = "a photo of a smiling woman in a green hoodie on a beach"

    def similarities() -> list[float]:
        found = [detector.detect(np.asarray(image)) for image in pipe.generate(prompt, n_samples=4, seed=0)]
        return [cosine_similarity(person, faces[0].embedding) for faces in found if faces]

    picture = read_image(ROOT / "assets" / "demo_face.png")
    person = detector.detect(picture)[0].embedding
    pipe.set_faces([picture], "auto")  # its own one
    with_face = similarities()
    pipe.set_faces([])
    without_face = similarities()
    assert len(with_face) >= 3
    assert np.mean(with_face) > 0.4
    assert np.mean(with_face) > (np.mean(without_face) if without_face else 0) + 0.2


@pytest.mark.parametrize(
    ("folder", "most_mib"),
    [
        ("mini", 40),
        ("mini-unet", 30),
        ("mini-unet-flashface", 15),
        ("mini-uvit-flashface", 1),
        ("mini-unet-denseface", 5),
        ("mini-unet-arc2face", 15),
        ("mini-unet-adaface", 5),
    ],
)
def test_its_files_are_small_and_name_no_folder_of_ours(folder, most_mib):
    files = [path for path in (ROOT / "models" / folder).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) < most_mib * 2**20
    for path in files:
        if path.suffix == ".json":
            assert '": "/' not in path.read_text(encoding="utf-8"), (
                path
            )  # an absolute path of the machine it was made on
            json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", ["uvit", "vae", "text_encoder", "image_encoder", "face_controlnet", "inspector"])
def test_no_pickles(name):
    weights = [path.suffix for path in (MINI / name).iterdir() if path.suffix != ".json"]
    assert weights and set(weights) == {".safetensors"}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mini-unet", ["feedface", "unet"]),
        ("mini-unet-flashface", ["flashface"]),
        ("mini-unet-denseface", ["denseface"]),
    ],
)
def test_those_on_the_u_net_have_only_what_is_their_own_and_show_the_person(name, own):
    folder = ROOT / "models" / name
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == own
    pipe = FeedFacePipeline.from_pretrained(folder, device="cpu")
    assert pipe.bundle.kinds == {"backbone": "unet", "method": own[0]}
    draw = lambda: np.asarray(pipe.generate("a sad woman in a city at night", seed=3, progress=False)[0])  # noqa: E731
    nobody = draw()
    pipe.set_faces([ROOT / "assets" / "demo_face.png"])
    assert nobody.shape == (128, 128, 3) and np.abs(draw().astype(int) - nobody).mean() > 2


def test_the_faces_of_a_folder_of_pictures_become_each_persons(tmp_path, capsys):
    bases, people = tmp_path / "bases", tmp_path / "people"
    for name, asset in (("bases/x", 1), ("bases/y", 2), ("people/anna/1", 3), ("people/ben/1", 4)):
        target = tmp_path / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / f"assets/demo_person_{asset}.png", target)
    command = ["--method", "denseface", "--mode", "inpaint", "--base", bases, "--people", people, "--steps", 2]
    command = [*map(str, [*command, "--output", tmp_path / "out"])]
    assert main(command) == 0 and "4 picture(s) made" in capsys.readouterr().out
    found = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted(found) == ["x_anna_1.png", "x_ben_1.png", "y_anna_1.png", "y_ben_1.png"]
    assert len(set(found.values())) == 4
    (tmp_path / "out/x_ben_1.png").unlink()  # what is missing is made again, and only that
    assert main(command) == 0 and "1 picture(s) made" in capsys.readouterr().out
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert again.keys() == found.keys()
    assert all(again[name] == found[name] for name in found if name != "x_ben_1.png")  # which is rounded by itself now

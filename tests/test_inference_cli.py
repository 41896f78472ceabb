"""inference.py end to end on the toy model: what it writes, what it does not make again, batches, detectors."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from toy import make_toy_bundle, toy_face_controlnet

from feedface.checkpoints.bundle import save_component, write_derived_index
from feedface.commands import inference
from feedface.common.errors import UserError
from feedface.faces.detect import Face
from feedface.inference import job_run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with two face crops."""
    monkeypatch.chdir(tmp_path)
    for index, name in enumerate(("face.png", "other.png")):
        pixels = np.random.default_rng(index).integers(0, 255, (48, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def run(toy, here):
    def run(*options, model=toy, detect=False):
        options = ["--model", str(model), "--device", "cpu", *options] + ([] if detect else ["--no_detect"])
        return inference.main([*map(str, options)])

    return run


def single(*options):
    return ["--prompt", "a man", "--image", "face.png", *options]


def results(folder="outputs"):
    return json.loads(Path(folder, "results.json").read_text())


def pictures(folder="outputs"):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).glob("[0-9]*.png"))}


def times(folder="outputs"):
    return {path.name: path.stat().st_mtime_ns for path in sorted(Path(folder).glob("[0-9]*.png"))}


def test_the_best_are_on_the_sheet_and_all_are_kept(run, here, monkeypatch, capsys):
    shown, likeness = [], iter([0.1, None, 0.5, 0.3])
    sheet = job_run.run_sheet
    monkeypatch.setattr(
        job_run, "run_sheet", lambda faces, rows, folder: shown.extend(rows) or sheet(faces, rows, folder)
    )
    monkeypatch.setattr(job_run.FaceSimilarity, "of", lambda self, image: next(likeness))
    assert run(*single("--n_samples", 4, "--best", 4, "--steps", 2)) == 0
    assert results()["best"] == [row["file"] for row in shown] == ["0002.png", "0003.png", "0000.png"]
    assert "most alike: 0002.png, 0003.png, 0000.png\n" in capsys.readouterr().out
    assert len(pictures()) == len(results()["pictures"]) == 4


def test_where_likeness_cannot_be_measured_the_sheet_shows_all(run, here, capsys):
    assert run(*single("--n_samples", 2, "--best", 1, "--steps", 2)) == 0
    found, said = results(), capsys.readouterr().out
    assert found["best"] == [] and "most alike" not in said
    assert "note: no likeness was measured, so the sheet shows all" in said and len(found["notices"]) == 1


def test_what_a_run_leaves(run, here):
    assert run(*single("--n_samples", 2, "--n_iter", 2, "--seed", 5, "--steps", 2, "--guidance", 3)) == 0
    names = {path.name for path in Path("outputs").iterdir()}
    numbered = ["0000.png", "0001.png", "0002.png", "0003.png"]
    found = results()
    crop = found["references"][0]["crop"]
    kept = {"sheet_0000.png", "results_0000.json"}
    assert names == {*numbered, crop, "sheet.png", "results.json", *kept}
    assert json.loads(Path("outputs/results_0000.json").read_text()) == found
    assert [row["file"] for row in found["pictures"]] == numbered
    assert [row["seed"] for row in found["pictures"]] == [5, 6, 7, 8]
    assert found["settings"]["steps"] == 2 and found["settings"]["guidance"] == 3
    assert found["references"][0]["path"] == "face.png"
    assert found["model"]["name"] == "toy"
    with Image.open("outputs/0002.png") as image:
        assert image.size == (64, 64)
        assert image.text["prompt"] == "a man" and image.text["seed"] == "7" and image.text["model"] == "toy"
        settings = json.loads(image.text["settings"])
        assert settings["guidance"] == 3
        assert crop == f"reference_{settings['references'][0]}.png"
    np.testing.assert_array_equal(np.asarray(Image.open(f"outputs/{crop}")), np.asarray(Image.open("face.png")))


def test_another_persons_run_in_the_same_folder_loses_nothing(run, here):
    """Crops, results and sheets of the first run stay; each picture's metadata leads to its own crops."""
    run(*single("--image", "face.png", "other.png"))
    before = {path.name: path.read_bytes() for path in Path("outputs").iterdir()}
    run(*single("--image", "other.png"))
    after = {path.name: path.read_bytes() for path in Path("outputs").iterdir()}
    assert {name: after[name] for name in before if name not in ("results.json", "sheet.png")}.items() <= before.items()
    assert set(after) - set(before) == {"0001.png", "results_0001.json", "sheet_0001.png"}
    for name, files in (("0000.png", ["face.png", "other.png"]), ("0001.png", ["other.png"])):
        with Image.open(Path("outputs", name)) as image:
            digests = json.loads(image.text["settings"])["references"]
        for digest, file in zip(digests, files, strict=True):
            crop = Image.open(f"outputs/reference_{digest}.png")
            np.testing.assert_array_equal(np.asarray(crop), np.asarray(Image.open(file)))


def test_a_run_that_makes_nothing_new_keeps_no_results_of_its_own(run):
    run(*single())
    names = {path.name for path in Path("outputs").iterdir()}
    run(*single())
    assert {path.name for path in Path("outputs").iterdir()} == names
    assert not results()["pictures"][0]["made_now"]


def test_two_runs_in_one_folder_at_the_same_time(run, here, monkeypatch):
    """A whole second run happens while the first draws: all eight pictures and both results are there."""
    from feedface.pipeline import FeedFacePipeline

    draw = FeedFacePipeline.draw_batch
    inner = []

    def drawn(self, *args, **options):
        images = draw(self, *args, **options)
        if not inner:
            inner.append(True)
            run(*single("--seed", 100, "--n_samples", 4))
        return images

    monkeypatch.setattr(FeedFacePipeline, "draw_batch", drawn)
    run(*single("--n_samples", 4))
    made = {}
    for name in pictures():
        with Image.open(Path("outputs", name)) as image:
            made[name] = int(image.text["seed"])
    assert sorted(made.values()) == [0, 1, 2, 3, 100, 101, 102, 103]
    for name, seeds in (("results_0000.json", range(100, 104)), ("results_0001.json", range(4))):
        found = json.loads(Path("outputs", name).read_text())
        assert [row["seed"] for row in found["pictures"]] == list(seeds)
        assert all(made[row["file"]] == row["seed"] for row in found["pictures"])


def test_same_seed_same_picture_whatever_the_batch(run):
    run(*single("--n_samples", 3, "--output", "a"))
    run(*single("--n_samples", 1, "--n_iter", 3, "--output", "b"))
    for name in pictures("a"):
        a, b = (np.asarray(Image.open(Path(folder, name))).astype(int) for folder in "ab")
        np.testing.assert_allclose(a, b, atol=1)


def test_finished_pictures_are_not_made_again(run, capsys):
    run(*single("--n_samples", 2))
    before = times()
    run(*single("--n_samples", 1, "--n_iter", 3))
    after = times()
    assert {name: after[name] for name in before} == before and sorted(after) == ["0000.png", "0001.png", "0002.png"]
    assert "1 made now, 2 were finished before" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        ["--steps", "2"],
        ["--guidance", "4"],
        ["--face_scale", "0.5"],
        ["--seed", "9"],
        ["--size", "96x64"],
        ["--preset", "quality"],
        ["--scheduler", "unipc"],
        ["--guidance_interval", "0", "800"],
        ["--face_interval", "0", "800"],
        ["--reuse", "2"],
        ["--int8"],
        ["--dtype", "bf16"],
        ["--prompt", "a woman"],
        ["--image", "other.png"],
        ["--image", "face.png", "other.png"],
    ],
)
def test_changed_settings_are_made_anew_and_nothing_is_lost(run, change):
    run(*single())
    before = pictures()
    run(*single(*change))
    after = pictures()
    assert sorted(after) == ["0000.png", "0001.png"]
    assert after["0000.png"] == before["0000.png"] != after["0001.png"]
    assert [row["file"] for row in results()["pictures"]] == ["0001.png"]


@pytest.mark.parametrize("change", [["--batch_size", "1"], ["--low_memory"], ["--steps", "3"]])
def test_what_changes_no_picture_makes_none_anew(run, change):
    run(*single())
    before = times()
    run(*single(*change))
    assert times() == before


def test_a_picture_says_what_changed_it(run):
    run(*single("--preset", "quality", "--scheduler", "dpmsolver++"))
    with Image.open("outputs/0000.png") as image:
        plain = json.loads(image.text["settings"])
    # As before there were presets, so that older pictures are known again.
    assert set(plain) == {"steps", "guidance", "face_scale", "size", "uncond", "dtype", "model_digest", "references"}
    assert results()["settings"]["preset"] == "quality"
    run(*single("--reuse", "2"))
    with Image.open("outputs/0001.png") as image:
        assert json.loads(image.text["settings"])["reuse"] == 2


def test_another_model_makes_anew(run, here):
    run(*single())
    run(*single(), model=make_toy_bundle(here / "other", seed=1))
    assert sorted(pictures()) == ["0000.png", "0001.png"]


@pytest.mark.parametrize("prompt", ["a/b", "../../x", "two\nlines", "a 😀 man", "--x", ".", "x" * 2000])
def test_any_prompt_is_safe_and_kept_in_the_metadata(run, here, prompt):
    assert run(f"--prompt={prompt}", "--image", "face.png", "--output", "below/outputs") == 0
    assert {path.name for path in here.iterdir()} == {"face.png", "other.png", "below"}
    with Image.open("below/outputs/0000.png") as image:
        assert image.text["prompt"] == prompt
    assert results("below/outputs")["pictures"][0]["prompt"] == prompt


def test_a_prompt_longer_than_the_encoder_reads_is_said(run, capsys):
    run("--prompt", "a very long description of a man", "--image", "face.png")
    assert "reads the first 16" in capsys.readouterr().out


def write_job(path, **changes):
    job = {"id": path.stem, "caption_list": ["a man", "a woman"], "source_group": [{"path": "face.png"}]} | changes
    path.write_text(json.dumps(job))


def test_a_batch(run, here, capsys):
    (here / "jobs").mkdir()
    shutil.copy(here / "face.png", here / "jobs" / "face.png")
    write_job(here / "jobs" / "a.json", id=1433, class_word="man")
    write_job(here / "jobs" / "b.json", id="x/../y", source_group=[{"path": "face.png"}, {"path": "other.png"}])
    assert run("-j", "jobs", "--n_samples", 2) == 0
    folders = sorted(path.name for path in Path("outputs").iterdir())
    assert folders[0] == "1433" and folders[1].startswith("x____y-")
    found = results("outputs/1433")
    assert found["class_word"] == "man"
    assert [(row["prompt"], row["seed"]) for row in found["pictures"]] == [
        *(("a man", 0), ("a man", 1), ("a woman", 0), ("a woman", 1))
    ]
    assert len(results(f"outputs/{folders[1]}")["references"]) == 2

    before = times("outputs/1433")
    assert run("-j", "jobs/a.json", "jobs/b.json", "--n_samples", 2) == 0
    assert times("outputs/1433") == before


def test_what_a_job_sets_itself(run, here, capsys):
    own = {"seed": 5, "n_samples": 2, "guidance": 3, "face_scale": 0.5, "size": [96, 64], "clas_word": "man"}
    write_job(here / "a.json", caption_list=["a man"], **own)
    write_job(here / "b.json", caption_list=["a man"])
    assert run("-j", "a.json", "b.json", "--guidance", 4) == 0
    a, b = results("outputs/a"), results("outputs/b")
    assert [row["seed"] for row in a["pictures"]] == [5, 6] and [row["seed"] for row in b["pictures"]] == [0]
    assert (a["settings"]["guidance"], a["settings"]["face_scale"], a["settings"]["size"]) == (3, 0.5, [96, 64])
    assert (b["settings"]["guidance"], b["settings"]["face_scale"], b["settings"]["size"]) == (4, 1, [64, 64])
    assert Image.open("outputs/a/0000.png").size == (96, 64) and Image.open("outputs/b/0000.png").size == (64, 64)
    assert "note: a.json:1: clas_word: not used; is class_word meant?" in capsys.readouterr().out
    assert len(a["notices"]) == 1 and not b["notices"]
    # The same as by options: the picture is there already.
    options = ["--seed", 6, "--guidance", 3, "--face_scale", 0.5, "--size", "96x64"]
    before = times("outputs/a")
    assert run(*single("--output", "outputs/a", *options)) == 0
    assert times("outputs/a") == before


def test_what_a_job_sets_wrong_fails_it_alone(run, here, capsys):
    write_job(here / "a.json", size=50)
    write_job(here / "b.json", seed=2**63 - 1)
    write_job(here / "c.json")
    assert run("-j", "a.json", "b.json", "c.json") == 2
    assert [path.name for path in Path("outputs").iterdir()] == ["c"]
    errors = capsys.readouterr().err
    assert "job a (a.json:1): --size 50x50" in errors and "job b (b.json:1): seed" in errors


def test_a_preset_that_loses_its_adapter_is_said(run, here, toy, capsys):
    from feedface.checkpoints.bundle import add_few_step
    from feedface.checkpoints.few_step import FewStep, save_few_step
    from feedface.pipeline import FeedFacePipeline

    shutil.copytree(toy, "model")
    weights = {"backbone.mid_block.attn.qkv": (torch.zeros(1, 32), torch.zeros(96, 1))}
    save_few_step(here / "adapter", FewStep((1000, 500), 2.0, 1.0, "true_uncond", weights), {})
    add_few_step(here / "model", here / "adapter")
    run(*single("--preset", "fast"), model="model")
    assert "note:" not in capsys.readouterr().out and results()["settings"]["steps"] == 2
    run(*single("--preset", "fast", "--guidance", 3), model="model")
    [note] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert "preset fast: drawn without the few-step adapter" in note and "--guidance 2, not --guidance 3" in note
    assert any("few-step adapter" in notice for notice in results()["notices"])
    pipe = FeedFacePipeline.from_pretrained("model", device="cpu")
    with pytest.warns(UserWarning, match="drawn without the few-step adapter"):
        pipe.generate("a man", preset="fast", guidance=3, progress=False)
    # In a batch it is said once for the options, and of each job that is why.
    write_job(here / "a.json", guidance=4)
    write_job(here / "b.json")
    run("-j", "a.json", "b.json", "--preset", "fast", model="model")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(notes) == 1 and "--guidance 4" in notes[0]
    assert results("outputs/b")["settings"]["few_step"]


def test_in_a_batch_the_others_go_on(run, here, capsys):
    (here / "broken.png").write_text("no picture")
    write_job(here / "a.json", source_group=[{"path": "broken.png"}])
    write_job(here / "b.json")
    write_job(here / "c.json", caption_list=[])
    write_job(here / "d.json")
    assert run("-j", "a.json", "b.json", "c.json", "d.json") == 2
    assert sorted(path.name for path in Path("outputs").iterdir()) == ["b", "d"]
    errors = capsys.readouterr().err
    assert "c.json:1: caption_list: empty" in errors
    assert "job a (a.json:1): broken.png: not a picture" in errors


def test_a_full_disk_ends_a_batch(run, here, monkeypatch):
    from feedface.common.saving import OutputError

    write_job(here / "a.json")
    write_job(here / "b.json")
    drawn = []

    def full(image, path, **options):
        drawn.append(path)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"outputs/a/reference_\w+\.png: cannot be written \(No space left"):
        run("-j", "a.json", "b.json")
    assert len(drawn) == 1
    assert not list(Path("outputs").rglob("*.*"))


def test_an_interrupted_run_leaves_whole_pictures_and_goes_on_later(run, monkeypatch):
    from feedface.pipeline import FeedFacePipeline

    draw = FeedFacePipeline.draw_batch
    calls = []

    def interrupted(self, *args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return draw(self, *args, **options)

    monkeypatch.setattr(FeedFacePipeline, "draw_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(*single("--n_iter", 4, "--batch_size", 1))
    names = sorted(path.name for path in Path("outputs").iterdir())
    assert names[:2] == ["0000.png", "0001.png"] and len(names) == 3 and names[2].startswith("reference_")
    assert run(*single("--n_iter", 4, "--batch_size", 1)) == 0
    assert len(calls) == 5 and len(pictures()) == 4


@pytest.fixture
def drawn(monkeypatch):
    """The batches of a run, as lists of prompts; a batch with the prompt "fail" cannot be drawn."""
    from feedface.common.errors import UserError
    from feedface.pipeline import FeedFacePipeline

    draw, calls = FeedFacePipeline.draw_batch, []

    def recorded(self, requests, *args, **options):
        calls.append([request.prompt for request in requests])
        if "fail" in calls[-1]:
            raise UserError("cannot be drawn")
        return draw(self, requests, *args, **options)

    monkeypatch.setattr(FeedFacePipeline, "draw_batch", recorded)
    return calls


def test_jobs_share_batches_and_come_out_as_alone(run, here, drawn):
    write_job(here / "a.json")
    write_job(here / "b.json", source_group=[{"path": "face.png"}, {"path": "other.png"}])
    write_job(here / "c.json", caption_list=["a man", "a dog"], source_group=[{"path": "other.png"}])
    assert run("-j", "a.json", "b.json", "c.json", "--n_samples", 2) == 0
    # Jobs with equally many references are drawn together.
    assert sorted(map(len, drawn)) == [4, 8]
    assert run("-j", "c.json", "--n_samples", 2, "--output", "alone") == 0
    together, alone = (pictures(folder) for folder in ("outputs/c", "alone/c"))
    assert list(together) == list(alone) and len(alone) == 4
    for name in alone:
        a, b = (np.asarray(Image.open(Path(folder, "c", name))).astype(int) for folder in ("outputs", "alone"))
        np.testing.assert_allclose(a, b, atol=1)


def test_a_job_is_finished_with_its_last_picture(run, here, drawn, capsys):
    for name in "abc":
        write_job(here / f"{name}.json")
    (here / "c.json").write_text((here / "c.json").read_text().replace("a woman", "fail"))
    assert run("-j", "a.json", "b.json", "c.json", "--batch_size", 2, "--n_samples", 2) == 2
    assert [len(batch) for batch in drawn] == [2] * 6
    assert sorted(path.parent.name for path in Path("outputs").glob("*/results.json")) == ["a", "b"]
    assert "job c (c.json:1): cannot be drawn" in capsys.readouterr().err
    assert len(pictures("outputs/c")) == 2


def test_a_batch_that_fails_fails_the_jobs_in_it_only(run, here, drawn):
    write_job(here / "a.json")
    write_job(here / "b.json", caption_list=["fail", "a dog", "a cat", "a cow"])
    write_job(here / "c.json", caption_list=["a man", "a cat", "a dog"])
    assert run("-j", "a.json", "b.json", "c.json", "--batch_size", 2) == 2
    # What b still wanted is left out.
    assert drawn == [["a man", "a woman"], ["fail", "a dog"], ["a man", "a cat"], ["a dog"]]
    assert sorted(path.parent.name for path in Path("outputs").glob("*/results.json")) == ["a", "c"]


class FakeDetector:
    """A detector with a recogniser: sees a face in pictures whose mean is above a limit."""

    name = "fake"
    has_recogniser = True

    def __init__(self, faces=1):
        self.faces, self.score = faces, 0.9

    def detect(self, image):
        embedding = np.array([0.6, 0.8], np.float32)
        return [Face(np.array([5, 5, 35, 40], np.float32), self.score, None, embedding)] * self.faces


@pytest.fixture
def detector(monkeypatch):
    fake = FakeDetector()
    monkeypatch.setattr("feedface.faces.detect.make_detector", lambda *args, **options: fake)
    return fake


def test_similarity_is_measured_printed_and_kept(run, detector, capsys):
    assert run(*single("--n_samples", 2), detect=True) == 0
    found = results()
    assert [row["similarity"] for row in found["pictures"]] == [1.0, 1.0]
    assert found["similarity"] == {"measured_with": "fake", "measured": 2, "mean": 1.0, "reason": None}
    assert found["references"][0]["box"] == [5, 5, 35, 40] and found["detector"] == "fake"
    assert "mean 1.00" in capsys.readouterr().out


def test_the_crop_that_is_shown_to_the_model_is_saved(run, detector):
    run(*single(), detect=True)
    assert Image.open(f"outputs/{results()['references'][0]['crop']}").size == (38, 38)  # the longer side, 35 px, x 1.1


def test_several_faces_are_said(run, detector, capsys):
    detector.faces = 3
    run(*single(), detect=True)
    assert "note: face.png: 3 faces found, the largest is taken" in capsys.readouterr().out


def test_a_photo_shown_to_the_miniature(run, here, toy, detector, capsys):
    """The miniature is a model with a face pack called mini. No face, hardly a face, or a detector of photos: said."""
    from feedface.faces.references import NoFaceError

    shutil.copytree(toy, "model")
    (here / "model/faces/models/mini").mkdir(parents=True)
    (here / "model/faces/models/mini/detector.onnx").touch()
    index = json.loads((here / "model/model_index.json").read_text())
    index["extras"]["faces"] = "faces"
    (here / "model/model_index.json").write_text(json.dumps(index))
    run(*single(), model="model", detect=True)
    assert "the model 'toy' knows drawn portraits only" in capsys.readouterr().out
    detector.name = "mini"
    run(*single("--seed", 1), model="model", detect=True)
    assert "drawn portraits" not in capsys.readouterr().out
    detector.score = 0.51
    run(*single("--seed", 2), model="model", detect=True)
    assert "face.png: hardly a face (score 0.51); model and detector 'mini'" in capsys.readouterr().out
    assert any("--detector opencv" in notice for notice in results()["notices"])
    detector.faces = 0
    with pytest.raises(NoFaceError, match=r"no face found.*drawn portraits only: for photos use --detector opencv"):
        run(*single(), model="model", detect=True)


def test_which_face_is_asked_for(run, detector, capsys):
    detector.faces = 3
    run(*single("--face", "right"), detect=True)
    assert "note: face.png: 3 faces found, the rightmost is taken" in capsys.readouterr().out
    for options, detect, words in (
        (["--face", "middle"], True, "--face middle: use most-like"),
        (["--face", "4"], True, "--face 4: face.png shows 3 faces only"),
        (["--face", "left"], False, "--no_detect"),
    ):
        with pytest.raises(UserError, match=words):
            run(*single(*options), detect=detect)


def test_weights_that_are_no_numbers_leave_no_picture(run, toy, here):
    broken = here / "broken"
    shutil.copytree(toy, broken)
    weights = load_file(broken / "uvit/model.safetensors")
    weights["mid_block.mlp.fc1.weight"][0] = float("nan")
    save_file(weights, broken / "uvit/model.safetensors")
    with pytest.raises(UserError, match="broken/uvit: its weights hold NaN or infinity"):
        run(*single(), model=broken)
    assert pictures() == {}


def test_not_measured_without_a_recogniser(run, capsys):
    run(*single("--detector", "opencv"))
    assert results()["similarity"]["mean"] is None
    assert "face similarity: not measured" in capsys.readouterr().out


def test_another_face_controlnet(run, here, toy):
    """--ckpt_path: a face_controlnet folder, or a training checkpoint that points to its base."""
    torch.manual_seed(3)
    save_component("method", toy_face_controlnet(), here / "checkpoint" / "face_controlnet")
    write_derived_index(here / "checkpoint", toy, {"method": "face_controlnet"}, name="trained")
    run(*single("--output", "base"))
    run(*single("--output", "folder", "--ckpt_path", "checkpoint/face_controlnet"))
    options = ["--device", "cpu", "--no_detect", *single("--output", "checkpointed", "--ckpt_path", "checkpoint")]
    assert inference.main(options) == 0  # without --model
    first = {name: pictures(name)["0000.png"] for name in ("base", "folder", "checkpointed")}
    assert first["base"] != first["folder"]
    np.testing.assert_array_equal(*(np.asarray(Image.open(f"{name}/0000.png")) for name in ("folder", "checkpointed")))
    assert results("checkpointed")["model"]["name"] == "trained"


def test_config_gives_settings_and_options_come_first(run, here, toy):
    (here / "config.py").write_text(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n"
        f"    return ConfigDict({{'model': {str(toy)!r}, 'sample': {{'steps': 2, 'guidance': 5.0}}}})\n"
    )
    options = single("--config", "config.py", "--guidance", "4", "--device", "cpu", "--no_detect")
    assert inference.main(options) == 0
    settings = results()["settings"]
    assert settings["steps"] == 2 and settings["guidance"] == 4
    assert results()["model"]["path"] == str(toy)


def test_the_training_config_is_understood():
    from feedface.inference.config_file import read_config

    config = read_config(ROOT / "configs" / "train_config.py")
    assert config.model and {"sites", "num_heads", "control_input"} <= set(config.control)


def test_as_a_program(toy, here):
    """Own process: exit code 2 and one line on stderr, no traceback; importing and parsing bring in no torch."""
    code = (
        "import sys; sys.argv = ['inference.py', '--prompt', ' ', '--image', 'face.png']; import runpy\n"
        "try: runpy.run_path(sys.path[0] + '/inference.py', run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'libs'}"}
    code = code.replace("sys.path[0]", repr(str(ROOT)))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --prompt: the prompt is empty") and done.stderr.count("\n") == 1


def test_any_seed_is_said_and_makes_the_same_again(run, capsys):
    run(*single("--seed", -1, "--steps", 2))
    seed = re.search(r"note: --seed (\d+) was drawn", capsys.readouterr().out)[1]
    assert results()["pictures"][0]["seed"] == int(seed)
    first = times()
    run(*single("--seed", seed, "--steps", 2))
    assert times() == first
    with pytest.raises(UserError, match="--seed -2: out of range"):
        run(*single("--seed", -2))


@pytest.mark.parametrize(("format", "name"), [("jpeg", "0000.jpg"), ("webp", "0000.webp")])
def test_other_formats_are_not_made_again_either(run, format, name):
    for _ in range(2):
        run(*single("--steps", 2, "--format", format))
    [path] = Path("outputs").glob("[0-9]*")
    assert path.name == name and results()["pictures"][0] | {"made_now": False} == results()["pictures"][0]


def test_perturbed_attention_guidance_is_another_picture_and_none_the_same(run):
    for more in (["--pag_scale", 0], ["--pag_scale", 2], ["--pag_scale", 2, "--pag_interval", 500, 900], []):
        run(*single("--steps", 4, *more))
    first, *others = pictures().values()
    assert len({first, *others}) == 3 and len(others) == 2
    assert results()["settings"]["pag_scale"] == 0


def test_rescaled_guidance_is_another_picture_and_none_the_same(run):
    for rescale in (0, 0.7):
        run(*single("--steps", 2, "--guidance", 6, "--rescale", rescale))
    run(*single("--steps", 2, "--guidance", 6))
    first, second = pictures().values()
    assert first != second and results()["settings"]["rescale"] == 0
    with pytest.raises(UserError, match=r"--rescale 2\.0: out of range"):
        run(*single("--rescale", 2))

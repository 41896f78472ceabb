"""The authors' JSON job schema: what is right is read, what is wrong is named with file, line and key."""

import json
import time
from pathlib import Path

import pytest

from feedface.common.errors import UserError
from feedface.inference.jobs import read_jobs
from feedface.settings import Settings

JSON_EXAMPLES = Path(__file__).parents[1] / "json_examples"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "face.png").touch()
    return tmp_path / "jobs"


def sound(**changes):
    return {"id": 7, "caption_list": ["a", "b"], "source_group": [{"path": "face.png"}], "class_word": "man"} | changes


def test_the_authors_schema(folder):
    (folder / "a.json").write_text(json.dumps(sound()))
    [job], problems = read_jobs([folder / "a.json"])
    assert not problems
    assert (job.id, job.prompts, job.class_word) == ("7", ("a", "b"), "man")
    assert job.images == (folder / "face.png",)
    assert (job.seed, job.n_samples, job.settings, job.notices) == (None, None, Settings(), ())


def test_how_a_job_is_drawn(folder):
    own = {"seed": 5, "n_samples": 3, "guidance": 2, "face_scale": 0.5, "negative_prompt": "hat"}
    sizes = {"64": (64, 64), '"64x96"': (64, 96), "[64, 96]": (64, 96)}
    for text, size in sizes.items():
        (folder / "a.json").write_text(json.dumps(sound(**own))[:-1] + f', "size": {text}}}')
        [job], problems = read_jobs([folder / "a.json"])
        assert not problems and not job.notices
        assert (job.seed, job.n_samples) == (5, 3)
        assert job.settings == Settings(guidance=2.0, face_scale=0.5, size=size, negative_prompt="hat")


def test_a_picture_to_begin_with(folder):
    (folder / "a.json").write_text(json.dumps(sound(init="face.png", mask="face.png", strength=1)))
    [job], problems = read_jobs([folder / "a.json"])
    assert not problems and not job.notices
    assert (job.init, job.mask, job.base, job.strength) == (*[folder / "face.png"] * 2, None, 1.0)


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"clas_word": "man"}, "clas_word", "is class_word meant?"),
        ({"Guidance": 3}, "Guidance", "is guidance meant?"),
        ({"n_iter": 5}, "n_iter", "--n_iter of inference.py"),
        ({"colour": 5}, "colour", "known are id, caption_list"),
        ({"source_group": [{"path": "face.png", "bbox": [1]}]}, "source_group[0].bbox", "known are path"),
    ],
)
def test_keys_that_are_not_used_are_named(folder, change, key, words):
    rows = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sound(**change).items()]
    (folder / "a.json").write_text("{\n" + ",\n".join(rows) + "\n}")
    [job], problems = read_jobs([folder / "a.json"])
    assert not problems
    [notice] = job.notices
    line = 4 if "source_group" in change else 6
    assert notice.startswith(f"{folder / 'a.json'}:{line}: {key}: not used; ") and words in notice


def test_every_setting_of_sampling_may_be_a_jobs_own(folder):
    own = Settings(5, 3.0, 0.5, 64, "paper", "fast", "ddim", (0, 500), (100.0, 900.0), 2, True, "a hat", 0.5).as_json()
    (folder / "a.json").write_text(json.dumps(sound(detect=False, **own)))
    [job], problems = read_jobs([folder / "a.json"])
    assert not problems and not job.notices
    assert job.settings.as_json() == own and job.detect is False
    (folder / "a.json").write_text(json.dumps(sound(steps=0, detect="no", scheduler="euler")))
    problems = read_jobs([folder / "a.json"])[1]
    assert [problem.partition(": ")[2].partition(":")[0] for problem in problems] == ["detect", "steps", "scheduler"]


def test_a_misspelt_key_that_is_needed(folder):
    (folder / "a.json").write_text(json.dumps({"id": 1, "caption_lst": ["a"], "source_group": [{"path": "face.png"}]}))
    assert "caption_list: missing (is caption_lst meant to be it?)" in read_jobs([folder / "a.json"])[1][0]


def test_many_prompts_and_many_jobs_are_read_in_linear_time(folder):
    count = 100_000
    (folder / "a.json").write_text(json.dumps(sound(caption_list=["a woman on a beach"] * count), indent=1))
    (folder / "b.json").write_text(json.dumps([sound(id=id, caption_list=[""]) for id in range(20_000)], indent=1))
    begin = time.monotonic()
    [job], problems = read_jobs([folder])
    assert time.monotonic() - begin < 20
    assert len(job.prompts) == count
    assert len(problems) == 20_000
    assert problems[-1].startswith(f"{folder / 'b.json'}:239993: [19999].caption_list[0]: ")


def test_paths_relative_to_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "deep").mkdir()
    (folder / "deep" / "a.json").write_text(json.dumps(sound()))
    [job], problems = read_jobs(["deep/a.json"])
    assert not problems and job.images[0].resolve() == folder / "face.png"


def test_files_folders_and_lists_of_jobs(folder):
    (folder / "b.json").write_text(json.dumps([sound(id="b1"), sound(id="b2")]))
    (folder / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(sound(id="a")).encode())  # with a byte order mark
    jobs, problems = read_jobs([folder, folder / "a.json"])
    assert not problems
    assert [job.id for job in jobs] == ["a", "b1", "b2"]


def test_folder_without_jobs(tmp_path):
    with pytest.raises(UserError, match=r"no \.json files"):
        read_jobs([tmp_path])


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("", 1, "empty file"),
        (" \n\n", 1, "empty file"),
        ('{\n"id": 1,\n}', 3, "not valid JSON"),
        ('{"id": 1', 1, "not valid JSON"),
        ('{"id": 1}\nx', 2, "not valid JSON"),
        ("[]", 1, "empty list"),
        ("3", 1, "a job is an object"),
        ("null", 1, "a job is an object"),
        ('[{"id": 1},\n\n"x"]', 3, "[1]: a job is an object"),
    ],
)
def test_malformed(folder, text, line, words):
    (folder / "a.json").write_text(text)
    jobs, problems = read_jobs([folder / "a.json"])
    assert not jobs
    assert any(problem.startswith(f"{folder / 'a.json'}:{line}: ") and words in problem for problem in problems)


def test_not_utf8(folder):
    (folder / "a.json").write_bytes(b'{"id":\n "\xff"}')
    assert read_jobs([folder / "a.json"])[1] == [f"{folder / 'a.json'}:2: not UTF-8 text; save it as UTF-8"]


def test_a_number_of_very_many_digits(folder):
    (folder / "a.json").write_text(json.dumps(sound()).replace("7", "1" + "0" * 5000, 1))
    [problem] = read_jobs([folder / "a.json"])[1]
    assert problem.startswith(f"{folder / 'a.json'}:1: ") and "5001 digits" in problem


def test_nested_too_deeply(folder):
    (folder / "a.json").write_text("[" * 100_000)
    [problem] = read_jobs([folder / "a.json"])[1]
    assert "nested too deeply" in problem


# The value of each key stands on the line of its own: id 2, caption_list 3, source_group 4, class_word 5.
@pytest.mark.parametrize(
    ("change", "line", "key"),
    [
        ({"id": None}, 2, "id"),
        ({"id": True}, 2, "id"),
        ({"id": ""}, 2, "id"),
        ({"id": [1]}, 2, "id"),
        ({"id": 1.5}, 2, "id"),
        ({"caption_list": "a prompt"}, 3, "caption_list"),
        ({"caption_list": []}, 3, "caption_list"),
        ({"caption_list": ["a", 3]}, 3, "caption_list[1]"),
        ({"caption_list": ["a", " "]}, 3, "caption_list[1]"),
        ({"caption_list": ["a" * 10_000]}, 3, "caption_list[0]"),
        ({"caption_list": ["\ud83d"]}, 3, "caption_list[0]"),
        ({"source_group": []}, 4, "source_group"),
        ({"source_group": {"path": "face.png"}}, 4, "source_group"),
        ({"source_group": ["face.png"]}, 4, "source_group[0]"),
        ({"source_group": [{}]}, 4, "source_group[0].path"),
        ({"source_group": [{"path": "face.png"}, {"path": 3}]}, 4, "source_group[1].path"),
        ({"source_group": [{"path": ""}]}, 4, "source_group[0].path"),
        ({"source_group": [{"path": "none.png"}]}, 4, "source_group[0].path"),
        ({"source_group": [{"path": "\u0000"}]}, 4, "source_group[0].path"),
        ({"source_group": [{"path": "x" * 5000}]}, 4, "source_group[0].path"),
        ({"class_word": 3}, 5, "class_word"),
        ({"seed": -1}, 6, "seed"),
        ({"seed": 2**63}, 6, "seed"),
        ({"seed": 1.5}, 6, "seed"),
        ({"seed": True}, 6, "seed"),
        ({"n_samples": 0}, 6, "n_samples"),
        ({"n_samples": 257}, 6, "n_samples"),
        ({"n_samples": "3"}, 6, "n_samples"),
        ({"guidance": 51}, 6, "guidance"),
        ({"guidance": "strong"}, 6, "guidance"),
        ({"face_scale": -1}, 6, "face_scale"),
        ({"negative_prompt": ["hat"]}, 6, "negative_prompt"),
        ({"face_scale": [1]}, 6, "face_scale"),
        ({"size": 0}, 6, "size"),
        ({"size": "64x"}, 6, "size"),
        ({"size": "\ud800"}, 6, "size"),
        ({"size": [64]}, 6, "size"),
        ({"size": [64, "a"]}, 6, "size"),
        ({"size": True}, 6, "size"),
        ({"init": "none.png"}, 6, "init"),
        ({"init": "face.png", "strength": 0}, 7, "strength"),
        ({"init": "face.png", "strength": "all"}, 7, "strength"),
        ({"init": "face.png", "base": "face.png"}, 7, "base"),
        ({"mask": "face.png"}, 6, "mask"),
        ({"strength": 0.5}, 6, "strength"),
    ],
)
def test_wrong_values(folder, change, line, key):
    rows = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in sound(**change).items()]
    (folder / "a.json").write_text("{\n" + ",\n".join(rows) + "\n}")
    jobs, problems = read_jobs([folder / "a.json"])
    assert not jobs
    [problem] = problems
    assert problem.startswith(f"{folder / 'a.json'}:{line}: {key}: ")
    assert f"--{key}" not in problem


@pytest.mark.parametrize("key", ["id", "caption_list", "source_group"])
def test_missing_key(folder, key):
    job = sound()
    del job[key]
    (folder / "a.json").write_text("\n" + json.dumps(job))
    jobs, [problem] = read_jobs([folder / "a.json"])
    assert not jobs and problem.startswith(f"{folder / 'a.json'}:2: {key}: missing")


def test_every_problem_is_named_and_sound_jobs_remain(folder):
    (folder / "a.json").write_text(json.dumps([{"id": 1}, sound(id="good"), sound(id=[], caption_list=[])]))
    (folder / "b.json").write_text("{")
    jobs, problems = read_jobs([folder, folder / "none.json"])
    assert [job.id for job in jobs] == ["good"]
    assert len(problems) == 6  # two keys missing, two wrong, one malformed file, one missing file
    assert all("\n" not in problem for problem in problems)


def test_an_id_may_be_used_once(folder):
    (folder / "a.json").write_text(json.dumps([sound(id="Ann"), sound(id="ann")]))
    jobs, [problem] = read_jobs([folder / "a.json"])
    assert [job.id for job in jobs] == ["Ann"]
    assert "[1].id" in problem and "already used" in problem


def test_the_committed_examples_are_sound():
    jobs, problems = read_jobs([JSON_EXAMPLES])
    assert not problems and len(jobs) >= 2

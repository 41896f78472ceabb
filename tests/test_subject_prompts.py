"""AdaFace's evaluation: lists of prompts, subjects out of folders, guidance that falls."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toy import toy_unet

from feedface.common.errors import UserError
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.sampling import sample
from feedface.evaluation.cli import parse
from feedface.evaluation.protocols import SubjectCases
from feedface.evaluation.subject_prompts import OTHERS, THINGS, list_name, read_list, subject_prompts, write_list
from feedface.settings import Settings


def test_how_many_there_are_and_what_is_asked():
    counts = {
        (which, kind): len(subject_prompts(which, "dog", kind))
        for which in ("dreambench", "community", "all")
        for kind in (0, 1, 2)
    }
    assert [counts["dreambench", kind] for kind in (0, 1, 2)] == [25, 22, 22]
    assert [counts["community", kind] for kind in (0, 1, 2)] == [25, 25, 25]
    assert [counts["all", kind] for kind in (0, 1, 2)] == [25, 47, 47]
    assert sum(len(subject_prompts("dreambench", "man")) for _ in range(22)) == 484
    for kind in (0, 1, 2):
        prompts = subject_prompts("all", "young man", kind)
        assert len({entry.prompt for entry in prompts}) == len(prompts)
        assert all(entry.prompt.split().count("z,") == 1 for entry in prompts)
        assert all("z" not in entry.asked.split() and "face portrait" not in entry.asked for entry in prompts)
    first = subject_prompts("dreambench", "young man")[0]
    assert (first.prompt, first.asked) == ("a z, face portrait, in the jungle", "a young man in the jungle")
    assert subject_prompts("all", "dog", OTHERS, "rex")[0].prompt == "a dog rex, in the jungle"
    assert subject_prompts("dreambench", "clock", THINGS)[0].prompt == "a clock z, in the jungle"


def test_a_list_file_is_read_as_it_was_written(tmp_path):
    file, prompts = tmp_path / list_name("ann", "dreambench", 16), subject_prompts("dreambench", "woman")
    write_list(file, "ann", prompts, "woman")
    assert file.name == "ann-prompts-dreambench-16.txt"
    assert read_list(file) == prompts
    number, folder, *_, short = file.read_text().splitlines()[0].split("\t")
    assert (number, folder, short) == ("4", "ann-a-woman-in-the-jungle", "a woman")
    assert all(len(line.split("\t")[1]) <= 80 for line in file.read_text().splitlines())
    for text, message in (
        ("4\ta\tb\n", r":1: wants number, folder, prompt"),
        ("4\ta\tb\tc\td\n\nx\ta\tb\tc\td\n", r":3: wants"),
        ("\n", "has no prompts"),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match=message):
            read_list(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="is no text in UTF-8"):
        read_list(file)


def test_subjects_out_of_folders(tmp_path):
    picture = Image.fromarray(np.full((40, 40, 3), 90, np.uint8))
    for name in ("ann", "bob", "empty"):
        (tmp_path / name).mkdir()
    for name in ("ann/0.png", "ann/0_mask.png", "ann/1.jpg", "bob/0.png"):
        picture.save(tmp_path / name)
    (tmp_path / "ann/metainfo.json").write_text(json.dumps({"person_type": "young woman", "age": 30}))
    write_list(tmp_path / "bob/bob-prompts-x-4.txt", "bob", subject_prompts("community", "man")[:2], "man")
    cases = SubjectCases(tmp_path, "dreambench", 1, 0)
    assert cases.names == ["ann", "bob"]
    assert cases.problems == [f"{tmp_path / 'empty'}: has no pictures"]

    class Judge:
        name = "stub"

        def look(self, pictures):
            count = len(pictures)
            face = SimpleNamespace(box=np.array([5, 5, 35, 35], np.float32))
            return SimpleNamespace(found=np.ones(count, bool), faces=[face] * count, embeddings=np.eye(3)[:count])

    ann, bob = (cases.load(index, Judge()) for index in range(2))
    assert len(ann.prompts) == len(ann.seeds) == len(set(ann.seeds)) == 22
    assert len(ann.references) == len(ann.others) == 1  # no mask is taken for a picture
    assert ann.said[0] == "a young woman in the jungle"
    assert bob.prompts[0].startswith("a z, face portrait, as a knight")
    (tmp_path / "ann/metainfo.json").write_text('{"kind": 7}')
    assert "metainfo.json" in SubjectCases(tmp_path, "all", 1, 0).problems[0]
    with pytest.raises(UserError, match="no such folder"):
        SubjectCases(tmp_path / "nowhere", "all", 1, 0)


def test_the_command_line():
    args = parse(["--protocol", "adaface", "--data", "subjects"])
    assert args.settings.guidance == (4, 1)
    assert args.prompt_set == "dreambench"
    assert parse(["--protocol", "adaface", "--data", "x", "--guidance", "6"]).settings.guidance == 6
    for arguments, message in (
        (["--protocol", "adaface"], "--data is missing"),
        (["--protocol", "mini", "--prompt_set", "all"], "--prompt_set does not go with --protocol mini"),
        (["--protocol", "adaface", "--data", "x", "--cases", "y"], "--cases does not go with"),
        (["--protocol", "adaface", "--data", "x", "--guidance", "1", "2", "3"], "give one number, or two"),
        (["--protocol", "adaface", "--data", "x", "--guidance", "4", "99"], "--guidance"),
    ):
        with pytest.raises(UserError, match=message):
            parse(arguments)


def test_guidance_falls_evenly(monkeypatch):
    backbone, seen = toy_unet(), []
    original = GuidedModel.__call__

    def noted(self, state, t, **options):
        seen.append(options.get("guidance"))
        return original(self, state, t, **options)

    monkeypatch.setattr(GuidedModel, "__call__", noted)
    prompt, empty = {"text": torch.randn(1, 8, 8)}, {"text": torch.randn(1, 8, 8)}
    options = {"prompt": prompt, "empty_prompt": empty, "seeds": [0], "steps": 4, "scheduler": "ddim"}
    falling = sample(backbone, guidance=(4.0, 1.0), **options)["img"]
    assert seen == [4, 3, 2, 1]
    same, plain = (sample(backbone, guidance=value, **options)["img"] for value in ((2.0, 2.0), 2.0))
    torch.testing.assert_close(same, plain)
    assert not torch.equal(falling, plain)
    below, without = (sample(backbone, guidance=value, **options)["img"] for value in ((1.0, 0.5), 1.0))
    assert not torch.equal(below, without)  # two halves also where the higher of both needs one
    assert Settings(guidance=[3, 3]).guidance == 3
    assert Settings(guidance=[4, 1]).guidance == (4, 1)

"""Low memory by stages: each part is read once a run, and pictures, resuming and errors are as without it."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toy import make_toy_bundle

from feedface import pipeline
from feedface.commands import inference
from feedface.common.errors import UserError
from feedface.faces.references import find_faces
from feedface.inference import model_files, stages
from feedface.inference.batching import draw_batch
from feedface.inference.start import Start
from feedface.pipeline import FeedFacePipeline, Request
from feedface.settings import Settings

ONCE = {"text_encoder": 1, "method": 1, "backbone": 1, "vae": 1}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def reads(monkeypatch):
    """How often each part's weights are read."""
    counted, read = Counter(), model_files._read

    def counting(model, ckpt_path, kinds, device, dtype, control):
        if device.type != "meta":
            counted.update(kinds)
        return read(model, ckpt_path, kinds, device, dtype, control)

    monkeypatch.setattr(model_files, "_read", counting)
    return counted


@pytest.fixture
def run(toy, tmp_path, monkeypatch):
    """Runs three jobs of two prompts with two samples each, two pictures at a time."""
    monkeypatch.chdir(tmp_path)
    for name, faces in (("a", 1), ("b", 2), ("c", 1)):
        for face in range(faces):
            random_face(10 * faces + face).save(f"{name}{face}.png")
        job = {"id": name, "caption_list": ["a man", "a woman with a hat"]}
        job["source_group"] = [{"path": f"{name}{face}.png"} for face in range(faces)]
        Path(f"{name}.json").write_text(json.dumps(job))

    def run(output, *options):
        command = ["--model", toy, "--device", "cpu", "--no_detect", "--n_samples", 2, "--batch_size", 2, "-j"]
        return inference.main([*map(str, [*command, "a.json", "b.json", "c.json", "--output", output, *options])])

    return run


def random_face(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 40, 3), dtype=np.uint8))


def pictures(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(Path(folder).glob("*/[0-9]*.png"))}


def batch_by_batch(bundle, batches, device, on_step, on_latents):
    """As it was before there were stages."""
    for batch in batches:
        drawn = draw_batch(
            bundle, batch.prompts, batch.seeds, batch.identity(), batch.settings, device, on_step=on_step
        )
        yield batch, batch.finished(drawn)


@pytest.fixture
def plain(run, monkeypatch):
    """The same pictures, drawn with little memory too, a batch at a time."""
    with monkeypatch.context() as changed:
        changed.setattr(pipeline, "draw_by_stages", batch_by_batch)
        run("plain", "--low_memory")
    return pictures("plain")


def test_each_part_is_read_once_a_run(run, reads, plain):
    assert sum(reads.values()) > 6 * 4 - 3  # six batches of four parts
    reads.clear()
    assert run("low", "--low_memory") == 0
    assert reads == ONCE
    assert len(plain) == 12 and pictures("low") == plain
    assert not list(Path("low").glob("*/.latents"))
    assert run("few", "--low_memory", "--seed", 9) == 0 and reads == {part: 2 for part in ONCE}  # another run


def interrupt(*_):
    raise KeyboardInterrupt


def test_what_was_drawn_when_a_run_was_killed_is_only_decoded(run, reads, plain, monkeypatch):
    with monkeypatch.context() as changed, pytest.raises(KeyboardInterrupt):
        changed.setattr(stages, "decode", interrupt)
        run("low", "--low_memory")
    assert not pictures("low") and len(list(Path("low").glob("*/.latents/*.safetensors"))) == 12
    reads.clear()
    assert run("low", "--low_memory") == 0
    assert reads == {"vae": 1} and pictures("low") == plain
    assert not list(Path("low").glob("*/.latents"))


def test_what_was_not_drawn_or_is_broken_is_drawn(run, plain, monkeypatch):
    drawn, draw = [], stages.draw_latents

    def recorded(bundle, conditions, seeds, *args):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append(seeds)
        return draw(bundle, conditions, seeds, *args)

    monkeypatch.setattr(stages, "draw_latents", recorded)
    with pytest.raises(KeyboardInterrupt):
        run("low", "--low_memory")
    left = sorted(Path("low").glob("*/.latents/*.safetensors"))
    assert len(left) == 4
    left[0].write_bytes(b"broken")
    drawn[:] = [[]] * 3
    assert run("low", "--low_memory") == 0
    assert sum(map(len, drawn)) == 12 - 3
    found = by_fingerprint("low")
    assert len(found) == 12
    for fingerprint, pixels in by_fingerprint("plain").items():  # batches of other pictures round otherwise
        np.testing.assert_allclose(found[fingerprint], pixels, atol=1)


def by_fingerprint(folder):
    opened = [(path.parent.name, Image.open(path)) for path in Path(folder).glob("*/[0-9]*.png")]
    return {(job, image.text["fingerprint"]): np.asarray(image).astype(int) for job, image in opened}


@pytest.mark.parametrize("stage", ["encode_texts", "draw_latents", "decode"])
def test_what_fails_fails_its_jobs_alone(run, monkeypatch, capsys, stage):
    """In whatever stage: the second call, which is of the first job, which then is asked for nothing more."""
    calls, work = [], getattr(stages, stage)

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise UserError("cannot be drawn")
        return work(*args)

    monkeypatch.setattr(stages, stage, failing)
    assert run("low", "--low_memory") == 2
    assert "job a (a.json:1): cannot be drawn" in capsys.readouterr().err
    assert sorted(path.parent.name for path in Path("low").glob("*/results.json")) == ["b", "c"]
    assert {name[0] for name in pictures("low")} >= {"b", "c"}


def test_a_full_disk_ends_the_run(run, monkeypatch):
    from feedface.inference import outputs

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "save_file", full)
    with pytest.raises(UserError, match=r"low/a/\.latents/\w+\.safetensors: cannot be written \(No space left"):
        run("low", "--low_memory")
    assert not list(Path("low").glob("*/.latents/*"))


def test_the_same_from_python_with_pictures_to_begin_with(toy, reads, monkeypatch):
    plain, low = (FeedFacePipeline.from_pretrained(toy, device="cpu", low_memory=low) for low in (False, True))
    photo = np.asarray(random_face(3).resize((64, 64)))
    mask = np.zeros((64, 64), np.uint8)
    mask[:32] = 255
    beginnings = [None, Start(photo, strength=0.6), Start(photo, mask, 0.6)]
    reads.clear()
    drawn = {}
    for pipe in (plain, low):
        references, _ = find_faces([random_face(1)], None)
        who = pipe.identity(references)
        wanted = [Request("a man", seed, who, start) for start in beginnings for seed in range(2)]
        drawn[pipe] = [np.asarray(image) for image in pipe.draw(wanted, Settings(steps=2), batch_size=1)]
    assert all(np.array_equal(one, other) for one, other in zip(drawn[plain], drawn[low], strict=True))
    assert reads == {**ONCE, "method": 2, "vae": 2}  # the person, and the pictures to begin with
    # More pictures than wait for each other: as they come, and each part once for so many.
    monkeypatch.setattr(stages, "STAGE_PICTURES", 4)
    reads.clear()
    again = [np.asarray(image) for image in low.draw(wanted, Settings(steps=2), batch_size=1)]
    assert all(np.array_equal(one, other) for one, other in zip(again, drawn[low], strict=True))
    assert reads["backbone"] == 2


def test_an_identity_that_is_no_number_is_said(toy):
    low = FeedFacePipeline.from_pretrained(toy, device="cpu", low_memory=True)
    references, _ = find_faces([random_face(1)], None)
    broken = {name: torch.full_like(value, torch.nan) for name, value in low.identity(references).items()}
    with pytest.raises(UserError, match="identity holds NaN"):
        list(low.draw([Request("a man", 0, broken)], Settings(steps=1)))

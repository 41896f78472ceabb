"""Whatever is handed to inference.py: one clear line that names it, exit code 2, and nothing left behind."""

import json
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy import make_toy_bundle

from feedface.commands import inference
from feedface.common.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, run_cli


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


def huge_png():
    """The header of a 20 000 x 20 000 picture, and no pixels: refused before decoding, or not at all."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


class Payload:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with all kinds of files."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save("face.png")
    Path("truncated.png").write_bytes(Path("face.png").read_bytes()[:3000])
    Path("text.png").write_text("no picture " * 50)
    Path("empty.png").touch()
    Image.new("RGB", (1, 1)).save("pixel.png")
    Path("huge.png").write_bytes(huge_png())
    Path("folder").mkdir()
    return tmp_path


def refused(capsys, options):
    """Run as a script does; returns the one line on stderr."""
    with pytest.raises(SystemExit) as exited:
        run_cli(lambda: inference.main([str(option) for option in options]))
    assert exited.value.code == EXIT_USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if "step/s" not in line and "?step" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def command(toy, **changes):
    """A sound command line with options changed; None leaves one out, True makes it a flag."""
    options = {"model": toy, "prompt": "a man", "image": "face.png", "device": "cpu", "no_detect": True} | changes
    line = []
    for name, value in options.items():
        if value is True:
            line.append(f"--{name}")
        elif isinstance(value, list):
            line += [f"--{name}", *value]
        elif value is not None:
            line.append(f"--{name}={value}")
    return line


def test_the_command_is_sound_before_it_is_changed(toy, here):
    assert inference.main(command(toy)) == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "text.png"}, ["text.png", "not a picture"]),
        ({"image": "truncated.png"}, ["truncated.png", "truncated"]),
        ({"image": "empty.png"}, ["empty.png", "0 bytes"]),
        ({"image": "pixel.png"}, ["pixel.png", "1 x 1"]),
        ({"image": "huge.png"}, ["huge.png", "megapixels"]),
        ({"image": "none.png"}, ["none.png", "no such picture"]),
        ({"image": "folder"}, ["folder", "directory"]),
        ({"image": "a\nb\0.png"}, ["cannot be read"]),
        ({"image": ["face.png", "none.png"]}, ["none.png"]),
        ({"image": None}, ["--image"]),
        ({"prompt": None}, ["--prompt"]),
        ({"prompt": ""}, ["--prompt", "empty"]),
        ({"prompt": " \n\t"}, ["--prompt", "empty"]),
        ({"prompt": "x" * 10_000}, ["--prompt", "10000 characters", "2000"]),
        ({"prompt": "\udcff"}, ["--prompt", "UTF-8"]),
        ({"steps": 0}, ["--steps", "1 to 999"]),
        ({"steps": 1000}, ["--steps"]),
        ({"steps": "many"}, ["--steps", "many"]),
        ({"guidance": -1}, ["--guidance", "0 to 50"]),
        ({"guidance": "nan"}, ["--guidance"]),
        ({"guidance": "inf"}, ["--guidance"]),
        ({"face_scale": -0.1}, ["--face_scale", "0 to 5"]),
        ({"face_scale": 99}, ["--face_scale"]),
        ({"size": 0}, ["--size"]),
        ({"size": ""}, ["--size", "(empty)"]),
        ({"size": " "}, ["--size"]),
        ({"size": 50}, ["--size", "multiple of 16", "48"]),
        ({"size": 1024}, ["--size", "256"]),
        ({"size": "64x"}, ["--size"]),
        ({"size": "-64"}, ["--size"]),
        ({"n_samples": 0}, ["--n_samples"]),
        ({"n_iter": 0}, ["--n_iter"]),
        ({"seed": -2}, ["--seed"]),
        ({"seed": 2**63}, ["--seed"]),
        ({"seed": "x"}, ["--seed"]),
        ({"device": "warp"}, ["--device", "warp"]),
        ({"device": "cuda:99"}, ["--device"]),
        ({"dtype": "int8"}, ["--dtype", "int8"]),
        ({"unknown": 1}, ["--unknown"]),
        ({"json": "none.json"}, ["--prompt"]),  # both ways of saying what to draw
        ({"json": "none.json", "prompt": None, "image": None}, ["none.json", "no such file"]),
        ({"json": "folder", "prompt": None, "image": None}, ["folder", "no .json"]),
        ({"output": "face.png"}, ["face.png", "cannot be written"]),
        ({"output": "face.png/below"}, ["face.png/below", "cannot be written"]),
        ({"output": "a/" * 1500}, ["folders in each other", "200"]),
        ({"no_detect": None, "detector": "opencv"}, ["face.png", "no face found", "opencv", "--no_detect"]),
        ({"no_detect": None, "detector": "no_such_pack"}, ["no_such_pack"]),
        ({"model": "none"}, ["none", "no such model folder"]),
        ({"model": "folder"}, ["folder", "model_index.json", "uvit_v1.pth", "feed-4800000.pt", "models/README.md"]),
        ({"model": "folder"}, ["autoencoder_kl.pth", "caption_decoder.pth", "huggingface.co"]),
        ({"ckpt_path": "none.pt"}, ["none.pt", "no such file"]),
        ({"ckpt_path": "face.png"}, ["face.png"]),
        ({"ckpt_path": "folder"}, ["folder", "config.json"]),
        ({"config": "none.py"}, ["none.py", "no such file"]),
        ({"config": "face.png"}, ["face.png"]),
    ],
)
def test_refused(toy, here, capsys, changes, words):
    line = refused(capsys, command(toy, **changes))
    for word in words:
        assert word in line
    assert not Path("outputs").exists()
    assert not list(here.rglob(".tmp-*"))


def test_unreadable_output(toy, here, capsys, monkeypatch):
    """As for a user without the right to write; root, whom tests may run as, has it everywhere."""

    def deny(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", deny)
    assert "outputs: cannot be written (Permission denied)" in refused(capsys, command(toy))


def test_a_model_without_a_part(toy, here, capsys):
    shutil.copytree(toy, "model")
    shutil.rmtree("model/vae")
    assert "model/vae" in refused(capsys, command("model"))


def test_libraries_add_nothing_of_their_own(toy, here, capfd):
    """diffusers on a missing file, torch on a pickle's protocol, libtiff on damage: one line, and it is ours."""
    shutil.copytree(toy, "model")
    Path("model/vae/diffusion_pytorch_model.safetensors").unlink()
    torch.save({"weight": torch.zeros(3)}, "foreign.pt", pickle_protocol=4)
    torch.save({"weight": torch.zeros(3)}, "old.pt", pickle_protocol=4, _use_new_zipfile_serialization=False)
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save("damaged.tif", compression="tiff_lzw")
    content = bytearray(Path("damaged.tif").read_bytes())
    content[200:260] = b"\xff" * 60
    Path("damaged.tif").write_bytes(content)
    refused(capfd, command("model"))
    for name in ("foreign.pt", "old.pt"):
        assert name in refused(capfd, command(toy, ckpt_path=name))
    assert "damaged.tif" in refused(capfd, command(toy, image="damaged.tif"))


@pytest.mark.parametrize("damage", [b"", b"\x00" * 100, b"garbage" * 1000])
def test_damaged_weights(toy, here, capsys, damage):
    shutil.copytree(toy, "model")
    Path("model/uvit/model.safetensors").write_bytes(damage)
    assert "model/uvit/model.safetensors" in refused(capsys, command("model"))


def test_foreign_weights(toy, here, capsys):
    shutil.copytree(toy, "model")
    shutil.copy("model/uvit/model.safetensors", "model/face_controlnet/model.safetensors")
    assert "model/face_controlnet/model.safetensors" in refused(capsys, command("model"))
    torch.save({"weight": torch.zeros(3)}, "foreign.pt")
    assert "foreign.pt" in refused(capsys, command(toy, ckpt_path="foreign.pt"))


@pytest.mark.parametrize("wrap", [lambda payload: payload, lambda payload: {"weight": torch.zeros(2), "x": payload}])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_payload_does_not_run(toy, here, capsys, wrap, zipped):
    torch.save(wrap(Payload(here / "attacked")), "evil.pt", _use_new_zipfile_serialization=zipped)
    assert "evil.pt" in refused(capsys, command(toy, ckpt_path="evil.pt"))
    assert not Path("attacked").exists()


def test_the_authors_files_incomplete(here, capsys):
    Path("models").mkdir()
    torch.save({}, "models/uvit_v1.pth")
    line = refused(capsys, command("models"))
    for word in ("autoencoder_kl.pth", "caption_decoder.pth", "feed-4800000.pt", "huggingface.co"):
        assert word in line


def test_a_pickled_payload_among_the_authors_files(here, capsys):
    Path("models").mkdir()
    for name in ("uvit_v1.pth", "autoencoder_kl.pth", "caption_decoder.pth", "feed-4800000.pt"):
        torch.save({"weight": Payload(here / "attacked")}, f"models/{name}")
    assert ".pt" in refused(capsys, command("models"))
    assert ".pt" in refused(capsys, command(None, ckpt_path="models/feed-4800000.pt"))
    assert not Path("attacked").exists()


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ("", [":1:", "empty file"]),
        ('{"id": 1,\n"caption_list": ["a"],\n}', [":3:", "not valid JSON"]),
        (json.dumps({"id": 1, "caption_list": ["a"]}), ["source_group", "missing"]),
        (json.dumps({"id": 1, "caption_list": ["a"], "source_group": []}), ["source_group", "empty"]),
        (json.dumps({"id": 1, "caption_list": "a", "source_group": [{"path": "face.png"}]}), ["caption_list"]),
        (json.dumps({"id": 1, "caption_list": ["a"], "source_group": [{"path": "none.png"}]}), ["none.png"]),
        (json.dumps({"id": 1, "caption_list": ["a"], "source_group": [{"path": "text.png"}]}), ["text.png"]),
    ],
)
def test_jobs(toy, here, capsys, job, words):
    Path("job.json").write_text(job)
    line = refused(capsys, command(toy, prompt=None, image=None, json="job.json"))
    for word in ("job.json", *words):
        assert word in line
    assert not Path("outputs").exists()


def test_ctrl_c(toy, here, capsys, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("feedface.inference.batching.sample", interrupt)
    with pytest.raises(SystemExit) as exited:
        run_cli(lambda: inference.main(command(toy)))
    assert exited.value.code == EXIT_INTERRUPTED
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    [left] = Path("outputs").iterdir()
    assert left.name.startswith("reference_")

"""`train.py` as it is called: exit codes, one-line errors, dry run, stopping by SIGTERM and going on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.test_methods import Row, Run
from tests.toy import CLIP_CONFIG, make_toy_bundle
from tests.toy_records import make_records
from transformers import CLIPVisionConfig, CLIPVisionModel

from feedface.checkpoints.bundle import load_bundle

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def command(*arguments, launcher=(sys.executable,)):
    return [*launcher, str(ROOT / "train.py"), *map(str, arguments)]


def call(*arguments, **options):
    done = subprocess.run(
        command(*arguments, **options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config=configs/mini_face.py", "--workdir=w", "--config.train.batchsize=8"], "batchsize"),
        (["--config=configs/mini_face.py", "--workdir=w", "--config.train.lr=fast"], "lr"),
        (["--config=configs/mini_face.py", "--workdir=w", "--config.loss=1"], "loss"),
        (["--config=configs/mini_face.py", "--workdir=w", "--steps=3"], "steps"),
        (["--config=configs/mini_face.py", "--workdir={tmp}/w", "--config.method=none"], "'none' is no method"),
        (["--config=configs/mini_face.py", "--workdir=w", "more"], "more"),
        (["--config=configs/mini_face.py"], "--workdir is missing"),
        (["--workdir=w"], "--config is missing"),
        (["--config=configs/nowhere.py", "--workdir=w"], "nowhere"),
        (["--config=configs/mini_face.py", "--workdir="], "--workdir is empty"),
        (["--config={tmp}/raising.py", "--workdir=w"], "raising.py:2: ZeroDivisionError: division by zero"),
        (["--config", "{tmp}/syntax.py", "--workdir=w"], "syntax.py:1: SyntaxError"),
        (["--config={tmp}/few.py", "--workdir={tmp}/w"], "config.model: is missing"),
    ],
)
def test_wrong_calls(arguments, words, tmp_path):
    (tmp_path / "raising.py").write_text("def get_config():\n    return 1 / 0\n")
    (tmp_path / "syntax.py").write_text("def get_config(:\n")
    few = "import ml_collections\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})\n"
    (tmp_path / "few.py").write_text(few)
    code, out, errors = call(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 2, errors
    assert errors.count("\n") == 1 and errors.startswith("error: ") and words in errors and not out
    assert not (ROOT / "w").exists()


@pytest.mark.parametrize(
    "script",
    [
        ["distill.py", "train", "--workdir="],
        ["make_data.py", "--data_folder=.", "--out_folder="],
        ["-m", "research.reproduction", "--workdir="],
    ],
)
def test_other_scripts_take_no_empty_folder_either(script, tmp_path):
    script = [str(ROOT / script[0]), *script[1:]] if script[0].endswith(".py") else script
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "libs"), str(ROOT)])}  # research stands in the checkout alone
    done = subprocess.run(
        [sys.executable, *script], cwd=tmp_path, env=ENVIRONMENT | paths, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and ": is empty" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    CLIPVisionModel(CLIPVisionConfig(**CLIP_CONFIG)).save_pretrained(folder / "face_encoder")
    return [
        "--config=configs/mini_face.py",
        f"--config.model={make_toy_bundle(folder / 'bundle')}",
        f"--config.face_encoder={folder / 'face_encoder'}",
        "--config.control.sites=('in_blocks.0','out_blocks.0')",
        f"--config.data.records=('{make_records(folder / 'records')}',)",
        f"--config.cache.dir={folder / 'cache'}",
        "--config.train.batch_size=4",
    ]


@pytest.mark.parametrize("config", [pytest.param("feedface_unet", marks=pytest.mark.slow), "mini_unet_face"])
def test_the_configs_of_the_unet(config, tmp_path):
    run = Run(Row("feedface", "unet", {}), tmp_path)
    code, out, errors = call(
        f"--config=configs/{config}.py",
        f"--workdir={tmp_path / 'run'}",
        "--dry_run",
        f"--config.model={tmp_path / 'model'}",
        f"--config.face_encoder={tmp_path / 'base'}",
        f"--config.data.records=('{run.records}',)",
        "--config.control.self_attention=False",
        "--config.train.batch_size=2",
        "--config.train.precision=no",
    )
    assert code == 0, errors
    assert "at sites down_blocks.0.attentions.0, up_blocks.1.attentions.0" in out


def test_dry_run(arguments, tmp_path):
    code, out, errors = call(*arguments, f"--workdir={tmp_path / 'run'}", "--dry_run")
    assert code == 0, errors
    assert "records: 12, of which 12 list other pictures; broken files: 0" in out
    assert "batch_size: 4" in out and "GiB" in out and "a step of 4 samples" in out
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_the_same_command_goes_on(arguments, tmp_path):
    run = [*arguments, f"--workdir={tmp_path}", "--config.log.every=1"]
    process = subprocess.Popen(
        command(*run, "--config.train.steps=100000", "--config.checkpoint.every=5"),
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while not (tmp_path / "checkpoints" / "last").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGTERM)
        out, errors = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "stopped at step" in out
    stopped = int((tmp_path / "checkpoints" / "last").resolve().name)

    launcher = (sys.executable, "-m", "accelerate.commands.launch", "--num_processes=1", "--num_machines=1",
                "--mixed_precision=no", "--dynamo_backend=no")  # fmt: skip
    code, out, errors = call(*run, f"--config.train.steps={stopped + 2}", launcher=launcher)
    assert code == 0, errors
    assert f"going on from {tmp_path}/checkpoints/{stopped:08d}; changed since: " in out
    assert (tmp_path / "checkpoints" / "last").resolve().name == f"{stopped + 2:08d}"
    assert load_bundle(tmp_path / "checkpoints" / "last").name == f"bundle, step {stopped + 2}"

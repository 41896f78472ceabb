"""Installed as a wheel, without a checkout: what is in it, and that library and commands work from it."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from feedface import __version__
from feedface.commands import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "libs", "configs", "research", "tests", "train.py")
# Else pip finds the checkout's package on it and installs nothing.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that nothing of an earlier build gets in; with the setuptools that is installed here."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    source = folder / "source"
    source.mkdir()
    for path in map(ROOT.joinpath, PARTS):
        if path.is_dir():
            shutil.copytree(path, source / path.name, ignore=unwanted)
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "pip", "wheel", source, "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--quiet", "--wheel-dir", folder], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands' folder of a fresh environment; what feedface needs is lent to it from this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


@pytest.fixture
def run(installed, tmp_path):
    def run(program, *arguments):
        command = [installed / program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return run


def test_what_is_in_it(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = {name: archive.read(name) for name in names if not name.endswith(".gz")}
    assert {name.partition("/")[0] for name in names} == {"feedface", f"feedface-{__version__}.dist-info"}
    data = {path for path in (ROOT / "libs").rglob("*") if path.is_file() and path.suffix != ".pyc"}
    ours = {path.relative_to(ROOT / "libs").as_posix() for path in data if ".egg-info" not in str(path)}
    configs = {
        f"feedface/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.*") if path.suffix != ".pyc"
    }
    assert {*ours, *configs} <= set(names)
    machine = re.compile(rb"/(work|home|root|tmp|Users)/\w|" + re.escape(str(ROOT).encode()))
    assert {name: machine.search(text) for name, text in texts.items() if machine.search(text)} == {}


def test_the_library(run, installed):
    code = "from feedface.pipeline import FeedFacePipeline; import feedface; print(feedface.__file__)"
    status, out, errors = run("python", "-c", code)
    assert (status, errors) == (0, "") and out.startswith(str(installed.parent))


def test_the_commands(run):
    assert run("feedface", "--version") == (0, f"FeedFace {__version__}\n", "")
    assert run("feedface", "--help")[0] == 0
    for command in COMMANDS:
        status, out, errors = run("feedface", command, "--help")
        assert status == 0 and not errors and f"feedface {command} " in out
        assert not re.search(rf"\b{command.replace('-', '_')}\.py\b", out), out


def test_configs_are_found_without_a_checkout(run):
    for name in ("mini_face", "mini_face.py", "configs/mini_face.py"):
        status, out, errors = run("feedface", "train", f"--config={name}", "--help")
        assert status == 0 and not errors and "--config.model=models/mini" in out
    status, out, errors = run("feedface", "train", "--config=train_config", "--workdir=w", "--config.train.lr=fast")
    assert status == 2 and errors.startswith("error: ") and "lr" in errors


def test_no_weights_are_there_and_that_is_said(run, tmp_path):
    status, _, errors = run("feedface", "inference", "--prompt", "x", "--image", "x.png")
    assert status == 2 and errors.startswith("error: models/mini: no such model folder") and errors.count("\n") == 1

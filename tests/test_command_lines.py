"""What all command lines have: quick --help, --version, one line for a wrong argument."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from feedface import __version__
from feedface.checkpoints import __main__ as convert
from feedface.checkpoints import release
from feedface.commands import COMMANDS
from feedface.common import device
from feedface.common.config_flags import config_keys, explain
from feedface.common.places import find_config

ROOT = Path(__file__).parents[1]
SCRIPTS = ["inference.py", "train.py", "make_data.py", "evaluate.py", "distill.py"]
MODULES = [
    "feedface.checkpoints",
    "feedface.data",
    "feedface.synthetic.world",
    "feedface.synthetic.train",
    "research.reproduction",
]
HEAVY = ("torch", "transformers", "diffusers", "scipy", "cv2", "matplotlib")


def run_as_program(name, *arguments, heavy=HEAVY):
    """A script or module in a process of its own, which fails if it brings in one of `heavy`: seconds of importing."""
    run = f"runpy.run_module({name!r}, run_name='__main__', alter_sys=True)"
    if name.endswith(".py"):
        run = f"runpy.run_path({str(ROOT / name)!r}, run_name='__main__')"
    code = (
        f"import runpy, sys; sys.argv = [{name!r}, *{list(arguments)!r}]\n"
        f"try: {run}\n"
        f"finally: assert not {{*{heavy!r}}} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT / "libs")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES])
def test_version_and_help_wait_for_nothing(name):
    assert run_as_program(name, "--version") == (0, f"FeedFace {__version__}\n", "")
    code, out, errors = run_as_program(name, "--help")
    assert code == 0 and not errors and "--version" in out and name.removesuffix(".py") in out


@pytest.mark.parametrize("name", [*SCRIPTS, *MODULES[:-1]])
def test_a_wrong_argument_is_one_line(name):
    code, out, errors = run_as_program(name, "--nonsense=1", heavy=())
    assert code == 2 and not out
    assert errors.startswith("error: ") and errors.count("\n") == 1


@pytest.mark.parametrize("name", [*SCRIPTS, "app.py"])
def test_without_the_environment_is_one_line(name):
    bare = [sys.executable, "-I", "-S", str(ROOT / name), "--help"]  # -S: none of what was installed
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert "has no PyTorch: `make demo` sets one up" in done.stderr and done.stderr.count("\n") == 1


def test_feedface_says_what_there_is():
    for arguments in ([], ["--help"], ["-h"]):
        code, out, errors = run_as_program("feedface", *arguments)
        assert code == 0 and not errors and all(f"  {name} " in out for name in COMMANDS)
    assert run_as_program("feedface", "--version") == (0, f"FeedFace {__version__}\n", "")
    code, out, errors = run_as_program("feedface", "draw")
    known = "inference, app, train, make-data, evaluate, distill"
    assert (code, out) == (2, "")
    assert errors == f"error: 'draw': no command of feedface; use {known} (feedface --help)\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_the_scripts_by_another_name(command):
    script = f"{command.replace('-', '_')}.py"
    assert run_as_program("feedface", command, "--version") == (0, f"FeedFace {__version__}\n", "")
    code, out, errors = run_as_program("feedface", command, "--help")
    assert code == 0 and not errors and f"feedface {command} " in out and script not in out
    assert set(re.findall(r"--\w+", out)) == set(re.findall(r"--\w+", run_as_program(script, "--help")[1]))
    code, out, errors = run_as_program("feedface", command, "--nonsense=1", heavy=())
    assert code == 2 and not out and errors.startswith("error: ") and errors.count("\n") == 1


def test_configs_by_name_and_from_anywhere(tmp_path, monkeypatch):
    paper = str(ROOT / "configs" / "train_config.py")
    monkeypatch.chdir(tmp_path)
    assert [find_config(name) for name in ("train_config", "train_config.py", "configs/train_config.py")] == [paper] * 3
    assert find_config("other/train_config.py") == "other/train_config.py" and find_config("none.py") == "none.py"
    Path("train_config.py").touch()
    assert find_config("train_config.py") == "train_config.py"  # what lies here comes first


def test_what_is_written_out_for_quick_help_is_true():
    assert set(convert.DTYPES) == set(device.DTYPES)
    assert set(convert.FILES) == set(release.FILES.values())


def test_train_lists_config_keys():
    _, out, _ = run_as_program("train.py", "--help")
    for line in ("--config.train.batch_size=16", "--config.loss.kind=regularization", "--config.cache.dir="):
        assert f"  {line}\n" in out
    _, out, _ = run_as_program("train.py", "--help", "--config=configs/mini_face.py")
    assert "with the values of mini_face.py" in out
    code, _, errors = run_as_program("train.py", "--help", "--config=none.py")
    assert code == 2 and errors == "error: --config none.py: no such file\n"


def test_keys_of_a_config():
    assert list(config_keys({"a": {"b": 1, "c": {"d": "x"}}, "e": (1, 2)})) == [
        *("--config.a.b=1", "--config.a.c.d=x", "--config.e=(1, 2)"),
    ]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.train.batchsize=8", "--config.train.batchsize: the config has no batchsize (is batch_size meant?)"),
        ("--config.trian.lr=8", "--config.trian.lr: the config has no trian (is train meant?)"),
        ("--config.colour=8", "--config.colour: the config has no colour"),
        ("--config.train.lr.x=8", "--config.train.lr.x: the config has no x"),
        ("--config.train.lr=fast", "--config.train.lr=fast"),
    ],
)
@pytest.mark.parametrize("call", [["train.py", "--config=configs/mini_face.py", "--workdir=w"]])
def test_unknown_config_keys_are_said_in_a_sentence(call, flag, words):
    code, _, errors = run_as_program(*call, flag)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert words in errors and "'\\'" not in errors and "\\n" not in errors


def test_other_errors_keep_their_words():
    assert explain(ValueError("invalid\n literal"), ["--config.a=1"]) == "invalid literal"

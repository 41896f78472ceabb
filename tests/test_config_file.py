"""Config files run in one guarded place: whatever is wrong with one is a line that names it, and its line."""

import os

import pytest
from configs import mini_face, train_config
from ml_collections import ConfigDict

from feedface.common.errors import UserError, path_flag
from feedface.inference.config_file import load_config, read_config
from feedface.training.check import check_config

BROKEN = {
    "syntax": ("x = 1\ndef get_config(:\n", r"file\.py:2: SyntaxError"),
    "indent": ("def get_config():\nreturn 1\n", r"file\.py:2: IndentationError"),
    "nul": ("\x00", r"file\.py: SyntaxError"),
    "raising": ("def get_config():\n    a = 0\n    return 1 / a\n", r"file\.py:3: ZeroDivisionError: division by zero"),
    "inside a library": (
        "import json\ndef get_config():\n    return json.loads('{')\n",
        r"file\.py:3: JSONDecodeError",
    ),
    "import": ("import nowhere_at_all\n", r"file\.py:1: ModuleNotFoundError: No module named 'nowhere_at_all'"),
    "exit": ("def get_config():\n    raise SystemExit(7)\n", r"file\.py:2: SystemExit: 7"),
    "recursion": ("def get_config():\n    return get_config()\n", r"file\.py:2: RecursionError"),
    "argument": ("def get_config(x):\n    return x\n", r"file\.py: TypeError: get_config\(\) missing 1"),
    "none": ("def get_config():\n    pass\n", r"file\.py: get_config\(\) gives a NoneType; it must return an ml_col"),
    "without": ("x = 1\n", r"file\.py: has no get_config\(\)"),
    "no function": ("get_config = 7\n", r"file\.py: TypeError: 'int' object is not callable"),
}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("read", [load_config, read_config])
def test_broken_config_files(tmp_path, read, kind):
    text, words = BROKEN[kind]
    (tmp_path / "file.py").write_text(text)
    with pytest.raises(UserError, match=f"--config .*{words}"):
        read(tmp_path / "file.py")


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    for path in (tmp_path, tmp_path / "gone.py", tmp_path / "pipe.py", "/dev/zero", ""):
        with pytest.raises(UserError, match="no such file"):
            load_config(path)


def test_a_config_with_an_argument(tmp_path):
    (tmp_path / "file.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(preset):\n    return ConfigDict({'model': preset})\n"
    )
    assert load_config(tmp_path / "file.py", "large").model == "large"


def test_groups_that_are_none(tmp_path):
    (tmp_path / "file.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({'sample': 7})\n"
    )
    with pytest.raises(UserError, match="control and sample must be groups of settings"):
        read_config(tmp_path / "file.py")


# ---------------------------------------------------------------------------------------------------- training configs


@pytest.mark.parametrize("config", [train_config, mini_face])
def test_ours_are_valid_and_mirror_as_the_paper_does(config):
    check_config(config.get_config())
    assert config.get_config().data.flip_reference == 0.5


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("train.betas", (0.9,), "must have at least 2 items"),
        ("train.betas", (0.9, 1.0), "less than 1, not 1.0"),
        ("data.flip_reference", -0.1, "greater than or equal to 0, not -0.1"),
        ("data.workers", 10**6, "less than or equal to 1024"),
        ("seed", 10**30, "less than or equal to 9223372036854775807"),
        ("train.precision", "fp8", "must be 'auto', 'no', 'fp16' or 'bf16', not 'fp8'"),
        ("control.control_input", "both", "must be 'output' or 'input', not 'both'"),
        ("loss.min_snr", float("nan"), "greater than or equal to 0, not nan"),
    ],
)
def test_values_that_cannot_work(key, value, words):
    config = train_config.get_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(UserError, match=rf"config\.{key}.*{words}"):
        check_config(config)


def test_keys_that_are_missing_or_unknown():
    config = train_config.get_config()
    del config.data["flip_reference"]  # a config of before there was one
    with pytest.raises(UserError, match=r"config\.data\.flip_reference: is missing; configs/train_config\.py has all"):
        check_config(config)
    config = train_config.get_config()
    config.train.learning_rate = 1.0
    with pytest.raises(UserError, match=r"config\.train\.learning_rate: is unknown"):
        check_config(config)
    with pytest.raises(UserError, match=r"config\.model: is missing"):
        check_config(ConfigDict({"seed": 1}))
    values = {**train_config.get_config().to_dict(), "train": 7}
    with pytest.raises(UserError, match=r"config\.train: must be .*, not 7"):
        check_config(ConfigDict(values))
    values = train_config.get_config().to_dict()
    values["train"]["steps"] = "many"
    with pytest.raises(UserError, match=r"config\.train\.steps: must be a valid integer, not 'many'"):
        check_config(ConfigDict(values))


def test_what_drawing_reads_may_stand_in_a_training_config():
    config = train_config.get_config()
    config.sample = ConfigDict({"steps": 20})
    check_config(config)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_path_is_not_the_current_folder(text):
    with pytest.raises(UserError, match="--workdir: is empty"):
        path_flag("--workdir")(text)
    assert path_flag("--workdir")(".").name == ""

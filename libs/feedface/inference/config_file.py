"""Config files such as configs/train_config.py: run in one guarded place, and what drawing takes from one.

Training reads them whole.
"""

import os
import runpy
import traceback
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from feedface.common.errors import UserError
from feedface.common.places import make_configs_importable
from feedface.settings import Settings, parse_size


@dataclass(frozen=True)
class ConfigFile:
    """`model` and `control` as in `model_files.load_model`; `settings` from the section `sample`, if there is one."""

    model: str | None = None
    control: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)


def load_config(path: str | os.PathLike, argument: str | None = None) -> ConfigDict:
    """What `get_config()` (or `get_config(argument)`) of a .py file gives.

    `UserError`, with the line where there is one: missing, not Python, an error in its own code, no ConfigDict.
    """
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file")
    make_configs_importable()
    try:
        get_config = runpy.run_path(os.fspath(path)).get("get_config")
        config = get_config and get_config(*([argument] if argument else []))
    except (Exception, SystemExit) as error:  # whatever a config file's own code may raise
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"--config {_place(path, error)}: {type(error).__name__}: {reason}") from None
    if not isinstance(config, ConfigDict):
        what = f"get_config() gives a {type(config).__name__}" if get_config else "has no get_config()"
        raise UserError(f"--config {path}: {what}; it must return an ml_collections.ConfigDict")
    return config


def _place(path: str | os.PathLike, error: BaseException) -> str:
    """ "FILE:LINE" of an error in a config file, the file alone where no line of it is to blame."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    # The last line of its own, which may have called a library.
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == os.fspath(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def read_config(path: str | os.PathLike) -> ConfigFile:
    """What drawing takes from a config file.

    `UserError`: as `load_config`, or an unknown key in `sample`, whose keys are those of `Settings`.
    """
    config = load_config(path)
    try:
        model = config.get("model")
        control = dict(config.get("control", {}))
        sample = dict(config.get("sample", {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"--config {path}: control and sample must be groups of settings ({error})") from None
    known = [entry.name for entry in fields(Settings)]
    for key in sample:
        if key not in known:
            raise UserError(f"--config {path}: sample.{key} is unknown; known are {', '.join(known)}")
    if "size" in sample:
        sample["size"] = parse_size(str(sample["size"]))
    return ConfigFile(model, control, Settings(**sample))

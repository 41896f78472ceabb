"""What drawing takes from a config file such as configs/train_config.py, which training reads whole."""

import os
import runpy
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from feedface.errors import UserError
from feedface.settings import Settings, parse_size


@dataclass(frozen=True)
class ConfigFile:
    """`model` and `control` as in `model_files.load_model`; `settings` from the section `sample`, if there is one."""

    model: str | None = None
    control: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)


def read_config(path: str | os.PathLike) -> ConfigFile:
    """Read an ml_collections config file: a .py file with `get_config()`.

    `UserError`: missing, broken, or an unknown key in `sample`, whose keys are those of `Settings`.
    """
    if not Path(path).is_file():
        raise UserError(f"--config {path}: no such file")
    try:
        config = runpy.run_path(str(path))["get_config"]()
        model = config.get("model")
        control = dict(config.get("control", {}))
        sample = dict(config.get("sample", {}))
    except Exception as error:  # whatever a config file's own code may raise
        raise UserError(f"--config {path}: not a config file with get_config() ({error!r})") from None
    known = [entry.name for entry in fields(Settings)]
    for key in sample:
        if key not in known:
            raise UserError(f"--config {path}: sample.{key} is unknown; known are {', '.join(known)}")
    if "size" in sample:
        sample["size"] = parse_size(str(sample["size"]))
    return ConfigFile(model, control, Settings(**sample))

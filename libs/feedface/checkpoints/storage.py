"""Networks as files: JSON for what they are, safetensors for their weights. Nothing here reads a pickle.

What does not fit is a `UserError` that names file and key.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from feedface.common.errors import UserError
from feedface.common.json_files import load_json
from feedface.common.reading import check_file, foreign
from feedface.common.validation import arguments_of, read_json_as

WEIGHT_FILES = (".safetensors", ".ckpt", ".pt", ".pth")
MAPPED_BYTES = 256 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `UserError` with the line when it is not one."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def read_config(kind: type, folder: Path) -> dict[str, Any]:
    """What makes one of our own networks again, from `config.json`: as the class describes it, else its constructor.

    Without the kind that folders of backbones and methods name.
    """
    described = kind.config_type() if _of_seam(kind) else arguments_of(kind)
    what = f"does not describe a {kind.__name__}"
    known = lambda: list(described.json_schema()["properties"])  # noqa: E731
    config = dict(read_json_as(folder / "config.json", described, known, what))
    config.pop("kind", None)
    return config


def _of_seam(kind: type) -> bool:
    """Whether it is a `Backbone` or `Method`, whose configs change with versions: they make themselves of them."""
    return hasattr(kind, "config_type")


def _make(kind: type, config: dict[str, Any]) -> nn.Module:
    return kind.from_config(config) if _of_seam(kind) else kind(**config)


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_safetensors(
    file: Path, device: str | torch.device, dtype: torch.dtype | None, prefix: str = ""
) -> dict[str, Tensor]:
    """Tensors of a file, cast one at a time (dtype None: as stored); `UserError` when it is missing or broken.

    Only those whose names begin with `prefix`. On the device "meta" only shapes and dtypes are read.
    """
    from safetensors import safe_open

    check_file(file)
    begin = _identity(file)
    state: dict[str, Tensor] = {}
    keys: list[str] | None = None
    with foreign(f"{file}: not a safetensors file"):
        while keys is None or keys:
            # What was read of a mapped file counts as memory until it is closed, so large files are opened repeatedly.
            with safe_open(file, framework="pt") as tensors:
                if keys is None:
                    keys = [key for key in tensors.offset_keys() if key.startswith(prefix)]
                elif _identity(file) != begin:
                    raise UserError(f"{file}: was replaced while it was read; try again")
                mapped = 0
                while keys and mapped < MAPPED_BYTES:
                    key = keys.pop(0)
                    value = tensors.get_tensor(key)
                    mapped += value.nbytes
                    # the copy frees the map of the file: a bundle may be replaced while it is in use
                    state[key] = value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
                    del value
    return state


def stored_shapes(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file without their content: on the device "meta", as stored."""
    return read_safetensors(file, "meta", None)


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns


def check_weights(module: nn.Module, state: Mapping[str, Tensor], source: str | os.PathLike) -> None:
    """`UserError` unless `state` has the tensors of `module`: all keys, shapes, and no whole numbers for weights."""
    expected = module.state_dict()
    missing = [key for key in expected if key not in state]
    extra = [key for key in state if key not in expected]
    for problem, keys in (("missing", missing), ("unknown", extra)):
        if keys:
            raise UserError(
                f"{source}: {len(keys)} {problem} weights for {type(module).__name__}, the first is {keys[0]}"
            )
    for key, value in state.items():
        if value.shape != expected[key].shape:
            raise UserError(f"{source}: {key} has shape {[*value.shape]}, needed is {[*expected[key].shape]}")
        if value.is_floating_point() != expected[key].is_floating_point():
            raise UserError(f"{source}: {key} is of {value.dtype}, which it cannot be")


def fill(module: nn.Module, state: dict[str, Tensor], source: str | os.PathLike) -> nn.Module:
    """Give `module`, made without memory, the tensors of `state` themselves, which must fit (`check_weights`)."""
    check_weights(module, state, source)
    module.load_state_dict(state, assign=True)
    return module


def empty(kind: type, config: dict[str, Any], source: str | os.PathLike) -> nn.Module:
    """A network of that kind whose weights take no memory yet, for `fill`."""
    # Networks raise all kinds of errors for arguments that do not go together.
    with foreign(f"{source}: does not describe a {kind.__name__}"), _weights_on_meta():
        return _make(kind, config)


_here = local()


@contextmanager
def _weights_on_meta() -> Iterator[None]:
    """Parameters of modules that this thread makes take no memory; buffers are as ever.

    As accelerate's `init_empty_weights`, but that one changes `nn.Module` for all threads: what another one loads just
    then has no content, and of two that overlap the change stays.
    """
    _here.on_meta = getattr(_here, "on_meta", 0) + 1
    try:
        yield
    finally:
        _here.on_meta -= 1


def _to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
    if not getattr(_here, "on_meta", 0):
        return None
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


# Once and for all: torch goes through its hooks without a lock, so none may come or go later.
register_module_parameter_registration_hook(_to_meta)


def load_network(kind: type, folder: Path, device: str | torch.device, dtype: torch.dtype | None) -> nn.Module:
    """One of our own networks from `config.json` and `model.safetensors`; dtype None keeps the stored one."""
    config, source, weights = read_config(kind, folder), folder / "config.json", folder / "model.safetensors"
    # Before any memory is taken: `empty` makes each tensor for a moment.
    with foreign(f"{source}: does not describe a {kind.__name__}"), torch.device("meta"):
        described = _make(kind, config)
    check_weights(described, stored_shapes(weights), weights)
    return fill(empty(kind, config, source), read_safetensors(weights, device, dtype), weights)


def _cast(value: Tensor, dtype: torch.dtype | None) -> Tensor:
    return value.to(dtype or value.dtype) if value.is_floating_point() else value  # counters stay whole


def cast_state(state: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A state dict on the CPU, its floating-point tensors in `dtype` (None: as they are)."""
    return {key: _cast(value.detach().cpu(), dtype).contiguous() for key, value in state.items()}


def write_state(file: Path, state: dict[str, Tensor], dtype: torch.dtype | None) -> None:
    from safetensors.torch import save_file

    save_file(cast_state(state, dtype), file, metadata={"format": "pt"})


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars of milliseconds and no reports on files and keys, which we check ourselves."""
    from transformers.utils import logging

    diffusers = getLogger("diffusers")
    level = diffusers.level
    diffusers.setLevel(CRITICAL)
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers.setLevel(level)
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()

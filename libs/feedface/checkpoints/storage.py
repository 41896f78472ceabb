"""Networks as files: JSON for what they are, safetensors for their weights. Nothing here reads a pickle.

What does not fit is a `UserError` that names file and key.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from feedface.errors import UserError

MAPPED_BYTES = 256 << 20


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `UserError` with the line when it is not one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}, not an object")
    return content


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_safetensors(file: Path, device: str | torch.device, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors of a file, cast one at a time (dtype None: as stored); `UserError` when it is missing or broken.

    On the device "meta" only shapes and dtypes are read.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UserError(f"{file}: no such file")
    begin = _identity(file)
    state: dict[str, Tensor] = {}
    keys: list[str] | None = None
    try:
        while keys is None or keys:
            # What was read of a mapped file counts as memory until it is closed, so large files are opened repeatedly.
            with safe_open(file, framework="pt") as tensors:
                if keys is None:
                    keys = tensors.offset_keys()
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
    except SafetensorError as error:
        raise UserError(f"{file}: not a safetensors file: {error}") from None
    return state


def _identity(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns


def fill(module: nn.Module, state: dict[str, Tensor], source: str | os.PathLike) -> nn.Module:
    """Give `module`, made without memory, the tensors of `state` themselves; all keys and shapes must fit."""
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
    module.load_state_dict(state, assign=True)
    return module


def empty(kind: type, config: dict[str, Any], source: str | os.PathLike) -> nn.Module:
    """`kind(**config)` whose weights take no memory yet, for `fill`."""
    from accelerate import init_empty_weights

    try:
        with init_empty_weights():
            return kind(**config)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: does not describe a {kind.__name__}: {error}") from None


def load_network(kind: type, folder: Path, device: str | torch.device, dtype: torch.dtype | None) -> nn.Module:
    """One of our own networks from `config.json` and `model.safetensors`; dtype None keeps the stored one."""
    module = empty(kind, read_json(folder / "config.json"), folder / "config.json")
    weights = folder / "model.safetensors"
    return fill(module, read_safetensors(weights, device, dtype), weights)


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


def from_pretrained(kind: type, folder: Path, **options: Any) -> nn.Module:
    """transformers' and diffusers' own loading from a folder, made strict and free of pickles."""
    try:
        with quiet_transformers():
            module, info = kind.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )
    except Exception as error:  # these libraries raise nearly every kind for a broken folder
        raise UserError(f"{folder}: cannot be read as {kind.__name__}: {str(error) or type(error).__name__}") from error
    wrong = [key for part in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in info.get(part) or ()]
    if wrong:
        raise UserError(f"{folder}: {len(wrong)} weights missing, extra or misshapen for {kind.__name__}: {wrong[:3]}")
    return module

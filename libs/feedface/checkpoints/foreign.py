"""Weights as others save them: PyTorch's own files and safetensors. Only their tensors are read; no pickle runs.

What is broken, holds more than tensors, or claims more than its file can hold is a `UserError`.
"""

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedface.checkpoints.storage import read_safetensors
from feedface.common.errors import UserError
from feedface.common.reading import check_file, foreign


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """Tensors by name, as stored; those of PyTorch's files are mapped from disk: for reading only."""
    path = Path(path)
    if path.suffix == ".safetensors":
        check_file(path)
        return read_safetensors(path, "cpu", None)
    state = read_checkpoint(path)
    check_state(state, path)
    return state


def read_checkpoint(path: Path, stand_ins: Sequence[tuple[type, str]] = ()) -> Any:
    """What a file of PyTorch's holds, its tensors mapped from disk: for reading only.

    stand_ins: (empty class, the name for which it stands in the file), for what is not tensors and not wanted.
    """
    status = check_file(path)
    mapped = zipfile.is_zipfile(path)  # files of before torch 1.6 are no zip archives and cannot be mapped
    with foreign(f"{path}: broken or not a PyTorch checkpoint"):
        if mapped:
            _check_archive(path, status.st_size, status.st_mtime_ns)
        try:
            with torch.serialization.safe_globals(list(stand_ins)):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError:
            raise UserError(
                f"{path}: not loaded, since it is damaged or holds more than tensors (a pickle can run code)"
            ) from None


@lru_cache(maxsize=64)
def _check_archive(path: Path, size: int, mtime_ns: int) -> None:
    """`UserError` for an archive whose parts are damaged, compressed (they are mapped), or more than the file.

    Reads the file once, a second a gigabyte, and remembers that it was whole: little memory means reading it often.
    """
    with zipfile.ZipFile(path) as archive:
        parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise UserError(f"{path}: compressed; save it with torch.save")
        if sum(part.file_size for part in parts) > size:
            raise UserError(f"{path}: broken, its parts are said to be larger than the file")
        damaged = archive.testzip()
    if damaged is not None:
        raise UserError(f"{path}: damaged, {damaged} is not what was written; fetch the file anew")


def check_state(state: object, path: Path) -> None:
    """`UserError` unless these are plain tensors by name, each wholly in the file."""
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: is not a state dict, tensors by name, but a {type(state).__name__}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{path}: is not a state dict, tensors by name: {key!r:.60} is a {type(value).__name__}")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise UserError(f"{path}: {key} is not a plain tensor")
        # A view that repeats a few numbers can have any size, and takes its memory when it is used.
        if value.nbytes > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {key} of shape {[*value.shape]} is not in the file as a whole")

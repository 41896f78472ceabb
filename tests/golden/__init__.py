"""Outputs of the authors' model code at small sizes (float32, CPU), and names and shapes of the released weights.

Weights and inputs are not stored: both sides draw them from their names. `shapes.json.gz`: the four released files,
and the small models `uvit_A` and `adapter_A` = {"uvit", "adapter"}, in the authors' naming.
`stable_diffusion.json.gz`: names and shapes of Stable Diffusion 1.5, as one file in LDM's naming ("single_file") and of
its U-Net in diffusers' ("unet"), and which of the U-Net's is which ("to_diffusers").
`flashface_official.json.gz`: names and shapes of FlashFace's `flashface.ckpt`; `golden_check.py` compares its arrays.
"""

import gzip
import json
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent


def shapes() -> dict:
    return json.loads(gzip.decompress((FOLDER / "shapes.json.gz").read_bytes()))


def stable_diffusion() -> dict:
    return json.loads(gzip.decompress((FOLDER / "stable_diffusion.json.gz").read_bytes()))


def outputs(name: str) -> dict[str, Tensor | dict]:
    """Tensors of `{name}.npz`, and its `config` as a dict where it has one."""
    with np.load(FOLDER / f"{name}.npz") as arrays:
        return {
            key: json.loads(str(array)) if key == "config" else torch.from_numpy(array) for key, array in arrays.items()
        }


def drawn(name: str, shape: list[int] | tuple[int, ...], scale: float) -> Tensor:
    """Standard normal times `scale`, from a generator keyed by the name."""
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    return torch.from_numpy(np.float32(scale) * generator.standard_normal(shape, dtype=np.float32))


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """A state dict drawn from its names; the weights of norms are about 1."""
    state = {}
    for name, shape in shapes.items():
        is_norm = ("norm" in name or "layrnorm" in name) and name.endswith("weight")
        state[name] = drawn(name, shape, 0.05) + (1 if is_norm else 0)
    return state

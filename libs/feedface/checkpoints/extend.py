"""A model with AdaFace whose word tower has several times as many keys and values: its training goes on from there."""

import os

import torch

from feedface.checkpoints.bundle import load_bundle, save_component, write_derived_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder, follow
from feedface.methods.adaface import AdaFace
from feedface.text_tower import extended


def extend(source: str | os.PathLike, target: str | os.PathLike, times: int, noise: float = 0.1, seed: int = 0) -> None:
    """Write `target`, a model folder like `source` with its AdaFace extended; whole or not at all.

    `noise`: see `text_tower.extended`. `UserError` for a model without AdaFace, or a `target` that is there.
    """
    source = follow(source)
    if times < 2:
        raise UserError(f"--times {times}: must be 2 or more")
    if os.path.lexists(target):
        raise UserError(f"{target}: is there already; name a new folder")
    bundle = load_bundle(source, "cpu", torch.float32, ["method"])
    method = bundle.method
    if not isinstance(method, AdaFace):
        raise UserError(f"{source}: its method is {method.kind}; only adaface can be extended")
    tower = extended(method.word_tower, times, noise, torch.Generator().manual_seed(seed))
    made = AdaFace.from_config({**method.config, "copies": tower.copies})
    made.load_state_dict({**method.state_dict(), **{f"word_tower.{k}": v for k, v in tower.state_dict().items()}})
    with atomic_folder(target) as temporary:
        save_component("method", made, temporary / "adaface")
        write_derived_index(temporary, source, own={"method": "adaface"}, name=f"{bundle.name}, attention x{times}")

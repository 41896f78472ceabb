"""A model with another one's text encoder or VAE: how bases for AdaFace are prepared."""

import os

import torch

from feedface.checkpoints.bundle import load_bundle, load_parts, read_index, save_component, write_derived_index
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder, follow

REPLACEABLE = ("text_encoder", "vae")


def replace_part(
    part: str, model: str | os.PathLike, other: str | os.PathLike, target: str | os.PathLike, dtype: torch.dtype | None
) -> None:
    """Write `target`, a model folder with `part` of `other` and all else of `model`; whole or not at all.

    Args:
        part: one of `REPLACEABLE`; with a text encoder comes its tokenizer.
        model, other: folders of this project, or a Stable Diffusion: a diffusers folder or a single file. What is not
            replaced stays where it is, and must.
        dtype: to store the part in; None: as it is stored.

    `UserError` for what has no such part, parts that do not fit, and a `target` that is there.
    """
    model = follow(model)
    if os.path.lexists(target):
        raise UserError(f"{target}: is there already; name a new folder")
    module = getattr(load_bundle(follow(other), "cpu", dtype, [part]), part)
    base = read_index(model)
    own = {part: part} | ({"tokenizer": "tokenizer"} if part == "text_encoder" else {})
    with atomic_folder(target) as temporary:
        save_component(part, module, temporary / part, dtype)
        if part == "text_encoder":
            save_component("tokenizer", module.tokenizer, temporary / "tokenizer")
        write_derived_index(temporary, model, own=own, name=f"{base.name}, {part} of {follow(other).stem}")
        made = read_index(temporary)
        load_parts(made, ["backbone", part], "meta", None)  # refuses what does not fit

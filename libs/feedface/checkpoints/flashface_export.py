"""A model with FlashFace written as its authors' program takes it: see `checkpoints/flashface.py`."""

import os
from pathlib import Path

import torch

from feedface.checkpoints.bundle import load_bundle, read_index
from feedface.checkpoints.flashface import REFNET
from feedface.checkpoints.parts import PARTS
from feedface.checkpoints.storage import quiet_transformers, write_json
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder

# DDIM from 999 down to 19 in 50 steps.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 19,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
}
COMPONENTS = {
    "requires_safety_checker": False,
    "unet": ["diffusers", "UNet2DConditionModel"],
    REFNET: ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}


def export(model: str | os.PathLike, target: str | os.PathLike, dtype: torch.dtype | None = None) -> Path:
    """Write a model of ours, of a U-Net and FlashFace with a reference net of its own, as the authors' folder.

    dtype None keeps the stored one. `UserError`, and nothing is written, for a model that has no such form.
    """
    if read_index(model).kinds != {"backbone": "unet", "method": "flashface"}:
        raise UserError(f"{model}: only a U-Net with FlashFace and a reference net of its own has the authors' form")
    bundle = load_bundle(model, "cpu", None, ("backbone", "method", "vae", "text_encoder"))
    method, target = bundle.method, Path(target)
    if method.refnet is None or method.adapters:
        raise UserError(f"{model}: its FlashFace has adapters or no reference net of its own, unlike the authors'")
    if bundle.text_encoder.prefix is not None:
        raise UserError(f"{model}: its text encoder is not a CLIP alone, which the authors' form wants")
    if target.exists():
        raise UserError(f"{target}: is there already; name another folder")
    with atomic_folder(target) as folder, quiet_transformers():
        for name, net in (("unet", bundle.backbone), (REFNET, method.refnet)):
            net.unet.to(dtype or net.dtype).save_pretrained(folder / name)
        for name in ("vae", "text_encoder"):
            (folder / name).mkdir()
            PARTS[name].save(getattr(bundle, name), folder / name, dtype)
        bundle.text_encoder.tokenizer.save_pretrained(folder / "tokenizer")
        (folder / "scheduler").mkdir()
        write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
        write_json(folder / "model_index.json", {"_class_name": "StableDiffusionReferencePipeline", **COMPONENTS})
    return target

"""What Dense-Face's heads say of pictures: face classes, depth, landmarks, attributes, and a picture of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from PIL import Image

from feedface.backbones.base import Backbone
from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.saving import save_png
from feedface.diffusion.dense_losses import annotated
from feedface.diffusion.schedule import add_noise
from feedface.encoders import to_tensor
from feedface.methods.base import Identity
from feedface.methods.denseface import DenseFace

if TYPE_CHECKING:
    from feedface.pipeline import FeedFacePipeline

NOISE_T = 50  # the timestep at which the denoiser looks at a finished picture
# A colour for each class of `faces.parse`.
COLOURS = np.array(
    [
        (24, 24, 28), (232, 190, 172), (130, 84, 50), (176, 122, 76), (66, 135, 245), (110, 190, 255), (240, 150, 110),
        (214, 60, 90), (120, 20, 40), (240, 100, 130), (90, 70, 60),
    ],
    np.uint8,
)  # fmt: skip
MARK = (255, 40, 40)


def check_heads(bundle: Bundle) -> None:
    """`UserError` for a model without dense heads."""
    method = bundle.described("method")
    if not isinstance(method, DenseFace) or method.dense is None:
        raise UserError(f"--dense: {bundle.path} has no dense heads; a Dense-Face that was trained with them has")


@torch.inference_mode()
def annotations(
    bundle: Bundle, pictures: Sequence[np.ndarray], prompts: Sequence[str], identity: Identity, device: torch.device
) -> dict[str, np.ndarray]:
    """Of finished pictures uint8 [H,W,3], as they were drawn: see `dense_losses.annotated`.

    `identity`: who they show, B rows. `UserError` for a model without dense heads.
    """
    check_heads(bundle)
    method = bundle.method
    with bundle.lock:
        latents = bundle.vae.encode(torch.stack([to_tensor(p) for p in pictures]), sample=False).float().to(device)
        prompt = {k: v.to(device) for k, v in method.prompt(bundle.text_encoder, prompts, identity).items()}
        backbone: Backbone = bundle.backbone
        control = bundle.method.bind(backbone, {name: value.to(device) for name, value in identity.items()})
        control.sites |= method.dense_sites.keys()
        times = torch.full((len(pictures),), NOISE_T, device=device)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
        state = {name: latents.new_zeros(len(pictures), *shape) for name, shape in backbone.state_shapes().items()}
        state["img"] = add_noise(latents, noise, times)
        conditions = backbone.conditions(prompt, tuple(latents.shape[-2:]))
        predicted = backbone(state, times.float(), conditions, control)["img"].float()
        logits = method.dense_logits(state["img"], times.float(), predicted, control)
    return {name: value.float().cpu().numpy() for name, value in annotated(logits).items()}


def save_dense(path: Path, picture: np.ndarray, prompt: str, identity: Identity, pipe: "FeedFacePipeline") -> None:
    """Beside a picture uint8 [H,W,3] in the file `path`, what is said of it: NAME_dense.png, NAME_dense.json."""
    found = annotations(pipe.bundle, [picture], [prompt], identity, pipe.device)
    found = {name: value[0] for name, value in found.items()}
    save_png(drawn(picture, found), path.with_name(f"{path.stem}_dense.png"))
    with atomic_file(path.with_name(f"{path.stem}_dense.json")) as temporary:
        temporary.write_text(json.dumps(numbers(found, pipe.bundle.method.attributes)) + "\n")


def numbers(found: Mapping[str, np.ndarray], attributes: Sequence[str]) -> dict[str, object]:
    """What of one row of `annotations` is no map: "landmarks" [[x, y], …] in 0…1, "attributes" {name: 0…1}."""
    told: dict[str, object] = {}
    if "landmarks" in found:
        told["landmarks"] = found["landmarks"].astype(float).round(4).tolist()
    if "attributes" in found:
        told["attributes"] = dict(zip(attributes, found["attributes"].astype(float).round(4).tolist(), strict=True))
    return told


def drawn(picture: np.ndarray, found: dict[str, np.ndarray]) -> Image.Image:
    """A picture uint8 [H,W,3] beside what was found in it (one row of `annotations`), each as large."""
    height, width = picture.shape[:2]
    tiles = [picture]
    if "parsing" in found:
        tiles.append(COLOURS[found["parsing"].astype(np.uint8)])
    if "depth" in found:
        tiles.append(np.repeat((found["depth"][0][..., None] * 255).round().astype(np.uint8), 3, axis=-1))
    if "landmarks" in found:
        marked = picture.copy()
        for x, y in found["landmarks"]:
            cv2.circle(marked, (round(float(x) * width), round(float(y) * height)), max(1, width // 64), MARK, -1)
        tiles.append(marked)
    size = (width, height)
    return Image.fromarray(
        np.concatenate([np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.NEAREST)) for tile in tiles], 1)
    )

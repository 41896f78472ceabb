"""What methods take of face crops besides their pixels: embeddings, latents."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from feedface.common.errors import UserError
from feedface.encoders import LatentCodec, ReferenceSpec, normalised, resize_and_crop, to_uint8
from feedface.faces.detect import make_detector
from feedface.faces.identity import PackRecogniser


@lru_cache(maxsize=4)
def pack_recogniser(pack: str, faces_root: Path | None) -> PackRecogniser:
    """The recogniser of an insightface pack: of the model's own root `faces_root`, or the user's."""
    return PackRecogniser(make_detector(pack, faces_root))


def references_of(
    spec: ReferenceSpec, pixels: Tensor, vae: Callable[[], LatentCodec] | None, faces_root: Path | None
) -> Tensor | list[Tensor]:
    """What `Method.features` takes, out of the pixels [B,3,s,s] that `encoders.preprocess_reference` gave.

    A list where several methods take theirs, in their order.

    Args:
        vae: asked for where the method wants latents: of the posterior's mode, so that a reference is always the same,
            or the posterior itself.
        faces_root: the model's own insightface root, where it has one, for the recogniser of embeddings.
    """
    if spec.kind == "several":
        sized = ((part, resize_and_crop(pixels.float(), part.crop_px).to(pixels)) for part in spec.parts)
        return [references_of(part, normalised(part, own), vae, faces_root) for part, own in sized]
    if spec.kind == "latent":
        return vae().encode(pixels, sample=False)
    if spec.kind == "posterior":
        return torch.stack(vae().moments(pixels), dim=1)
    if spec.kind != "embedding":
        return pixels
    recogniser = pack_recogniser(spec.recogniser, faces_root)
    found = np.stack([recogniser.embed_crop(crop) for crop in to_uint8(pixels)])
    if found.shape[1] != spec.size:
        raise UserError(
            f"the recogniser of {spec.recogniser!r} gives {found.shape[1]} numbers a face, the method takes {spec.size}"
        )
    return torch.from_numpy(found).to(pixels)

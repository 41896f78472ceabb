"""Draw pictures of many people: people are mixed in a batch, several times faster than one person at a time.

Letters: I people, R references a person, N pictures.
"""

from collections.abc import Sequence

import numpy as np
import torch

from feedface.backbones.base import Prompt
from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.common.progress import progress
from feedface.diffusion.state import join, take
from feedface.encoders import preprocess_reference, to_uint8
from feedface.faces.embeddings import references_of
from feedface.inference.batching import draw_batch
from feedface.methods.base import Identity
from feedface.settings import Settings


@torch.inference_mode()
def encode_faces(
    bundle: Bundle,
    crops: Sequence[Sequence[np.ndarray]],
    device: torch.device,
    dtype: torch.dtype,
    pool: str = "concat",
) -> Identity:
    """Face crops [I][R], uint8 RGB [S, S, 3] each -> who is on them, I rows on the CPU; pool: see `Method.identity`."""
    method, rows = bundle.method, []
    if method is None:
        raise UserError(f"{bundle.path}: this model has no method to show a face with")
    for person in crops:
        pixels = torch.stack([preprocess_reference(method.reference, crop) for crop in person])
        pixels = references_of(method.reference, pixels.to(device, dtype), lambda: bundle.vae, bundle.faces_root)
        features = method.features(pixels)
        identity = method.identity({name: value[None] for name, value in features.items()}, pool)
        rows.append({name: value.cpu() for name, value in identity.items()})
    return join(*rows)


def draw(
    bundle: Bundle,
    prompts: Sequence[str],
    faces: Identity | None,
    settings: Settings,
    seed: int,
    batch_size: int,
    device: torch.device,
    label: str,
) -> np.ndarray:
    """One picture per prompt, row i with noise from seed + i: uint8 [N, H, W, 3].

    faces: who is shown, N rows, or None to leave the method out. settings: complete (`Settings.for_model`).
    """
    pictures = []
    texts: dict[str, Prompt] = {}
    with progress(total=len(prompts), desc=label, unit="picture") as bar:
        for start in range(0, len(prompts), batch_size):
            rows = range(start, min(start + batch_size, len(prompts)))
            some_faces = None if faces is None else take(faces, slice(rows.start, rows.stop))
            seeds = [seed + row for row in rows]
            some = [prompts[row] for row in rows]
            pictures.append(draw_batch(bundle, some, seeds, some_faces, settings, device, texts=texts))
            bar.update(len(rows))
    return np.concatenate(pictures)


@torch.inference_mode()
def through_vae(bundle: Bundle, pictures: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Encode and decode pictures uint8 [N, H, W, 3]: what no model behind this VAE can surpass."""
    parts = []
    for start in range(0, len(pictures), batch_size):
        rows = torch.from_numpy(np.ascontiguousarray(pictures[start : start + batch_size])).to(device)
        pixels = rows.permute(0, 3, 1, 2).float().div(127.5).sub(1)
        parts.append(to_uint8(bundle.vae.decode(bundle.vae.encode(pixels, sample=False))))
    return np.concatenate(parts)

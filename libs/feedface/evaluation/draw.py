"""Draw pictures of many people: people are mixed in a batch, several times faster than one person at a time.

Letters: I people, R references a person, N pictures, B pictures in a batch, n face tokens, D their width.
"""

from collections.abc import Sequence

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.common.progress import progress
from feedface.encoders import preprocess_face, to_uint8
from feedface.inference.batching import draw_batch
from feedface.settings import Settings
from feedface.synthetic.train.common import to_pixels


@torch.inference_mode()
def encode_faces(
    bundle: Bundle, crops: np.ndarray, device: torch.device, dtype: torch.dtype, pool: str = "concat"
) -> torch.Tensor:
    """Face crops [I, R], uint8 RGB [S, S, 3] each -> tokens [I, n, D] on the CPU; pool: see `FaceControlNet.join`."""
    net = bundle.method
    rows = []
    for person in crops:
        pixels = torch.stack([preprocess_face(crop, net.face_size) for crop in person])
        rows.append(net.join(net.encode(pixels.to(device, dtype))[None], pool).cpu())
    return torch.cat(rows)


def draw(
    bundle: Bundle,
    prompts: Sequence[str],
    faces: torch.Tensor | None,
    settings: Settings,
    seed: int,
    batch_size: int,
    device: torch.device,
    label: str,
) -> np.ndarray:
    """One picture per prompt, row i with noise from seed + i: uint8 [N, H, W, 3].

    faces: tokens [N, n, D], or None to leave the face-controlnet out. settings: complete (`Settings.for_model`).
    """
    pictures = []
    texts: dict[str, torch.Tensor] = {}
    with progress(total=len(prompts), desc=label, unit="picture") as bar:
        for start in range(0, len(prompts), batch_size):
            rows = range(start, min(start + batch_size, len(prompts)))
            tokens = None if faces is None else faces[rows.start : rows.stop]
            seeds = [seed + row for row in rows]
            some = [prompts[row] for row in rows]
            pictures.append(draw_batch(bundle, some, seeds, tokens, settings, device, texts=texts))
            bar.update(len(rows))
    return np.concatenate(pictures)


@torch.inference_mode()
def through_vae(bundle: Bundle, pictures: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Encode and decode pictures uint8 [N, H, W, 3]: what no model behind this VAE can surpass."""
    parts = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    return np.concatenate(
        [to_uint8(bundle.vae.decode(bundle.vae.encode(to_pixels(part, device), sample=False))) for part in parts]
    )

"""Whose face a drawn picture shows, as a loss: it is found, aligned, and compared with the real picture's.

PuLID's identity loss (Guo et al. 2024, eq. 3): a student of few steps draws a whole picture while it is trained, so a
recogniser can look at it. What is wanted is the face of the caption's own picture, not the mean of the person's: with
the mean, faces lose the expression that the caption asks for.

Shapes: B pictures, D numbers of the recogniser's embedding.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.encoders import to_uint8
from feedface.faces.detect import BUNDLE_PACK, make_detector
from feedface.faces.recogniser_net import FOLDER, RecogniserNet
from feedface.faces.types import Face


class Likeness:
    """A model's own detector and recogniser, and its loaded VAE. `UserError` where it has none of the first two.

    Attributes:
        digest: changes with the recogniser.
    """

    def __init__(self, bundle: Bundle, device: torch.device):
        folder = bundle.extra(FOLDER)
        missing = [name for name, found in (("faces", bundle.faces_root), (FOLDER, folder)) if found is None]
        if missing:
            raise UserError(f"{bundle.path}: has no {' and no '.join(missing)}; use --config.refine.likeness=0")
        self._vae = bundle.vae
        self._recogniser = RecogniserNet.from_pretrained(folder, device).requires_grad_(False)
        self._detector = make_detector(BUNDLE_PACK, bundle.faces_root, threads=torch.get_num_threads())
        if not self._detector.has_recogniser:
            raise UserError(f"{bundle.faces_root}: its pack has no recogniser; use --config.refine.likeness=0")
        self.digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()[:16]

    def of_pictures(self, pictures: Sequence[np.ndarray]) -> Tensor:
        """Embeddings [B,D] of the largest faces in pictures uint8 [H,W,3] RGB; zeros where none is seen."""
        found = torch.zeros(len(pictures), self._recogniser.head.embed.out_features)
        for row, picture in enumerate(pictures):
            face = self._face(picture)
            if face is not None:
                found[row] = torch.from_numpy(face.embedding)
        return found

    def loss(self, latents: Tensor, wanted: Tensor) -> Tensor:
        """1 - cosine of the faces in pictures, as latents [B,C,h,w], with the embeddings `wanted` [B,D]; the mean.

        A row counts 0 where no face is seen in the picture, or was in the one that is wanted.
        """
        pixels = self._vae.decode(latents)
        faces = [self._face(picture) for picture in to_uint8(pixels.detach())]
        rows = [row for row, face in enumerate(faces) if face is not None and wanted[row].any()]
        if not rows:
            return pixels.sum() * 0
        landmarks = np.stack([faces[row].landmarks for row in rows])
        cosines = (self._recogniser.embed(pixels[rows], landmarks) * wanted[rows]).sum(1)
        return (1 - cosines).sum() / len(latents)

    def _face(self, picture: np.ndarray) -> Face | None:
        faces = [face for face in self._detector.detect(picture) if face.embedding is not None]
        return faces[0] if faces else None

"""A face as words for any Stable Diffusion, also for programs that know nothing of this one.

    encoder = AdaFaceEncoder.from_pretrained("models/adaface")
    words = encoder.encode(["a.jpg", "b.jpg"])                                # [16, 768]
    encoder.install(pipe, words)                                               # any pipeline of diffusers
    pipe("a photo of <person> on a beach")
    encoder.save(words, "person.safetensors")                                  # for pipe.load_textual_inversion

Shapes: N vectors, D their width.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from feedface.checkpoints.bundle import load_bundle
from feedface.checkpoints.index import INDEX
from feedface.checkpoints.parts import load_part
from feedface.common.device import pick_device
from feedface.common.errors import UserError
from feedface.common.files import atomic_file, follow
from feedface.common.reading import foreign
from feedface.encoders import preprocess_reference
from feedface.faces.detect import make_detector
from feedface.faces.embeddings import references_of
from feedface.faces.references import Picture, as_pictures, find_faces
from feedface.faces.types import FaceDetector
from feedface.methods.adaface import AdaFace

NAME = "<person>"


class AdaFaceEncoder:
    """Photos in, words out. `faces_root`: an insightface root with the pack of the method's recogniser."""

    def __init__(self, method: AdaFace, faces_root: Path | None = None):
        self.method, self.faces_root = method.eval().requires_grad_(False), faces_root

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> "AdaFaceEncoder":
        """`path`: a model folder with AdaFace, such as a training checkpoint, or the folder of the method alone."""
        path, device = follow(path), pick_device(device)
        faces_root = None
        if (path / INDEX).is_file():
            bundle = load_bundle(path, device, dtype, ["method"])
            method, faces_root = bundle.method, bundle.faces_root
        else:
            method = load_part("method", {"method": path}, device, dtype)
        if not isinstance(method, AdaFace):
            raise UserError(f"{path}: its method is {method.kind}; words are made by adaface")
        return cls(method, faces_root)

    @torch.inference_mode()
    def encode(
        self,
        photos: Picture | Sequence[Picture],
        detector: FaceDetector | None = None,
        face: str | int | None = None,
        strength: float = 1.0,
    ) -> Tensor:
        """Photos of one person -> [N,D].

        Args:
            photos: paths, PIL images or uint8 RGB arrays [H,W,3]; those without a face are passed over.
            detector: finds the faces; None: that of the method's recogniser.
            face: which one of several in a photo, see `find_faces`.
            strength: 1 is the person, 0 nobody, as `AdaFace.prompt` has it.

        `UserError` where no photo shows a face, or one cannot be read.
        """
        method = self.method
        detector = detector or make_detector(method.reference.recogniser, self.faces_root)
        references, _ = find_faces(as_pictures(photos), detector, face)
        pixels = torch.stack([preprocess_reference(method.reference, reference.crop) for reference in references])
        embeddings = references_of(method.reference, pixels, None, self.faces_root).to(method.word_template)
        identity = method.identity({name: value[None] for name, value in method.features(embeddings).items()})
        return torch.lerp(identity["pads"], identity["words"], strength)[0].clone()

    def install(self, pipe: Any, words: Tensor, name: str = NAME) -> None:
        """Make `name` a word of a diffusers pipeline's prompts: the vectors are new rows of its token table.

        A person of that name takes the place of one who was there. `UserError` for a pipeline that takes no new words.
        """
        _check_name(name)
        if not hasattr(pipe, "load_textual_inversion"):
            raise UserError(f"{type(pipe).__name__}: takes no new words (no load_textual_inversion)")
        table = pipe.text_encoder.get_input_embeddings()
        if words.shape[-1] != table.embedding_dim:
            raise UserError(
                f"a person's words have {words.shape[-1]} numbers, this pipeline's tokens {table.embedding_dim}"
            )
        vocabulary = pipe.tokenizer.get_vocab()
        if name in vocabulary:  # diffusers cannot unload a word of several vectors
            tokens = [name, *(f"{name}_{index}" for index in range(1, len(words)))]
            if not vocabulary.keys() >= set(tokens) or f"{name}_{len(words)}" in vocabulary:
                raise UserError(f"{name}: is already a word here, of another number of vectors; name another one")
            with torch.no_grad():
                table.weight[[vocabulary[token] for token in tokens]] = words.to(table.weight)
            return
        with foreign(f"{type(pipe).__name__}: does not take the word {name}"):
            pipe.load_textual_inversion(words.clone().cpu(), token=name)

    @staticmethod
    def save(words: Tensor, file: str | os.PathLike, name: str = NAME) -> None:
        """Write a textual inversion, safetensors, whole or not at all: `pipe.load_textual_inversion(file)` reads it."""
        from safetensors.torch import save_file

        _check_name(name)
        with atomic_file(file) as temporary:
            save_file({name: words.detach().cpu().contiguous()}, temporary, metadata={"format": "pt"})


def _check_name(name: str) -> None:
    """`UserError` for a name that might be other words, or parts of them."""
    if not re.fullmatch(r"<[^<>\s]+>", name):
        raise UserError(f"name {name!r}: must be a word in angle brackets, such as {NAME}")

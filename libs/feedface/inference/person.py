"""A person as a small file: what a model made of their faces, so that no photo is needed again.

Safetensors: the identity's tensors, float32, and the recogniser's embeddings of the faces. It belongs to the weights
that made it: another model or method refuses it. It says who somebody is: treat it as a photo.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.reading import check_file
from feedface.common.saving import naming

if TYPE_CHECKING:
    from feedface.faces.references import Reference
    from feedface.pipeline import FeedFacePipeline

FORMAT = "feedface-person-1"
EMBEDDINGS = "embeddings"


@dataclass(frozen=True)
class Person:
    """Somebody to draw, without their pictures.

    Attributes:
        identity: of `FeedFacePipeline.identity`, one row, on the CPU.
        faces: digests of the face crops that it was made of.
        embeddings: [F, D], the recogniser's, or None.
        recogniser: whose embeddings they are, as the detector is called.
    """

    identity: dict[str, Tensor]
    faces: tuple[str, ...]
    embeddings: np.ndarray | None = None
    recogniser: str = ""


def save_person(path: Path, pipe: FeedFacePipeline, references: Sequence[Reference], recogniser: str = "") -> None:
    """Write the person whose faces these are, as this model sees them. `OutputError` if it cannot be written."""
    identity = pipe.identity(references)
    tensors = {f"identity.{name}": value.float().cpu().contiguous() for name, value in identity.items()}
    embeddings = [reference.embedding for reference in references if reference.embedding is not None]
    if embeddings:
        tensors[EMBEDDINGS] = torch.from_numpy(np.stack(embeddings).astype(np.float32))
    said = {
        "format": FORMAT,
        "method": pipe.bundle.kinds["method"],
        "model": pipe.bundle.name,
        "digest": pipe.digest,
        "faces": json.dumps([reference.digest for reference in references]),
        "recogniser": recogniser if embeddings else "",
    }
    with naming(path), atomic_file(path) as temporary:
        save_file(tensors, temporary, said)


def load_person(path: Path, pipe: FeedFacePipeline) -> Person:
    """Read what `save_person` wrote. `UserError` for other files, and those of another model or method."""
    check_file(path, "person")
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no dict
            faces = tuple(map(str, json.loads(said.get("faces", "[]"))))
    except (SafetensorError, ValueError, TypeError) as error:
        raise UserError(f"{path}: not a person's file ({error}); --save_person makes one") from None
    if said.get("format") != FORMAT:
        raise UserError(f"{path}: not a person's file; --save_person makes one")
    own = pipe.bundle.kinds.get("method")
    if said.get("method") != own or said.get("digest") != pipe.digest:
        raise UserError(
            f"{path}: made by the method {said.get('method')} of the model {said.get('model')!r}, and this is "
            f"{own} of {pipe.bundle.name!r} with other weights; make it anew from photos with --save_person"
        )
    identity = {name.partition(".")[2]: value for name, value in tensors.items() if name != EMBEDDINGS}
    if not identity or not all(len(value) == 1 and value.isfinite().all() for value in identity.values()):
        raise UserError(f"{path}: damaged (no numbers of one person); make it anew with --save_person")
    embeddings = tensors.get(EMBEDDINGS)
    return Person(identity, faces, None if embeddings is None else embeddings.numpy(), said.get("recogniser", ""))

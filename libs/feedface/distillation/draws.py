"""Who and what the trajectories are of: captions and people of the training records, mixed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.data.records import Box, Record
from feedface.encoders import preprocess_reference
from feedface.faces.crop import crop_square
from feedface.faces.embeddings import references_of
from feedface.methods.base import Identity


class Draws:
    """Who and what is drawn: `faces[i % len(faces)]` pictures of the person in shard i, 0 for nobody.

    The faces are of other pictures of the person than the caption's, or of that one where the person has no other.
    Broken pictures are passed over, up to `max_broken` of them.
    """

    def __init__(self, records: Sequence[Record], faces: Sequence[int], max_broken: int):
        self.faces, self.max_broken, self.broken = list(faces), max_broken, set()
        self.able = {count: [r for r in records if len(_pictures(r)) >= count] for count in set(faces)}
        for count, able in self.able.items():
            if not able:
                raise UserError(f"trajectories.faces: no person of the records has {count} pictures to show")

    def shard(self, number: int, size: int, seed: int) -> list[tuple[Record, list[np.ndarray]]]:
        """`size` records and square face crops (uint8 RGB) of each, the same for the same `number` and `seed`."""
        count = self.faces[number % len(self.faces)]
        able, rng = self.able[count], np.random.default_rng((seed, number))
        drawn: list[tuple[Record, list[np.ndarray]]] = []
        while len(drawn) < size:
            record = able[rng.integers(len(able))]
            pictures = _pictures(record)
            chosen = rng.choice(len(pictures), count, replace=False)
            try:
                crops = [crop_square(read_image(pictures[i][0]), pictures[i][1]) for i in chosen]
            except UserError as error:
                self.broken.add(record.path)
                if len(self.broken) > self.max_broken:
                    raise UserError(f"more than data.max_broken={self.max_broken} broken pictures: {error}") from None
                continue
            drawn.append((record, crops))
        return drawn


def _pictures(record: Record) -> list[tuple[Path, Box]]:
    others = [(ref.path, ref.square_bbox) for ref in record.ref]
    return others or [(record.path, record.square_bbox)]


@torch.no_grad()
def identities(bundle: Bundle, people: Sequence[Sequence[np.ndarray]], device: torch.device) -> Identity | None:
    """Of B people with equally many crops each, a row a person; None if nobody is shown."""
    if not people[0]:
        return None
    method = bundle.method
    pixels = torch.stack([preprocess_reference(method.reference, crop) for crops in people for crop in crops])
    pixels = pixels.to(device, bundle.backbone.dtype)
    features = method.features(references_of(method.reference, pixels, lambda: bundle.vae, bundle.faces_root))
    return method.identity({name: value.unflatten(0, (len(people), -1)) for name, value in features.items()})

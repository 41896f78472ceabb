"""The evaluation's people drawn and judged, a number a person.

Letters: I people, J people whom the judge knows (the I first among them), S pictures a person, R references.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.diffusion.state import take
from feedface.evaluation.draw import draw, encode_faces
from feedface.evaluation.metrics import attribute_hits, mean_embedding, similarity_to_own
from feedface.evaluation.mini import Judge
from feedface.settings import Settings

Values = dict[str, np.ndarray]  # figure -> [I]


def draw_people(
    bundle: Bundle,
    prompts: Sequence[Sequence[str]],
    crops: np.ndarray | None,
    settings: Settings,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    label: str,
    dtype: torch.dtype = torch.float32,
    pool: str = "concat",
) -> np.ndarray:
    """Pictures uint8 [I,S,H,W,3] of the prompts [I][S], numbered row by row: picture n has the noise of seed + n.

    crops: face crops [I,R], see `encode_faces`; None leaves the face out. settings: complete.
    """
    each = len(prompts[0])
    faces = None
    if crops is not None:
        faces = take(encode_faces(bundle, crops, device, dtype, pool), np.repeat(np.arange(len(crops)), each))
    flat = [prompt for person in prompts for prompt in person]
    return by_person(draw(bundle, flat, faces, settings, seed, batch_size, device, label), len(prompts))


def judged(judge: Judge, pictures: np.ndarray, shown: int | None = None) -> Values:
    """What the judge says of pictures uint8 [I,S,H,W,3] in the order of the prompts; nearest identity is among all J.

    `shown`: how many references they were made with (None: all): similarity is to these.
    """
    embedding, seen = judge.look(pictures)
    asked = {name: values[: len(pictures)] for name, values in judge.asked.items()}
    return identity_values(judge, embedding, shown) | attribute_counts(seen, asked)


def identity_values(judge: Judge, embedding: np.ndarray, shown: int | None = None) -> Values:
    """Of embeddings [I,S,E]."""
    people = len(embedding)
    nearest = (embedding @ mean_embedding(judge.gallery).T).argmax(axis=-1)
    return {
        "nearest_identity": (nearest == np.arange(people)[:, None]).mean(axis=1),
        "similarity_to_another_picture": similarity_to_own(embedding, judge.gallery[:people]),
        "similarity_to_reference": similarity_to_own(embedding, judge.references[:people, :shown]),
    }


def attribute_counts(seen: Mapping[str, np.ndarray], asked: Mapping[str, np.ndarray]) -> Values:
    """How many of the attributes that the prompts name there are, and how many the pictures show."""
    shown, total = attribute_hits(dict(seen), dict(asked))["all"]
    return {"attributes_shown": shown, "attributes_asked": total}


def flat(pictures: np.ndarray) -> np.ndarray:
    """[I,S,H,W,3] -> [I * S,H,W,3]"""
    return pictures.reshape(-1, *pictures.shape[2:])


def by_person(pictures: np.ndarray, people: int) -> np.ndarray:
    """[I * S,H,W,3] -> [I,S,H,W,3]"""
    return pictures.reshape(people, -1, *pictures.shape[1:])

"""The evaluation's people drawn and judged, a number a person.

Letters: I people, J people whom the judge knows (the I first among them), S pictures a person, R references.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from feedface.backbones.base import Prompt
from feedface.checkpoints.bundle import Bundle
from feedface.common.progress import progress
from feedface.diffusion.state import join, take
from feedface.encoders import preprocess_reference
from feedface.evaluation.metrics import attribute_hits, mean_embedding, similarity_to_own
from feedface.evaluation.mini import Judge
from feedface.inference.batching import draw_batch
from feedface.methods.base import Identity
from feedface.settings import Settings

Values = dict[str, np.ndarray]  # figure -> [I]


@torch.inference_mode()
def identities(
    bundle: Bundle, crops: np.ndarray, device: torch.device, dtype: torch.dtype, pool: str = "concat"
) -> Identity:
    """Who is on the face crops [I,R], squares uint8 RGB each: I rows, on the CPU."""
    method, rows = bundle.method, []
    for person in crops:
        pixels = torch.stack([preprocess_reference(method.reference, crop) for crop in person])
        features = method.features(pixels.to(device, dtype))
        identity = method.identity({name: value[None] for name, value in features.items()}, pool)
        rows.append({name: value.cpu() for name, value in identity.items()})
    return join(*rows)


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

    crops: face crops [I,R], see `identities`; None leaves the face out. settings: complete.
    """
    wanted = [prompt for person in prompts for prompt in person]
    people = np.repeat(np.arange(len(prompts)), len(prompts[0]))
    shown = None if crops is None else identities(bundle, crops, device, dtype, pool)
    texts: dict[str, Prompt] = {}
    parts = []
    with progress(total=len(wanted), desc=label, unit="picture") as bar:
        for start in range(0, len(wanted), batch_size):
            rows = range(len(wanted))[start : start + batch_size]
            some = wanted[rows.start : rows.stop]
            identity = None if shown is None else take(shown, people[rows])
            seeds = [seed + row for row in rows]
            parts.append(draw_batch(bundle, some, seeds, identity, settings, device, texts=texts))
            bar.update(len(rows))
    return by_person(np.concatenate(parts), len(prompts))


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

"""The mini world in an evaluation: its judge as one object, and what could be reached at best.

`python -m feedface.evaluation.mini …` is `python evaluate.py --protocol mini …`. Letters: I people, S samples a
person, R references, G gallery pictures, E embedding width.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.evaluation.cases import Cases
from feedface.evaluation.draw import draw, encode_faces, through_vae
from feedface.evaluation.inspector import Findings, Inspector
from feedface.evaluation.judging import load_inspector as load_judge
from feedface.evaluation.metrics import (
    Figure,
    attribute_hits,
    bootstrap,
    mean_embedding,
    nearest_identity,
    ratio_of_means,
    similarity_to_own,
    similarity_to_strangers,
)
from feedface.evaluation.pictures import Kept, Request
from feedface.evaluation.protocols import Case
from feedface.inference.outputs import PictureInfo

__all__ = ["Judge", "RealArtist", "draw", "encode_faces", "load_judge", "through_vae"]


class Judge:
    """The inspector with the people of the cases in front of it: scores sets of pictures [I, S, H, W, 3]."""

    def __init__(self, inspector: Inspector, cases: Cases):
        self.inspector, self.asked = inspector, cases.asked
        self.gallery = self.look(cases.gallery)[0]  # [I, G, E]
        self.references = self.look(cases.references)[0]  # [I, R, E]

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        people, each = pictures.shape[:2]
        found: Findings = self.inspector.inspect(pictures.reshape(-1, *pictures.shape[2:]))
        classes = {name: values.reshape(people, each) for name, values in found.attributes.items()}
        return found.embedding.reshape(people, each, -1), classes

    def score(self, pictures: np.ndarray, shown: int) -> tuple[dict[str, Figure], np.ndarray]:
        """Figures for pictures made with the first `shown` references, and each person's attributes shown [I].

        Similarity to the reference is that to the references shown, or to the first where none was.
        """
        embedding, seen = self.look(pictures)
        figures = {
            "nearest_identity": bootstrap(nearest_identity(embedding, mean_embedding(self.gallery))),
            "similarity_to_another_picture": bootstrap(similarity_to_own(embedding, self.gallery)),
            "similarity_to_reference": bootstrap(similarity_to_own(embedding, self.references[:, : max(shown, 1)])),
            "similarity_to_strangers": bootstrap(similarity_to_strangers(embedding, self.gallery)),
        }
        hits = attribute_hits(seen, self.asked)
        for name, (shown_count, asked_count) in hits.items():
            if asked_count.any():
                figures[f"attribute_{name}"] = bootstrap(shown_count, asked_count, statistic=ratio_of_means)
        return figures, hits["all"][0]


class RealArtist:
    """An artist that shows what the prompts describe, as the renderer draws it: the best that can be reached.

    Through the VAE of `bundle`, where one is given: the best that a model behind it can reach.
    """

    base, one_sample = None, True

    def __init__(self, cases: Sequence[Case], bundle: Bundle | None = None, digest: str = "", device: str = "cpu"):
        self.cases, self.bundle, self.digest, self.device = cases, bundle, digest, torch.device(device)
        self.name = "real other picture" + (" through the VAE" if bundle else "")

    def describe(self) -> dict:
        name = "the renderer" if self.bundle is None else f"the renderer, through the VAE of {self.bundle.name}"
        return {"model": {"path": None, "name": name, "digest": None}, "settings": {}}

    def crops(self, case: Case) -> tuple[np.ndarray, ...]:
        return ()

    def info(self, case: Case, prompt: int, sample: int) -> PictureInfo:
        picture = hashlib.sha256(case.real[prompt].tobytes()).hexdigest()[:16]
        return PictureInfo(case.prompts[prompt], case.seeds[prompt], self.name, self.digest, {}, (picture,))

    def draw(self, requests: Sequence[Request]) -> Iterator[tuple[Request, Kept]]:
        for request in requests:
            picture = self.cases[request.case].real[request.prompt]
            if self.bundle is not None:
                picture = through_vae(self.bundle, picture[None], 1, self.device)[0]
            yield request, Kept(picture, None, None)


if __name__ == "__main__":
    from feedface.common.errors import run_cli
    from feedface.evaluation.cli import main

    run_cli(lambda: main(["--protocol", "mini", *sys.argv[1:]]))

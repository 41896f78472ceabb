"""The judge of the mini world as one object, for sets of pictures in memory.

`python -m feedface.evaluation.mini …` is `python evaluate.py --protocol mini …`. Letters: I people, S samples a
person, R references, G gallery pictures, E embedding width.
"""

import sys

import numpy as np

from feedface.evaluation.cases import Cases
from feedface.evaluation.draw import draw, encode_faces, through_vae
from feedface.evaluation.inspector import Inspector
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

__all__ = ["Judge", "draw", "encode_faces", "load_judge", "through_vae"]


class Judge:
    """The inspector with the people of the cases in front of it: scores sets of pictures [I, S, H, W, 3]."""

    def __init__(self, inspector: Inspector, cases: Cases):
        self.inspector, self.asked = inspector, cases.asked
        self.gallery = self.look(cases.gallery)[0]  # [I, G, E]
        self.references = self.look(cases.references)[0]  # [I, R, E]

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        people, each = pictures.shape[:2]
        found = self.inspector.inspect(pictures.reshape(-1, *pictures.shape[2:]))
        classes = {name: values.reshape(people, each) for name, values in found.attributes.items()}
        return found.embedding.reshape(people, each, -1), classes

    def score(self, pictures: np.ndarray, shown: int) -> tuple[dict[str, Figure], np.ndarray]:
        """Figures for pictures made with the first `shown` references, and each person's attributes shown [I].

        Similarity to the reference is that to the references shown, or to the first where none was.
        """
        embedding, seen = self.look(pictures)
        hits = attribute_hits(seen, self.asked)
        figures = {
            "nearest_identity": bootstrap(nearest_identity(embedding, mean_embedding(self.gallery))),
            "similarity_to_another_picture": bootstrap(similarity_to_own(embedding, self.gallery)),
            "similarity_to_reference": bootstrap(similarity_to_own(embedding, self.references[:, : max(shown, 1)])),
            "similarity_to_strangers": bootstrap(similarity_to_strangers(embedding, self.gallery)),
        } | {
            f"attribute_{name}": bootstrap(*counts, statistic=ratio_of_means)
            for name, counts in hits.items()
            if counts[1].any()
        }
        return figures, hits["all"][0]


if __name__ == "__main__":
    from feedface.common.errors import run_cli
    from feedface.evaluation.cli import main

    run_cli(lambda: main(["--protocol", "mini", *sys.argv[1:]]))

"""Whether drawn people have the hair of the people shown: how much of it, and of which colour.

    python -m research.hair --systems models/mini models/mini-unet --references 0 4

People that nobody was trained on, each drawn without a hat. Hair is what the miniature's parser calls so in the face
that its detector finds; "real" are the renderer's pictures of the same people, seen in the same way. People are put in
thirds by how much of their real picture is hair.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from feedface.common.errors import run_cli
from feedface.evaluation.cases import crop_references, make_cases
from feedface.evaluation.generators import Bundles
from feedface.evaluation.people import FIRST_IDENTITY, WORLD_SEED
from feedface.evaluation.systems import gather_systems
from feedface.faces.detect import make_detector
from feedface.faces.parse import MiniParser
from feedface.settings import Settings
from feedface.synthetic.world import make_portraits
from feedface.synthetic.world.identity import sample_identities
from research.people import draw_people

CPU, HAIR = torch.device("cpu"), 10  # the class of LaPa
PROMPTS = ("a photo of a man in a green hoodie in a forest", "a photo of a woman in a green hoodie in a forest")
LEAST = 60  # pixels of hair, to speak of its colour


class Looker:
    """Says of pictures how much of each is hair [N], and its mean colour [N,3] in 0…1: NaN if it is too little."""

    def __init__(self, faces_root: Path, parser: Path):
        self.detector, self.parser = make_detector("mini", faces_root), MiniParser(parser)

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        area, colour = np.zeros(len(pictures)), np.full((len(pictures), 3), np.nan)
        for row, picture in enumerate(pictures):
            faces = self.detector.detect(picture)[:1]
            hair = self.parser.parse(picture, faces)[0] == HAIR if faces else np.zeros(picture.shape[:2], bool)
            area[row] = hair.mean()
            if hair.sum() >= LEAST:
                colour[row] = picture[hair].mean(axis=0) / 255
        return area, colour


def figures(found: tuple[np.ndarray, np.ndarray], area: np.ndarray, colour: np.ndarray) -> list[str]:
    """Mean share of hair in thirds of people by the true one, and the colours' mean correlation with the true ones."""
    thirds = np.array_split(np.argsort(area, kind="stable"), 3)
    seen = ~np.isnan(found[1][:, 0])
    alike = np.mean([np.corrcoef(found[1][seen, k], colour[seen, k])[0, 1] for k in range(3)]) if seen.sum() > 2 else 0
    return [*(f"{found[0][third].mean():.1%}" for third in thirds), f"{alike:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=Path, nargs="+", default=[Path("models/mini")])
    parser.add_argument("--references", type=int, nargs="+", default=[0, 4])
    parser.add_argument("--people", type=int, default=60)
    options = parser.parse_args()
    systems = gather_systems(options.systems, options.references, Settings(preset="balanced"))
    bundles = Bundles(CPU, torch.float32)
    first = bundles.get(systems[0])
    people = np.arange(FIRST_IDENTITY, FIRST_IDENTITY + options.people)
    who = sample_identities(people, WORLD_SEED)
    cases = make_cases(options.people, max(1, *options.references), 1, first.image_size)
    crops, _ = crop_references(cases, "truth", None)
    looker = Looker(first.faces_root, first.extra("parser"))
    real = looker.look(make_portraits(people, np.full(len(people), 300), WORLD_SEED, first.image_size).images)
    prompts = [[PROMPTS[int(gender)]] for gender in who.gender]
    rows = {"real": real}
    for system in systems:
        bundle = bundles.get(system)
        own = system.settings.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, bundle.few_step)
        shown = crops[:, : system.references] if system.references else None
        how = {"seed": 0, "batch_size": 20, "device": CPU, "label": system.name}
        rows[system.name] = looker.look(draw_people(bundle, prompts, shown, own, **how)[:, 0])
    print("| | hair, least third | middle | most | colour, correlation |\n|---|---:|---:|---:|---:|")
    for name, found in rows.items():
        print(f"| {name} | {' | '.join(figures(found, real[0], who.hair().numpy()))} |")


if __name__ == "__main__":
    run_cli(main)

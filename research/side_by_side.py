"""One sheet: people that nobody trained on, each drawn by several systems from the same prompts and noise.

    python -m research.side_by_side --systems systems.json --references 1 --out docs/adaface/stages.png

A row a person and system: what was shown of the person, then a picture for each prompt. Systems are given as to
`evaluate.py --systems`. In prompts "person" stands for the person, and is the word of a method that has one.
Letters: P people, S prompts.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.common.contact_sheet import Tile
from feedface.common.errors import UserError, run_cli
from feedface.common.person_words import named
from feedface.evaluation.cases import crop_references, make_cases
from feedface.evaluation.draw import draw, encode_faces
from feedface.evaluation.generators import Bundles
from feedface.evaluation.systems import System, gather_systems
from feedface.settings import Settings
from research.blending import CPU, save_sheet

PROMPTS = (
    "a photo of a person in a green hoodie on a beach",
    "a photo of a person in a blue suit with glasses in front of a brick wall",
    "a photo of a person with a red cap in a forest",
    "a photo of a smiling person in a yellow coat in a city at night",
)


def pictures_of(system: System, bundles: Bundles, crops: np.ndarray, prompts: list[str], seed: int) -> np.ndarray:
    """uint8 [P,S,H,W,3]; the noise of a place in the sheet is the same for all systems."""
    bundle, people = bundles.get(system), len(crops)
    own = system.settings.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, bundle.few_step)
    who, word = None, bundle.method and bundle.method.subject_word
    if system.references:
        shown = [list(row[: system.references]) for row in crops]
        who = encode_faces(bundle, shown, CPU, torch.float32, system.pool)
        who = {name: value.repeat_interleave(len(prompts), dim=0) for name, value in who.items()}
        prompts = prompts if word is None else [named(prompt, word) for prompt in prompts]
    pictures = draw(bundle, prompts * people, who, own, seed, len(prompts), CPU, system.name)
    return pictures.reshape(people, len(prompts), *pictures.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True, help="PNG")
    parser.add_argument("--prompts", nargs="+", default=list(PROMPTS))
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--skip", type=int, default=0, help="so many of the evaluation's people first")
    parser.add_argument("--references", type=int, default=1, help="of systems that do not say it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.people < 1 or options.references < 1:
        raise UserError("--people and --references: at least 1")
    systems = gather_systems(options.systems, [options.references], Settings(preset="balanced"))
    bundles = Bundles(CPU, torch.float32)
    size, most = bundles.get(systems[0]).image_size, max(system.references for system in systems)
    cases = make_cases(options.skip + options.people, max(1, most), 1, size)
    crops = crop_references(cases, "truth", None)[0][options.skip :]
    sheets = {system.name: pictures_of(system, bundles, crops, options.prompts, options.seed) for system in systems}
    rows = []
    for person, shown in enumerate(crops):
        for name, pictures in sheets.items():
            drawn = [Tile(Image.fromarray(picture)) for picture in pictures[person]]
            rows.append((name, [Tile(Image.fromarray(shown[0]), "shown"), *drawn]))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_sheet(options.out, rows)
    for prompt in options.prompts:
        print(prompt)


if __name__ == "__main__":
    run_cli(main)

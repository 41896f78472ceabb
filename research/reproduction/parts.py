"""What the judge knows people by: real pictures of them in which one part is somebody else's.

    python -m research.reproduction.parts --model models/mini       # a table; `limits` has the same among its rows

A part is a group of the renderer's numbers; it is taken from another person of the same gender. Where the judge no
longer knows somebody, a model that draws only this part wrong cannot be right either.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from feedface.checkpoints.bundle import load_bundle
from feedface.common.errors import run_cli
from feedface.evaluation.cases import Cases, make_cases
from feedface.evaluation.metrics import bootstrap
from feedface.evaluation.mini import Judge, load_judge
from feedface.evaluation.people import FIRST_IDENTITY, WORLD_SEED
from feedface.synthetic.world.identity import FIELDS, Identities, sample_identities
from feedface.synthetic.world.renderer import render
from feedface.synthetic.world.scene import framing_for, sample_scenes
from research.people import judged

CPU = torch.device("cpu")
HAIR_COLOUR = ("hair_colour", "hair_shade", "dyed")
HAIR_SHAPE = ("hair_style", "hairline", "hair_volume", "hair_length", "parting")
SKIN = ("skin_tone", "skin_redness", "lip_redness", "beard", "freckles", "blush")
# All that is left: head and ears, eyes, brows, nose, mouth, moles, age.
FEATURES = tuple(field.name for field in FIELDS if field.name not in ("gender", *HAIR_COLOUR, *HAIR_SHAPE, *SKIN))
PARTS = {
    "hair colour": HAIR_COLOUR,
    "hair shape": HAIR_SHAPE,
    "hair": HAIR_COLOUR + HAIR_SHAPE,
    "skin and beard": SKIN,
    "head, eyes, brows, nose and mouth": FEATURES,
}


def with_part_of_another(cases: Cases, names: tuple[str, ...], scene: int, seed: int = 0) -> np.ndarray:
    """`cases`' people in the scenes from number `scene` on, with the fields `names` of others: uint8 [I*S,H,W,3]."""
    people, samples, size = *cases.pictures.shape[:2], cases.pictures.shape[2]
    index = np.arange(FIRST_IDENTITY, FIRST_IDENTITY + people)
    who = sample_identities(index, WORLD_SEED)
    other = others(who, seed)
    for name in names:
        who.values[name] = who.values[name][other]
    scenes = sample_scenes(
        np.repeat(index, samples), np.tile(np.arange(scene, scene + samples), people), WORLD_SEED, framing_for(size)
    )
    images = render(who[torch.arange(people).repeat_interleave(samples)], scenes, size).image
    return (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def others(who: Identities, seed: int) -> torch.Tensor:
    """For each of N people the number of another one of the same gender, or their own where they are the only one."""
    found = torch.arange(len(who))
    order = torch.randperm(len(who), generator=torch.Generator().manual_seed(seed))
    for gender in who.gender.unique():
        same = order[who.gender[order] == gender]
        found[same] = same.roll(1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini"))
    parser.add_argument("--people", type=int, default=100)
    options = parser.parse_args()
    bundle = load_bundle(options.model, CPU, torch.float32, [])
    cases = make_cases(options.people, 1, 1, bundle.image_size)
    judge = Judge(load_judge(None, bundle, CPU), cases)
    print(f"| real pictures, {options.people} people | similarity | nearest identity |\n|---|---:|---:|")
    for label, names in {"as they are": (), **{f"another's {part}": names for part, names in PARTS.items()}}.items():
        pictures = with_part_of_another(cases, names, 200).reshape(cases.pictures.shape)  # scenes of `make_cases`
        values = judged(judge, pictures)
        similarity, nearest = (
            bootstrap(values[name]) for name in ("similarity_to_another_picture", "nearest_identity")
        )
        print(
            f"| {label} | {similarity.value:.2f} [{similarity.low:.2f}, {similarity.high:.2f}] "
            f"| {nearest.value:.0%} [{nearest.low:.0%}, {nearest.high:.0%}] |"
        )


if __name__ == "__main__":
    run_cli(main)

"""Two people in one picture, measured: does each half show its own person, and are they swapped?

    python -m research.people_in_one --model models/mini-unet --pairs 40 --out outputs/people

Pairs of people of the portraits that no model was trained on, one reference each. Pictures are two portraits wide, and
the halves are the regions. The inspector, a judge that no model has seen, looks at each half and is asked which of the
two it shows, and which of all people. Beside the pictures: two real portraits side by side, each person drawn alone,
and pictures without anybody's face. Intervals: 95 %, bootstrap over pairs.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from feedface.common.contact_sheet import save_sheet
from feedface.common.errors import run_cli
from feedface.evaluation.judging import load_inspector
from feedface.evaluation.metrics import bootstrap, mean_embedding
from feedface.faces.crop import crop_square, square_box
from feedface.pipeline import FeedFacePipeline, Request
from feedface.settings import Settings
from feedface.synthetic.world.dataset import make_portraits

FIRST, GALLERY = 5000, 3  # the first person that nothing was trained on; other pictures of each, for the judge
PROMPT = "two people on a beach"
LEFT, RIGHT = (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
SHOWN = 6  # pairs on the sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini-unet"))
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("outputs/people"))
    options = parser.parse_args()
    pipe = FeedFacePipeline.from_pretrained(options.model)
    side, people = pipe.bundle.image_size, 2 * options.pairs
    names = np.repeat(np.arange(FIRST, FIRST + people), 2 + GALLERY)
    portraits = make_portraits(names, np.tile(np.arange(2 + GALLERY), people), size=side)
    images = portraits.images.reshape(people, 2 + GALLERY, side, side, 3)
    boxes = portraits.boxes.reshape(people, 2 + GALLERY, 4)
    crops = [crop_square(images[one, 0], square_box(boxes[one, 0])) for one in range(people)]
    identities = [identity_of(pipe, crop) for crop in crops]
    pairs = [(one, one + 1) for one in range(0, people, 2)]

    def drawn(size: tuple[int, int], identities) -> np.ndarray:
        requests = [Request(PROMPT, seed, identity) for seed, identity in enumerate(identities)]
        return np.stack([np.asarray(image) for image in pipe.draw(requests, Settings(size=size, preset="balanced"))])

    both = [pipe.together([identities[one], identities[other]], [LEFT, RIGHT]) for one, other in pairs]
    alone = drawn((side, side), identities)
    wide = {
        "real portraits side by side": np.concatenate([images[::2, 1], images[1::2, 1]], axis=2),
        "each drawn alone": np.concatenate([alone[::2], alone[1::2]], axis=2),
        "two in one picture": drawn((2 * side, side), both),
        "nobody's face": drawn((2 * side, side), [None] * len(pairs)),
    }  # fmt: skip
    judge = load_inspector(None, pipe.bundle, pipe.device)
    gallery = judge.inspect(images[:, 2:].reshape(-1, side, side, 3)).embedding.reshape(people, GALLERY, -1)
    known = mean_embedding(gallery)  # [people, E]
    found = {}
    print(
        f"| {len(pairs)} pairs | own, of the two | both right | swapped | nearest of {people} |\n|---|---|---|---|---|"
    )
    for name, pictures in wide.items():
        halves = np.stack([pictures[:, :, :side], pictures[:, :, side:]], axis=1)  # [pairs, 2, side, side, 3]
        seen = judge.inspect(halves.reshape(-1, side, side, 3)).embedding @ known.T
        seen = seen.reshape(len(pairs), 2, people)
        ask = enumerate(pairs)
        own = np.stack([[seen[n, 0, a] > seen[n, 0, b], seen[n, 1, b] > seen[n, 1, a]] for n, (a, b) in ask])
        nearest = seen.argmax(-1) == np.array(pairs)
        values = {
            "own": own.mean(1), "both": own.all(1), "swapped": ~own.any(1), "nearest": nearest.mean(1),
        }  # fmt: skip
        figures = {key: bootstrap(np.asarray(value, float)) for key, value in values.items()}
        found[name] = {key: [figure.value, figure.low, figure.high] for key, figure in figures.items()}
        cells = " | ".join(f"{v:.0%} [{low:.0%}, {high:.0%}]" for v, low, high in found[name].values())
        print(f"| {name} | {cells} |", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "people.json").write_text(json.dumps(found, indent=1))
    save_sheet(options.out / "people.png", [pictures[:SHOWN] for pictures in wide.values()], zoom=1)


def identity_of(pipe: FeedFacePipeline, crop: np.ndarray):
    """Of one face crop uint8 [S,S,3]."""
    pipe.set_faces([crop])
    return pipe.identity(pipe.references)


if __name__ == "__main__":
    run_cli(main)

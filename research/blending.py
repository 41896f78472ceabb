"""A method with several references and with two people: sheets to look at, and what each weight of a blend shows.

    python -m research.blending --model models/mini-unet-flashface --out docs/flashface

Writes references.png (a row a person: pictures of them, then drawn with none, 1, 2, … of these), blend.png (a row a
pair: the first, drawn at each weight, the second), blend_curve.png and blend.json (similarity to each of the two at
each weight, of `--pairs` pairs of people that nobody trained on). Similarities are cosines of the inspector's.
Letters: P pairs, R references, W weights.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.common.contact_sheet import Tile, tile_rows
from feedface.common.errors import run_cli
from feedface.common.files import atomic_file
from feedface.common.person_words import named
from feedface.evaluation.cases import Cases, crop_references, make_cases
from feedface.evaluation.metrics import Figure, bootstrap, similarity_to_own
from feedface.evaluation.mini import Judge, draw, encode_faces, load_judge
from feedface.methods.base import Identity
from feedface.settings import Settings
from research.plots import curves

WEIGHTS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
CPU = torch.device("cpu")
Rows = list[tuple[str, list[Tile]]]


class Artist:
    """Draws the people of the cases, each with one prompt of their own, always from the same noise."""

    def __init__(self, bundle: Bundle, cases: Cases, batch_size: int):
        self.bundle, self.cases, self.batch_size = bundle, cases, batch_size
        self.crops, _ = crop_references(cases, "truth", None)
        self.prompts = [self.named(prompts[0]) for prompts in cases.prompts]
        backbone = bundle.backbone_class
        self.settings = Settings().for_model(
            bundle.defaults, bundle.image_size, bundle.size_multiple, None, backbone.uncond_modes, backbone.reusable
        )

    def named(self, prompt: str) -> str:
        """The prompt with the person's word, where the method has one."""
        word = self.bundle.method.subject_word
        return prompt if word is None else named(prompt, word)

    def people(self, rows: slice, references: int) -> Identity:
        return encode_faces(self.bundle, self.crops[rows, :references], CPU, torch.float32)

    def draw(self, prompts: Sequence[str], people: Identity | None, label: str) -> np.ndarray:
        return draw(self.bundle, prompts, people, self.settings, 0, self.batch_size, CPU, label)


def references_sheet(artist: Artist, people: int, counts: Sequence[int]) -> Rows:
    """Each person's references, and what is drawn with so many of them."""
    drawn = {
        count: artist.draw(artist.prompts[:people], artist.people(slice(people), count) if count else None, f"{count}")
        for count in counts
    }
    rows = []
    for row in range(people):
        tiles = [Tile(Image.fromarray(crop), "reference") for crop in artist.crops[row, : max(counts)]]
        tiles += [
            Tile(Image.fromarray(drawn[count][row]), f"{count or 'no'} reference{'s'[: count != 1]}")
            for count in counts
        ]
        rows.append((artist.prompts[row], tiles))
    return rows


def blended(artist: Artist, pairs: int, references: int) -> np.ndarray:
    """Pictures [P,W,H,W,3] of pairs, persons 2n and 2n + 1, by the first one's prompt."""
    first, second = (artist.people(slice(start, 2 * pairs, 2), references) for start in (0, 1))
    prompts = artist.prompts[: 2 * pairs : 2]
    method = artist.bundle.method
    found = []
    for weight in WEIGHTS:
        people = method.blended(first, second, weight)
        found.append(artist.draw(prompts, people, f"weight {weight:g}"))
    return np.stack(found, axis=1)


def blend_sheet(artist: Artist, pictures: np.ndarray, pairs: int) -> Rows:
    rows = []
    for pair in range(pairs):
        ends = [
            Tile(Image.fromarray(artist.crops[2 * pair + side, 0]), name)
            for side, name in ((0, "first"), (1, "second"))
        ]
        tiles = [
            Tile(Image.fromarray(picture), f"{weight:g}")
            for picture, weight in zip(pictures[pair], WEIGHTS, strict=True)
        ]
        rows.append((artist.prompts[2 * pair], [ends[0], *tiles[::2], ends[1]]))
    return rows


def similarities(judge: Judge, pictures: np.ndarray) -> dict[str, list[Figure]]:
    """To each of the two, at each weight: to pictures of them that nobody was shown."""
    embedding, _ = judge.look(pictures)  # [P,W,E]
    found = {}
    for side, name in ((0, "to the first"), (1, "to the second")):
        gallery = judge.gallery[side : 2 * len(pictures) : 2]
        found[name] = [bootstrap(similarity_to_own(embedding[:, [at]], gallery)) for at in range(len(WEIGHTS))]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini-unet-flashface"))
    parser.add_argument("--out", type=Path, default=Path("outputs/blending"))
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--references", type=int, default=2, help="of each of the two")
    parser.add_argument("--shown", type=int, default=4, help="rows of each sheet")
    parser.add_argument("--batch_size", type=int, default=25)
    options = parser.parse_args()
    bundle = load_bundle(options.model, CPU, torch.float32)
    cases = make_cases(2 * options.pairs, 4, 1, bundle.image_size)
    artist = Artist(bundle, cases, options.batch_size)
    options.out.mkdir(parents=True, exist_ok=True)
    save_sheet(options.out / "references.png", references_sheet(artist, options.shown, (0, 1, 2, 3, 4)))
    pictures = blended(artist, options.pairs, options.references)
    save_sheet(options.out / "blend.png", blend_sheet(artist, pictures, options.shown))
    figures = similarities(Judge(load_judge(None, bundle, CPU), cases), pictures)
    series = {name: list(zip(WEIGHTS, values, strict=True)) for name, values in figures.items()}
    curves(options.out / "blend_curve.png", series, "weight of the second", "similarity")
    content = {"weights": WEIGHTS, "pairs": options.pairs, "references": options.references} | {
        name: [asdict(value) for value in values] for name, values in figures.items()
    }
    with atomic_file(options.out / "blend.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
    for weight, first, second in zip(WEIGHTS, *figures.values(), strict=True):
        print(f"| {weight:g} | {_text(first)} | {_text(second)} |")


def _text(figure: Figure) -> str:
    return f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"


def save_sheet(path: Path, rows: Rows) -> None:
    with atomic_file(path) as temporary:
        tile_rows(rows, label_lines=1).save(temporary, format="PNG")


if __name__ == "__main__":
    run_cli(main)

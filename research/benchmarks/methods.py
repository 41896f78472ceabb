"""What a picture costs with each method: the base model's, and models' with 1, 2, 4 references, in turns in one run.

    python -m research.benchmarks.methods models/mini-unet models/mini-unet-flashface

A picture is everything from prompt and references to 8-bit pixels, with the noise, solver and guidance of all alike:
`--steps` evaluations, each of both halves of guidance. "a step" is the time of a picture of so many steps more, so
that what is done once a picture (references read, the decoder) is not in it. The base is the first model without its
method.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch

from feedface.common.errors import run_cli
from feedface.faces.references import Reference, find_faces
from feedface.pipeline import FeedFacePipeline, Request
from feedface.settings import PLAIN, Settings
from feedface.synthetic.world import make_portraits
from research.benchmarks.measuring import describe_machine, median, time_in_turns

PROMPT, IDENTITY = "a photo of a smiling man in a green hoodie on a beach", 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--references", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, nargs=2, default=(10, 30), metavar=("FEW", "MANY"))
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    ways = _ways(options, device)
    print(", ".join(f"{key} {value}" for key, value in describe_machine(device).items()))
    found = time_in_turns(ways, device, options.rounds, warmup=1)
    few, many = options.steps
    print("| | a picture of", few, "steps | a step | of the base's |\n|---|---:|---:|---:|")
    base, clock = None, "cpu_seconds" if device.type == "cpu" else "seconds"  # whatever else the machine does
    for name in dict.fromkeys(name for name, _ in ways):
        picture, longer = (median(found[name, steps], clock) for steps in options.steps)
        step = (longer - picture) / (many - few)
        base = base or step
        print(f"| {name} | {1000 * picture:.0f} ms | {1000 * step:.1f} ms | {step / base:.2f} |")


def _ways(options: argparse.Namespace, device: torch.device) -> dict[tuple[str, int], Callable[[int], object]]:
    """What is timed, by name and steps."""
    ways: dict[tuple[str, int], Callable[[int], object]] = {}
    for model in options.models:
        pipe = FeedFacePipeline.from_pretrained(model, device=device)
        count = max(options.references)
        pictures = make_portraits([IDENTITY] * count, list(range(count)), 0, pipe.bundle.image_size).images
        faces, _ = find_faces(list(pictures), None)
        shown = {f"{pipe.bundle.method.kind}, {n} reference{'s'[: n != 1]}": faces[:n] for n in options.references}
        for name, references in [*([] if ways else [("base", [])]), *shown.items()]:
            for steps in options.steps:
                settings = Settings(steps=steps, scheduler="dpmsolver++").over(PLAIN)
                ways[name, steps] = _drawing(pipe, references, settings, options.batch_size)
    return ways


def _drawing(
    pipe: FeedFacePipeline, references: list[Reference], settings: Settings, batch_size: int
) -> Callable[[int], object]:
    def draw(number: int) -> None:
        identity = pipe.identity(references) if references else None
        requests = [Request(PROMPT, batch_size * max(number, 0) + row, identity) for row in range(batch_size)]
        list(pipe.draw(requests, settings, batch_size))

    return draw


if __name__ == "__main__":
    run_cli(main)

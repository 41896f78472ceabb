"""How far the base model's pictures as a whole are from the portrait world's: a Fréchet distance of a judge's features.

    python -m feedface.evaluation.frechet --model models/mini --pictures 2000

Pictures of people and scenes nobody trained on are described by their captions; the base model draws these, without
anybody's face, and is compared with the renderer's pictures of *other* unseen people. So are, for what could be
reached at best, the described pictures themselves.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, run_cli
from feedface.settings import PRESET_NAMES

FIRST_IDENTITY = 25_000  # half of `people.MAX_IDENTITIES` on from the people of the evaluation
SCENES = 5  # a person


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m feedface.evaluation.frechet", description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", default="models/mini", help="model folder (default: %(default)s)")
    parser.add_argument("--inspector", help="the judge's folder (default: the model's own)")
    parser.add_argument("--pictures", type=int, default=2000, help="in each set (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the first picture (default: %(default)s)")
    parser.add_argument("--preset", choices=PRESET_NAMES, help="as in inference.py (default: the model's own)")
    parser.add_argument("--pag_scale", type=float, help="perturbed-attention guidance (default: the model's own)")
    parser.add_argument("--out", type=Path, help="JSON file to write too")
    args = parser.parse_args(arguments)
    if not 2 <= args.pictures <= 10_000:
        raise UserError(f"--pictures {args.pictures}: must be between 2 and 10000")
    if args.batch_size < 1:
        raise UserError(f"--batch_size {args.batch_size}: must be at least 1")

    import torch

    from feedface.common.device import pick_dtype
    from feedface.common.files import atomic_file
    from feedface.evaluation.draw import draw
    from feedface.evaluation.judging import load_inspector
    from feedface.evaluation.metrics import frechet_distance
    from feedface.inference.model_files import load_model
    from feedface.settings import Settings
    from feedface.synthetic.world import make_portraits

    device = torch.device("cpu")
    bundle = load_model(args.model, None, device, pick_dtype(None, device))
    inspector = load_inspector(args.inspector, bundle, device)
    rows = np.arange(2 * args.pictures)
    world = make_portraits(FIRST_IDENTITY + rows // SCENES, rows % SCENES, size=bundle.image_size)
    described, others = world.images[: args.pictures], world.images[args.pictures :]
    asked = Settings(preset=args.preset, pag_scale=args.pag_scale)
    settings = asked.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, bundle.few_step)
    drawn = draw(bundle, world.captions[: args.pictures], None, settings, args.seed, args.batch_size, device, "base")
    target = inspector.features(others)
    distance = {name: round(frechet_distance(inspector.features(pictures), target), 4)
                for name, pictures in (("drawn", drawn), ("real", described))}  # fmt: skip
    print(f"{args.model}: drawn {distance['drawn']}, real {distance['real']} ({args.pictures} pictures in each set)")
    if args.out:
        with atomic_file(args.out) as temporary:
            temporary.write_text(json.dumps({"pictures": args.pictures, **distance}, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)

"""Write a world of procedural portraits to disk.

python -m feedface.synthetic.world --out data/portraits --identities 200 --per-identity 10 --seed 0
python -m feedface.synthetic.world --sheet docs/portraits.png --identities 8 --per-identity 8
"""

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, run_cli


def main() -> None:
    parser = Parser(prog="python -m feedface.synthetic.world", description=__doc__.splitlines()[0])
    parser.add_argument("--out", help="folder for images, masks, records.jsonl and truth.npz")
    parser.add_argument("--sheet", help="write one picture instead: a row per person, a column per scene")
    parser.add_argument("--identities", type=int, default=100, help="number of people (default 100)")
    parser.add_argument("--per-identity", type=int, default=10, help="scenes per person (default 10)")
    parser.add_argument("--first-identity", type=int, default=0, help="index of the first person (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="the world's seed (default 0)")
    parser.add_argument("--size", type=int, default=128, help="side of the pictures in pixels (default 128)")
    parser.add_argument(
        "--dense", action="store_true", help="with pose, landmarks, depth and attributes in the records"
    )
    framings = ("tight", "wide")
    parser.add_argument("--framing", choices=framings, help="how near the heads are (default: tight from 128 px on)")
    args = parser.parse_args()
    for name, low, high in (("identities", 1, 10**6), ("per_identity", 1, 10**4), ("size", 16, 1024),
                            ("first_identity", 0, 10**9), ("seed", 0, 2**32)):  # fmt: skip
        if not low <= getattr(args, name) <= high:
            flag = name.replace("_", "-")
            raise UserError(f"--{flag} {getattr(args, name)}: must be between {low} and {high}")
    if not args.out and not args.sheet:
        raise UserError("give --out DIR for a world, or --sheet FILE.png for a page of samples")

    world = (args.seed, args.size, args.first_identity, args.framing)
    if args.sheet:
        write_sheet(args.sheet, args.identities, args.per_identity, *world)
        print(f"{args.sheet}: {args.identities} people x {args.per_identity} scenes")
    if args.out:
        from feedface.synthetic.world.dataset import write_world

        write_world(args.out, args.identities, args.per_identity, *world, args.dense)
        print(f"{args.out}/records.jsonl: {args.identities * args.per_identity} portraits of {args.identities} people")


def write_sheet(
    path: str, identities: int, per_identity: int, seed: int, size: int, first_identity: int, framing: str | None
) -> None:
    """One PNG: a row per person, a column per scene."""
    import numpy as np
    from PIL import Image

    from feedface.common.files import atomic_file
    from feedface.synthetic.world.dataset import make_portraits

    people = np.repeat(np.arange(first_identity, first_identity + identities), per_identity)
    images = make_portraits(people, np.tile(np.arange(per_identity), identities), seed, size, framing).images
    grid = images.reshape(identities, per_identity, size, size, 3).transpose(0, 2, 1, 3, 4)
    with atomic_file(path) as temporary:
        Image.fromarray(grid.reshape(identities * size, per_identity * size, 3)).save(temporary)


if __name__ == "__main__":
    run_cli(main)

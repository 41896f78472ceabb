"""Convert the authors' files into a folder of safetensors and JSON:

    python -m feedface.checkpoints convert --from models/ --to models/feedface-v1
    python -m feedface.checkpoints convert --from models/ --to models/feedface-v1 --dtype fp16 \\
        --text_encoder models/clip-vit-large-patch14 --image_encoder models/clip-vit-base-patch32
"""

import argparse

from feedface.device import DTYPES
from feedface.errors import run_cli


def main() -> None:
    from feedface.checkpoints import release

    parser = argparse.ArgumentParser("python -m feedface.checkpoints", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="convert")
    command = commands.add_parser("convert", help="the authors' files -> one folder of safetensors and JSON")
    command.add_argument(
        "--from", dest="source", required=True, help=f"folder with {', '.join(release.FILES.values())}"
    )
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--text_encoder", default=release.TEXT_ENCODER, help="CLIP ViT-L/14: folder or hub name")
    command.add_argument("--image_encoder", default=release.IMAGE_ENCODER, help="CLIP ViT-B/32: folder or hub name")
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the files)")
    args = parser.parse_args()
    release.convert(
        args.source,
        args.target,
        text_encoder=args.text_encoder,
        image_encoder=args.image_encoder,
        dtype=DTYPES.get(args.dtype),
    )
    print(f"wrote {args.target}")


if __name__ == "__main__":
    run_cli(main)

"""Convert the authors' files into a folder of safetensors and JSON:

    python -m feedface.checkpoints convert --from models/ --to models/feedface-v1
    python -m feedface.checkpoints convert --from models/ --to models/feedface-v1 --dtype fp16 \\
        --text_encoder models/clip-vit-large-patch14 --image_encoder models/clip-vit-base-patch32

of FlashFace's own authors flashface.ckpt, with the text encoder and VAE of a Stable Diffusion 1.5,

    python -m feedface.checkpoints convert_flashface --from flashface.ckpt --base models/stable-diffusion-v1-5 \\
        --to models/flashface-official

and a model with FlashFace into the folder that its authors' program takes:

    python -m feedface.checkpoints export --from workdir/flashface/checkpoints/last --to flashface
"""

from feedface.common.command_line import Parser
from feedface.common.errors import run_cli

# Written out here, so that --help need not wait for torch.
DTYPES = ("fp32", "bf16", "fp16")
FILES = ("uvit_v1.pth", "autoencoder_kl.pth", "caption_decoder.pth", "feed-4800000.pt")


def main() -> None:
    parser = Parser("python -m feedface.checkpoints", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="convert|convert_flashface|export", dest="command")
    command = commands.add_parser("convert", help="the authors' files -> one folder of safetensors and JSON")
    command.add_argument("--from", dest="source", required=True, help=f"folder with {', '.join(FILES)}")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--text_encoder", help="CLIP ViT-L/14: folder or hub name (default: OpenAI's, from the hub)")
    command.add_argument("--image_encoder", help="CLIP ViT-B/32: folder or hub name (default: OpenAI's, from the hub)")
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the files)")
    command = commands.add_parser("convert_flashface", help="flashface.ckpt -> a model folder")
    command.add_argument("--from", dest="source", required=True, help="flashface.ckpt")
    command.add_argument("--base", required=True, help="Stable Diffusion 1.5, a diffusers folder")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command = commands.add_parser("export", help="a model with FlashFace -> a diffusers folder with refnet/")
    command.add_argument("--from", dest="source", required=True, help="model folder, or a training checkpoint")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the model)")
    args = parser.parse_args()
    if args.command == "convert_flashface":
        from feedface.checkpoints.flashface_official import convert

        print(f"wrote {convert(args.source, args.base, args.target)}")
        return
    if args.command == "export":
        from feedface.checkpoints.flashface_export import export
        from feedface.common.device import DTYPES as NUMBERS

        export(args.source, args.target, NUMBERS.get(args.dtype))
        print(f"wrote {args.target}")
        return

    from feedface.checkpoints import release
    from feedface.common import device

    release.convert(
        args.source,
        args.target,
        text_encoder=args.text_encoder or release.TEXT_ENCODER,
        image_encoder=args.image_encoder or release.IMAGE_ENCODER,
        dtype=device.DTYPES.get(args.dtype),
    )
    print(f"wrote {args.target}")


if __name__ == "__main__":
    run_cli(main)

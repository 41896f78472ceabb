"""Convert the authors' files into a folder of safetensors and JSON:

    python -m feedface.checkpoints convert --from models/ --to models/feedface-v1
    python -m feedface.checkpoints convert --from models/ --to models/feedface-v1 --dtype fp16 \\
        --text_encoder models/clip-vit-large-patch14 --image_encoder models/clip-vit-base-patch32

of FlashFace's own authors flashface.ckpt, with the text encoder and VAE of a Stable Diffusion 1.5,

    python -m feedface.checkpoints convert_flashface --from flashface.ckpt --base models/stable-diffusion-v1-5 \\
        --to models/flashface-official

of Dense-Face epoch=….ckpt, which holds a whole Stable Diffusion 1.5 (of DenseFace_text_editing.safetensors, which is
one, nothing need be converted: --model takes it),

    python -m feedface.checkpoints convert_denseface --from epoch=44397232.ckpt --to models/denseface

and a model with FlashFace into the folder that its authors' program takes:

    python -m feedface.checkpoints export --from workdir/flashface/checkpoints/last --to flashface

AdaFace: the authors' files into a method's folder (for --ckpt_path), and attention with more keys, between two rounds
of training:

    python -m feedface.checkpoints adaface --from embeddings_gs-30000.pt --arc2face models/arc2face --to models/adaface
    python -m feedface.checkpoints extend --from workdir/adaface1/checkpoints/last --to workdir/adaface1x4 --times 4

Any model with another one's text encoder or VAE:

    python -m feedface.checkpoints replace-text-encoder --model sd15 --with dreamshaper_8.safetensors --to sd15-dream
    python -m feedface.checkpoints replace-vae --model sd15-dream --with sd15-mse --to sd15-dream-mse
"""

from feedface.common.command_line import Parser
from feedface.common.errors import run_cli

# Written out here, so that --help need not wait for torch.
DTYPES = ("fp32", "bf16", "fp16")
FILES = ("uvit_v1.pth", "autoencoder_kl.pth", "caption_decoder.pth", "feed-4800000.pt")


def main() -> None:
    parser = Parser("python -m feedface.checkpoints", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = commands.add_parser("convert", help="the authors' files -> one folder of safetensors and JSON")
    command.add_argument("--from", dest="source", required=True, help=f"folder with {', '.join(FILES)}")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--text_encoder", help="CLIP ViT-L/14: folder or hub name (default: OpenAI's, from the hub)")
    command.add_argument("--image_encoder", help="CLIP ViT-B/32: folder or hub name (default: OpenAI's, from the hub)")
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the files)")
    command = commands.add_parser("adaface", help="embeddings_gs-*.pt and Arc2Face's text encoder -> a method's folder")
    command.add_argument("--from", dest="source", required=True, help="embeddings_gs-*.pt, or its tensors")
    command.add_argument("--arc2face", required=True, help="folder of Arc2Face, with encoder/")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument(
        "--layer_weights",
        choices=("reset", "checkpoint"),
        default="reset",
        help="of the last layers: (1, 2, 4), as in the authors' program (default), or the file's",
    )
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the files)")
    command = commands.add_parser("extend", help="a model with AdaFace -> one with more keys and values a token")
    command.add_argument("--from", dest="source", required=True, help="model folder, such as a training checkpoint")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--times", type=int, required=True, help="how many times as many")
    for part in ("text-encoder", "vae"):
        command = commands.add_parser(f"replace-{part}", help=f"a model with another one's {part.replace('-', ' ')}")
        command.add_argument("--model", required=True, help="model folder, or a Stable Diffusion (folder, file)")
        command.add_argument("--with", dest="other", required=True, help="the same, whose part is taken")
        command.add_argument("--to", dest="target", required=True, help="folder to write")
        command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the files)")
    command = commands.add_parser("convert_flashface", help="flashface.ckpt -> a model folder")
    command.add_argument("--from", dest="source", required=True, help="flashface.ckpt")
    command.add_argument("--base", required=True, help="Stable Diffusion 1.5, a diffusers folder")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command = commands.add_parser("convert_denseface", help="Dense-Face's epoch=….ckpt -> a model folder")
    command.add_argument("--from", dest="source", required=True, help="epoch=….ckpt, or DenseFace_ini.ckpt")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the file)")
    command = commands.add_parser("export", help="a model with FlashFace -> a diffusers folder with refnet/")
    command.add_argument("--from", dest="source", required=True, help="model folder, or a training checkpoint")
    command.add_argument("--to", dest="target", required=True, help="folder to write")
    command.add_argument("--dtype", choices=DTYPES, help="number format to store (default: that of the model)")
    args = parser.parse_args()
    if args.command == "convert_flashface":
        from feedface.checkpoints.flashface_official import convert

        print(f"wrote {convert(args.source, args.base, args.target)}")
        return
    if args.command == "convert_denseface":
        from feedface.checkpoints.denseface import convert as convert_denseface
        from feedface.common.device import DTYPES as NUMBERS

        print(f"wrote {convert_denseface(args.source, args.target, NUMBERS.get(args.dtype))}")
        return
    if args.command == "export":
        from feedface.checkpoints.flashface_export import export
        from feedface.common.device import DTYPES as NUMBERS

        export(args.source, args.target, NUMBERS.get(args.dtype))
        print(f"wrote {args.target}")
        return
    if args.command.startswith("replace-"):
        from feedface.checkpoints.replace import replace_part
        from feedface.common.device import DTYPES as NUMBERS

        part = args.command.removeprefix("replace-").replace("-", "_")
        replace_part(part, args.model, args.other, args.target, NUMBERS.get(args.dtype))
        print(f"wrote {args.target}")
        return
    if args.command == "adaface":
        from feedface.checkpoints.adaface import load_adaface
        from feedface.checkpoints.bundle import save_component
        from feedface.common.device import DTYPES as NUMBERS

        method = load_adaface(args.source, args.arc2face, args.layer_weights)
        save_component("method", method, args.target, NUMBERS.get(args.dtype))
        print(f"wrote {args.target}")
        return
    if args.command == "extend":
        from feedface.checkpoints.extend import extend

        extend(args.source, args.target, args.times)
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

"""Turn a folder of photos into training records: faces found and parsed, captions, filters, people, a report.

Photos (insightface's buffalo_l where it is installed, else OpenCV; facer parses; the README says where weights go):
    python make_data.py --data_folder photos --out_folder data
    python make_data.py --data_folder photos --out_folder data --caption llava --identity cluster --min_face_px 128
On many GPUs or processes:
    accelerate launch --num_processes 8 --multi_gpu make_data.py --data_folder photos --out_folder data
    torchrun --standalone --nproc_per_node 2 make_data.py --data_folder photos --out_folder data --device cpu
The miniature's own portraits (python -m feedface.synthetic.world makes some), people by folder name:
    python make_data.py --data_folder portraits --out_folder data --model models/mini --identity folder
For open FlashFace and AdaFace as well:
    python make_data.py --data_folder photos --out_folder data --identity folder --format feedface flashface adaface
Check that records and files belong together:
    python make_data.py --check data

Left in the output folder: records.jsonl (what train.py reads), single/ multi/ error/ filtered/ (a JSON file for each
picture and a mask for each face; PATH.jpg.json and PATH.jpg.png for photo PATH.jpg), report.html and report.png,
settings.json. The same command goes on after a kill and does only what is missing; photos that changed are done again,
outputs of photos that are gone are deleted. Captions, filters, people and formats can be changed from run to run.
Exit codes: 0, 2 for wrong input (or --check finds something), 130 after Ctrl-C, 143 after SIGTERM.
"""

import argparse
import math
import signal
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import EXIT_USER_ERROR, UserError, path_flag, run_cli
from feedface.common.places import default_model

CAPTIONS, IDENTITIES = ("none", "sidecar", "file", "llava"), ("none", "folder", "list", "cluster")
SQUARES, FORMATS = ("pad", "inside"), ("feedface", "flashface", "adaface")


def make_parser() -> Parser:
    parser = Parser(prog="make_data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("--data_folder", type=Path, help="photos; sub-folders too")
    out_help = "a new folder, or one made by this script to go on with"
    parser.add_argument("--out_folder", type=path_flag("--out_folder"), help=out_help)
    parser.add_argument("--check", type=Path, metavar="DIR", help="only check what an earlier run left there")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--detector",
        default="auto",
        help="yunet (fetched when first used; yunet+sface or yunet+FILE.onnx for a recogniser with it), opencv (needs "
        "no download), buffalo_l or another insightface pack (non-commercial research only), mini (for the miniature's "
        "portraits); auto (default): what --model brings, else the first that is there of buffalo_l, yunet and opencv",
    )
    models.add_argument(
        "--parser", default="auto", help="facer, or mini; auto (default): what --model brings, else facer"
    )
    models.add_argument(
        "--model", type=Path, help="model folder with a pack and a parser of its own (mini without it: models/mini)"
    )
    models.add_argument("--device", default="auto", help="auto (default), cuda, cuda:N, mps or cpu")
    models.add_argument("--det_threshold", type=float, default=0.5, help="score of a face to be found (default: 0.5)")
    models.add_argument("--batch_size", type=int, default=8, help="pictures parsed together (default: 8)")
    models.add_argument("--workers", type=int, default=2, help="threads that read and write; 0: none (default: 2)")
    captions = parser.add_argument_group("captions")
    captions.add_argument(
        "--caption",
        choices=CAPTIONS,
        default="none",
        help="none (default): --caption_text for all; sidecar: PHOTO.txt beside the photo; file: --caption_file; llava",
    )
    captions.add_argument("--caption_text", default="a photo of a person", help="(default: a photo of a person)")
    captions.add_argument("--caption_file", type=Path, help=".json, .jsonl, .csv or .tsv: a caption for each photo")
    captions.add_argument("--llava_model", default="llava-hf/llava-1.5-13b-hf", help="folder or name of the model")
    people = parser.add_argument_group("people (written as identity and ref)")
    people.add_argument(
        "--identity",
        choices=IDENTITIES,
        default="none",
        help="none (default); folder: a folder for each person; list: --identity_list; cluster: by the recogniser",
    )
    people.add_argument("--identity_list", type=Path, help=".json, .jsonl, .csv or .tsv: who is in each photo")
    people.add_argument(
        "--identity_threshold",
        type=float,
        help="for cluster: cosine of one person (default: the recogniser's, 0.4 or so)",
    )
    faces = parser.add_argument_group("faces")
    faces.add_argument(
        "--square", choices=SQUARES, default="pad", help="square boxes: pad (default) may pass the border, or inside"
    )
    faces.add_argument("--duplicate_iou", type=float, default=0.7, help="of two masks of one face (default: 0.7)")
    filters = parser.add_argument_group("filters (default: none)")
    filters.add_argument("--min_face_px", type=float, help="shorter side of the face's box")
    filters.add_argument("--min_blur", type=float, help="sharpness; 10 leaves out what is plainly blurred")
    for angle in ("yaw", "pitch", "roll"):
        filters.add_argument(f"--max_{angle}", type=float, metavar="DEGREES")
    filters.add_argument("--min_score", type=float, help="the detector's confidence, 0 to 1")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=FORMATS,
        nargs="+",
        default=["feedface"],
        help="besides records.jsonl, which there always is",
    )
    output.add_argument(
        "--dense", action="store_true", help="records with pose and landmarks, for Dense-Face's training"
    )
    output.add_argument("--timings", type=Path, metavar="FILE", help="write how long each stage took, as JSON")
    return parser


def check_numbers(args: argparse.Namespace) -> None:
    """`UserError` for a number out of its range; the filters check theirs."""
    ranges = {
        "det_threshold": (0, 1),
        "duplicate_iou": (0, 1),
        "identity_threshold": (-1, 1),
        "workers": (0, 256),
        "batch_size": (1, 4096),
    }
    for name, (low, high) in ranges.items():
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and low <= value <= high):
            raise UserError(f"--{name} {value}: must be between {low} and {high}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.check is not None:
        from feedface.preparation.check import check_folder

        return EXIT_USER_ERROR if check_folder(args.check) else 0
    for name in ("data_folder", "out_folder"):
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")
    check_numbers(args)
    if args.parser not in ("auto", "facer", "mini"):
        raise UserError(f"--parser {args.parser!r}: not the name of a face parser; use auto, facer or mini")
    model = args.model
    if model is None and "mini" in (args.detector, args.parser):
        model = default_model()

    # These bring in torch: seconds that a mistyped command line need not wait for.
    from feedface.preparation.filters import Thresholds
    from feedface.preparation.options import Options
    from feedface.preparation.process import Rules
    from feedface.preparation.run import run

    thresholds = Thresholds(
        args.min_face_px, args.min_blur, args.max_yaw, args.max_pitch, args.max_roll, args.min_score
    )
    return run(
        Options(
            data=args.data_folder,
            out=args.out_folder,
            model=model,
            detector=args.detector,
            parser=args.parser,
            device=args.device,
            det_threshold=args.det_threshold,
            rules=Rules(args.duplicate_iou, args.square, thresholds),
            caption=args.caption,
            caption_text=args.caption_text,
            caption_file=args.caption_file,
            llava_model=args.llava_model,
            identity=args.identity,
            identity_list=args.identity_list,
            identity_threshold=args.identity_threshold,
            formats=tuple(args.format),
            dense=args.dense,
            workers=args.workers,
            batch_size=args.batch_size,
            timings=args.timings,
        )
    )


def cli() -> None:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # also before and after the pictures
    # Libraries switch off warnings of theirs for a moment, which fails where several threads do.
    warnings.simplefilter("ignore")
    run_cli(main)

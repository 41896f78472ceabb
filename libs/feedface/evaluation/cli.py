"""The command line of evaluate.py: options, their checks, and who is called with them."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, path_flag
from feedface.common.places import default_model
from feedface.evaluation.people import FIRST_IDENTITY, GALLERY, MAX_IDENTITIES
from feedface.evaluation.subject_prompts import SETS
from feedface.settings import MAX_SEED, PRESET_NAMES, UNCOND_MODES, Settings, check_range, parse_size

PROTOCOLS = ("ppr10k", "mini", "adaface")

# What a protocol takes where nothing is said: the paper's numbers; a few minutes on two cores.
DEFAULTS = {
    "ppr10k": {"references": [4], "base_images": 20, "data": Path(), "judge": "buffalo_l"},
    "mini": {"references": [0, 1, 4], "base_images": 1, "identities": 100, "samples_per_identity": 4,
             "detector": "truth"},
    "adaface": {"references": [4], "base_images": 0, "judge": "buffalo_l", "prompt_set": "dreambench",
                "guidance": [4.0, 1.0]},
}  # fmt: skip
OF_MINI = ("identities", "samples_per_identity", "inspector", "detector")
# Options that not every protocol takes.
OPTIONS = {"ppr10k": ("data", "cases", "judge"), "mini": OF_MINI, "adaface": ("data", "judge", "prompt_set")}


def make_parser(description: str) -> Parser:
    parser = Parser(prog="evaluate.py", description=description, allow_abbrev=False)
    parser.add_argument("--protocol", choices=PROTOCOLS, required=True, help="who is drawn, and who judges")
    parser.add_argument(
        "--out", type=path_flag("--out"), default=Path("outputs/evaluation"), help="(default: %(default)s)"
    )
    systems = parser.add_argument_group("systems")
    systems.add_argument("--model", type=Path, nargs="+", help="model folders (default: models/mini)")
    systems.add_argument("--ckpt_path", type=Path, help="other face-controlnet weights, as in inference.py")
    systems.add_argument(
        "--systems", type=Path, nargs="+", help="several: model folders, JSON lists of {name, model, ckpt_path?, "
        "settings?, pool?, …}, or both",
    )  # fmt: skip
    systems.add_argument(
        "--references", type=int, nargs="+", help="pictures shown, at most; several numbers: each is a system "
        "(default: 4; mini: 0 1 4)",
    )  # fmt: skip
    systems.add_argument(
        "--preset", choices=PRESET_NAMES, help="as in inference.py (this and the next five: the model's own)"
    )
    systems.add_argument("--steps", type=int, help="evaluations of the model")
    systems.add_argument(
        "--guidance", type=float, nargs="+", metavar="G", help="g in e_u + g (e_c - e_u); the paper's scale is g - 1; "
        "two numbers: of the first and the last step",
    )  # fmt: skip
    systems.add_argument("--face_scale", type=float, help="strength of the face, 0 to 5")
    systems.add_argument("--uncond", choices=UNCOND_MODES, help="what the unconditional half sees")
    systems.add_argument("--size", help="of the pictures in pixels: 512, or 512x768 (width x height)")
    common = parser.add_argument_group("pictures")
    common.add_argument("--samples", type=int, default=1, help="pictures a prompt (default: %(default)s)")
    common.add_argument(
        "--base_images", type=int, help="pictures a prompt without a face, for the normalisation and the background; "
        "0: neither (default: 20; mini: 1)",
    )  # fmt: skip
    common.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    common.add_argument("--batch_size", type=int, help="pictures at a time (default: as many as fill 4 of 512 px)")
    common.add_argument("--device", default="auto", help="auto (default), cuda, cuda:N, mps or cpu")
    common.add_argument(
        "--dtype",
        default="auto",
        help="auto (default: fp16 on a GPU, on a CPU bf16 where that is faster), fp32, bf16 or fp16",
    )
    common.add_argument("--clip", help="CLIP that judges, a folder or a name (default: the model's, if it has one)")
    photos = parser.add_argument_group("--protocol ppr10k")
    photos.add_argument("--data", type=Path, help="folder that the cases' pictures are in")
    photos.add_argument("--cases", type=Path, nargs="+", help="job files in the authors' schema, or folders of them")
    photos.add_argument("--judge", help="face models that judge: buffalo_l (default) or another insightface pack, mini")
    subjects = parser.add_argument_group("--protocol adaface", "--data and --judge as above; guidance falls, 4 to 1")
    subjects.add_argument("--prompt_set", choices=SETS, help="prompts of each subject (default: dreambench)")
    mini = parser.add_argument_group("--protocol mini")
    mini.add_argument("--identities", type=int, help="people (default: 100)")
    mini.add_argument("--samples_per_identity", type=int, help="prompts a person (default: 4)")
    mini.add_argument("--inspector", help="the judge's folder (default: the model's own)")
    mini.add_argument("--detector", help="what cuts the references: truth (default), auto, mini, opencv, a pack")
    return parser


def parse(arguments: Sequence[str], description: str = "") -> argparse.Namespace:
    """`UserError` for what can be known to be wrong before anything is loaded."""
    args = make_parser(description).parse_args(arguments)
    args.command = shlex.join(["python", "evaluate.py", *arguments])
    for key in dict.fromkeys(key for keys in OPTIONS.values() for key in keys):
        if key not in OPTIONS[args.protocol] and getattr(args, key) is not None:
            raise UserError(f"--{key} does not go with --protocol {args.protocol}")
    for key, value in DEFAULTS[args.protocol].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.protocol == "adaface" and args.data is None:
        raise UserError("--data is missing: a folder with a folder of pictures of each subject")
    if args.protocol == "ppr10k" and args.cases is None:
        raise UserError("--cases is missing: job files, or a folder of them (json_examples/ has some)")
    if args.protocol == "mini":
        check_range("--identities", args.identities, 2, MAX_IDENTITIES)
        check_range("--samples_per_identity", args.samples_per_identity, 1, 64)
    for count in args.references:
        check_range("--references", count, 0, 32)
    args.references = sorted(set(args.references))
    check_range("--samples", args.samples, 1, 1000)
    check_range("--base_images", args.base_images, 0, 1000)
    if args.batch_size is not None:
        check_range("--batch_size", args.batch_size, 1, 4096)
    check_range("--seed", args.seed, 0, MAX_SEED - 2**40)
    if args.systems is not None and (args.model or args.ckpt_path):
        raise UserError("--systems names its own models: leave out --model and --ckpt_path")
    size = None if args.size is None else parse_size(args.size)
    args.settings = Settings(args.steps, args.guidance, args.face_scale, size, args.uncond, args.preset)
    return args


def main(arguments: Sequence[str] | None = None, description: str = "") -> int:
    args = parse(sys.argv[1:] if arguments is None else arguments, description)

    # These bring in torch: seconds that a mistyped command line need not wait for.
    from feedface.evaluation.systems import gather_systems, name_systems

    if args.systems is not None:
        systems = gather_systems(args.systems, args.references, args.settings)
    else:
        models = args.model or [default_model()]
        systems = name_systems(models, args.references, args.settings, args.ckpt_path)
    check_methods(systems)
    return evaluate(args, systems)


def check_methods(systems: Sequence) -> None:
    """`UserError` for a system that shall show people and has no method, before any other is drawn."""
    from feedface.inference.model_files import shows_faces

    for system in systems:
        if system.references and not shows_faces(system.model, system.ckpt_path):
            raise UserError(
                f"{system.model}: has no method to show a face with; name one (ckpt_path), or give the system "
                '"references": 0 in a JSON list'
            )


def evaluate(args: argparse.Namespace, systems: Sequence) -> int:
    """Load the judges, open the systems one after the other; returns the exit code."""
    from feedface.common.device import limit_threads, pick_device, pick_devices, pick_dtype
    from feedface.common.processes import ProcessGroup
    from feedface.common.saving import check_writable
    from feedface.evaluation.benchmark import BenchmarkPlan, run
    from feedface.evaluation.generators import Bundles, ModelGenerator, RealGenerator
    from feedface.evaluation.judges import PackJudge
    from feedface.evaluation.judging import mini_judges, photo_judges
    from feedface.evaluation.protocols import MiniCases, PhotoCases, SubjectCases

    group = ProcessGroup()
    check_writable(args.out)
    device = pick_device(pick_devices(args.device, group.local_index)[1])
    dtype = pick_dtype(args.dtype, device)
    limit_threads(group.local_count)
    bundles = Bundles(device, dtype)
    first, shown = systems[0], max(1, *(system.references for system in systems))

    def load() -> tuple:
        if args.protocol == "ppr10k":
            protocol = PhotoCases(args.cases, args.data, shown, args.seed)
            judges = photo_judges(args.judge, args.clip, bundles.get(first), device) if protocol.names else None
            return protocol, judges
        if args.protocol == "adaface":
            bundle = bundles.get(first)
            word = (bundle.method and bundle.method.subject_word) or "z"
            protocol = SubjectCases(args.data, args.prompt_set, shown, args.seed, word)
            return protocol, photo_judges(args.judge, args.clip, bundle, device) if protocol.names else None
        bundle = bundles.get(first)
        judges = mini_judges(args.inspector, args.clip, bundle, device)
        stride = max(args.samples, args.base_images)
        people = (args.identities, args.samples_per_identity, shown, bundle.image_size, args.seed, stride)
        return MiniCases(*people, args.detector, bundle.faces_root), judges

    def opened(system):
        def make(cases) -> ModelGenerator:
            bundle = bundles.get(system)
            if judges and isinstance(judges.face, PackJudge):
                judges.face.check_apart(bundle)
            return ModelGenerator(system, bundle, device, dtype, args.batch_size)

        return make

    protocol, judges = group.each(load)
    generators = [opened(system) for system in systems]
    about = {"samples": args.samples, "base_images": args.base_images, "seed": args.seed}
    if args.protocol == "mini":
        about |= {"first_identity": FIRST_IDENTITY, "gallery_pictures": GALLERY, "chance": 1 / args.identities}
        about |= {"reference_crops": args.detector, "references_with_a_face_found": round(protocol.found, 4)}
        generators = [
            lambda cases: RealGenerator(cases, device),
            lambda cases: RealGenerator(cases, device, bundles.get(first)),
            *generators,
        ]
    told = {"protocol": args.protocol, "command": args.command, "cases": about}
    return run(protocol, generators, judges, BenchmarkPlan(args.out, args.samples, args.base_images, told), group)

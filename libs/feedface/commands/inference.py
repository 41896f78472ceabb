"""Put a given person into pictures that a text describes.

One person, one or several pictures of them:
    python inference.py --prompt "a smiling man with a red hat" --image face.png --output outputs
    python inference.py --prompt "a woman on a beach" --image a.png b.png --n_samples 4 --n_iter 2 --seed 7

A model with FlashFace also blends two people, and any folder in its authors' form (with refnet/) is such a model:
    python inference.py --method flashface --prompt "a woman on a beach" --image a.png b.png c.png d.png
    python inference.py --method flashface --prompt "a man in a city" --image a.png --blend b.png --blend_weight 0.3

With a picture to begin with: changed as a whole, or only where a mask is black (any method):
    python inference.py --prompt "a watercolour" --image face.png --init picture.png --strength 0.6
    python inference.py --prompt "a woman on a beach" --image face.png --init picture.png --mask mask.png

A model with Dense-Face turns heads, and puts a person's face into base pictures; a folder of them by a folder of people
gives BASE_PERSON_PHOTO.png for each:
    python inference.py --method denseface --prompt "a photo of *" --image face.png --pose=-20,5,0
    python inference.py --method denseface --mode inpaint --base picture.png --image face.png
    python inference.py --method denseface --mode inpaint --base cropped_face --people reference_id --output output

Batches: JSON files (see json_examples/), several of them, or a folder of them; each job gets a folder under --output:
    python inference.py -j json_examples/man.json
    python inference.py -j json_examples --n_samples 4

Faster, or exacter (docs/performance.md has the figures); less memory:
    python inference.py --prompt "a man with a red hat" --image face.png --preset fast
    python inference.py --model models/feedface-v1 --low_memory --prompt "…" --image path/to/face.jpg

The authors' full-size weights (models/README.md says which files), as they are or converted:
    python inference.py --model models --prompt "a beautiful smiling woman" --image path/to/face.jpg
    python inference.py --config configs/train_config.py --ckpt_path models/feed-4800000.pt -j json_examples
    python inference.py --model models/feedface-v1 --dtype bf16 --prompt "…" --image path/to/face.jpg

Left in the output folder: numbered PNGs (prompt, seed, model and settings in their metadata), the face crops the model
was shown (reference_….png), and of each run that made pictures results_0000.json (settings, pictures, similarities) and
sheet_0000.png (references and samples); those of the last run are in results.json and sheet.png too. A picture that was
made before in the same way is not made again. Nothing is overwritten, also by runs that share the folder at one time.
Exit codes: 0, 2 for bad input (in a batch: when any job failed; the others are done), 130 for Ctrl-C.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import EXIT_USER_ERROR, UserError, one_line, path_flag, run_cli
from feedface.common.places import default_model, find_config
from feedface.common.saving import check_writable
from feedface.faces.choose import check_choice
from feedface.inference.config_file import ConfigFile, read_config
from feedface.inference.jobs import Job, read_jobs
from feedface.inference.somebody import SUFFIX, parse_people
from feedface.settings import (
    MAX_SAMPLES,
    MAX_SEED,
    PRESET_NAMES,
    UNCOND_MODES,
    Settings,
    check_prompt,
    check_range,
    parse_size,
)

MODES = ("edit", "generate", "inpaint")
FACE_PROMPT = "a close-up photo of * ."  # Dense-Face's own
GIVE = "give --prompt and --image, or -j with job files (python inference.py --help)"


def make_parser() -> Parser:
    parser = Parser(prog="inference.py", description=__doc__)
    what = parser.add_argument_group("what to draw")
    what.add_argument("--prompt", help="what the picture shows; (word:1.3) counts more, (word:0.6) less")
    what.add_argument(
        "--negative_prompt", help="what the picture is led away from; needs a model or --uncond with an empty prompt"
    )
    what.add_argument("--image", nargs="+", metavar="FILE", help="pictures of one person")
    what.add_argument(
        "--person",
        action="append",
        metavar="NAME[:WORD]=FILE,…",
        help="pictures of somebody, or a .person file, by a name that the prompt uses; once for each person. The name "
        "stands for 'a person', or for WORD",
    )
    what.add_argument(
        "--region",
        action="append",
        metavar="NAME=X0,Y0,X1,Y1",
        help="where in the picture that person is, in parts of it, or a mask file; without it faces are found in a "
        "picture drawn without them, from the left",
    )
    what.add_argument(
        "--save_person", type=path_flag("--save_person"), metavar="FILE.person", help="keep the person of --image"
    )
    what.add_argument("--blend", nargs="+", metavar="FILE", help="pictures of another person to blend with (flashface)")
    what.add_argument(
        "--blend_weight", type=float, default=0.5, help="how much of the other person is shown, 0 to 1 (0.5)"
    )
    what.add_argument(
        "-j",
        "--json",
        nargs="+",
        metavar="FILE",
        help="job files, or folders of them, instead; a job may set its own "
        "seed, n_samples, preset, guidance, face_scale, size, negative_prompt and others",
    )
    what.add_argument("--output", type=path_flag("--output"), default=Path("outputs"), help="folder to write to")
    what.add_argument(
        "--format", choices=("png", "jpeg", "webp"), default="png", help="of the pictures (png keeps every bit)"
    )
    begin = parser.add_argument_group("a picture to begin with")
    begin.add_argument(
        "--mode",
        choices=MODES,
        help="edit: the prompt alone, with nobody's face; generate: the whole picture shows the person; inpaint: the "
        "face in --base does (default: inpaint with --base, else generate)",
    )
    begin.add_argument("--base", metavar="FILE", help="picture, or folder of them, whose face is drawn anew")
    begin.add_argument(
        "--people", metavar="FOLDER", help="with a folder as --base: NAME/ (or NAME/images/) with photos of each person"
    )
    begin.add_argument("--init", metavar="FILE", help="picture that is changed, by --strength")
    begin.add_argument(
        "--mask",
        metavar="FILE",
        help="grey picture as large as --init or --base (or a folder, of the names in --base): white is kept, black is "
        "drawn anew; without it, of --base the face is",
    )
    begin.add_argument(
        "--strength", type=float, default=1.0, help="how much is drawn anew: above 0 to 1, all of it (default: 1)"
    )
    begin.add_argument(
        "--dense",
        action="store_true",
        help="beside each picture its face parts, depth and landmarks, as the model sees them (denseface with dense "
        "heads): NUMBER_dense.png, and NUMBER_dense.json with landmarks and attributes",
    )
    begin.add_argument(
        "--pose",
        metavar="YAW,PITCH,ROLL",
        help="how the head is turned, in degrees (denseface): to the picture's left, up, clockwise; or a photo to take "
        "it from (default with --base: its own)",
    )
    faces = parser.add_argument_group("faces")
    faces.add_argument("--no_detect", action="store_true", help="the pictures already are face crops")
    faces.add_argument(
        "--detector",
        default="auto",
        help="mini (the model's own pack), yunet (photos; fetched when first used; yunet+sface or yunet+FILE.onnx for "
        "a recogniser with it), opencv (needs no download), buffalo_l or another insightface pack (non-commercial "
        "research only); auto (default): the first that is there of mini, buffalo_l, yunet and opencv",
    )
    faces.add_argument(
        "--face",
        metavar="WHICH",
        help="of several faces in a picture: most-like (the other pictures' faces; the default if the detector has a "
        "recogniser, as mini and buffalo_l), largest (else the default), left, right, or N, the N-th from the left",
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        type=path_flag("--model"),
        help="model folder, user/name of the Hugging Face hub, or a Stable Diffusion 1.x or 2.x: a diffusers folder, "
        ".safetensors or .ckpt (default: the "
        "one --ckpt_path belongs to, else the config's, else models/mini)",
    )
    model.add_argument(
        "--method",
        metavar="KIND",
        help="how the person is shown, feedface, flashface or adaface: the model must have it; without --model, the "
        "first of models/ that has it; feedface+adaface: one of them is the model's, the other that of --ckpt_path",
    )
    model.add_argument(
        "--ckpt_path",
        type=path_flag("--ckpt_path"),
        help="method to use: feed-4800000.pt, our folder, a training checkpoint",
    )
    model.add_argument(
        "--lora",
        nargs="+",
        default=(),
        metavar="FILE[:STRENGTH]",
        help="LoRA files (.safetensors) for Stable Diffusion, each with its strength (default: 1)",
    )
    model.add_argument(
        "--clip_skip", type=int, default=0, help="last layers of Stable Diffusion's text encoder to leave out (0)"
    )
    model.add_argument(
        "--subject_word",
        metavar="WORD",
        help="with AdaFace, the person's word in prompts: 'a photo of z on a beach' (default: the model's, z)",
    )
    model.add_argument("--config", help="config file (.py): its `model`, `control` and `sample`; options come first")
    model.add_argument("--device", default="auto", help="auto (default), cuda, cuda:N, mps or cpu")
    model.add_argument(
        "--dtype",
        default="auto",
        help="auto (default: fp16 on a GPU, on a CPU bf16 where that is faster), fp32, bf16 or fp16",
    )
    model.add_argument(
        "--low_memory",
        action="store_true",
        help="have one part of the model in memory at a time, each read once a run: all texts, then all latents, then "
        "all pictures; the least memory, the same pictures, which come at the end",
    )
    model.add_argument(
        "--compile",
        action="store_true",
        help="compile the model's blocks: faster steps after a minute of compiling; needs a C++ compiler",
    )
    model.add_argument(
        "--int8",
        action="store_true",
        help="weights in 8 bits: a quarter of fp32's memory, and faster on a CPU only; pictures change a little, on a "
        "CPU also with the batch they are in",
    )
    sampling = parser.add_argument_group("sampling (defaults: the model's own, else preset balanced)")
    sampling.add_argument("--n_samples", type=int, default=1, help="pictures per prompt (default: 1)")
    sampling.add_argument("--n_iter", type=int, default=1, help="how many times n_samples (default: 1)")
    sampling.add_argument(
        "--batch_size",
        type=int,
        help="pictures drawn at a time, of whichever prompts and people (default: what should fit into memory); more "
        "is faster on a GPU and takes more memory",
    )
    sampling.add_argument(
        "--seed", type=int, default=0, help="of a prompt's first picture; the next add 1 each; -1: any, which is said"
    )
    sampling.add_argument(
        "--preset",
        choices=PRESET_NAMES,
        help="how much work a picture takes: quality (approximates nothing), balanced, or fast (the model's few-step "
        "adapter if it has one); sets steps, scheduler, intervals and reuse, which may each be given beside it",
    )
    sampling.add_argument("--steps", type=int, help="evaluations of the model, 1 to 999: time grows with them")
    sampling.add_argument(
        "--scheduler",
        metavar="NAME",
        help="solver: dpmsolver++, dpmsolver++3m or unipc (the same time a step; also with :karras or :uniform), "
        "dpmsolver++singlestep (the release's), ddim",
    )
    sampling.add_argument(
        "--guidance_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="guidance only at these timesteps, of 0 (clean) to 1000 (noise): a step outside takes about half the "
        "time; a narrow interval follows the prompt less",
    )
    sampling.add_argument(
        "--face_interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="the face only at these timesteps: saves its share of the steps outside; a narrow interval costs likeness",
    )
    sampling.add_argument(
        "--reuse",
        type=int,
        metavar="K",
        help="evaluate the model's deep blocks at every K-th step only: faster steps, less exact (1: at each)",
    )
    sampling.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        metavar="G",
        help="g in e_u + g (e_c - e_u), 0 to 50; the paper's and release's scale is g - 1; two numbers: of the first "
        "and the last step",
    )
    sampling.add_argument(
        "--rescale",
        type=float,
        help="takes a guided prediction's contrast back to that of the prompt alone, 0 (not at all, default) to 1",
    )
    sampling.add_argument(
        "--uncond",
        choices=UNCOND_MODES,
        help="what guidance leads away from: noise in the text's place (true_uncond; U-ViT), the empty or negative "
        "prompt (empty_token), or that with a zero face (paper); default: the model's",
    )
    sampling.add_argument("--face_scale", type=float, help="strength of the face, 0 to 5 (release: 0.8)")
    sampling.add_argument(
        "--face_box",
        nargs=4,
        type=float,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="where the face shall be, in shares of width and height, 0 to 1 (flashface_official)",
    )
    sampling.add_argument("--size", help="of the pictures in pixels: 512, or 512x768 (width x height)")
    return parser


def find_jobs(args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """The jobs the command line asks for, and the problems of those that cannot be run."""
    if args.json:
        if args.prompt is not None or args.image or args.person:
            raise UserError("-j takes prompts and pictures from its files: leave out --prompt, --image and --person")
        return read_jobs(args.json)
    if args.prompt is None and args.base:
        args.prompt = FACE_PROMPT
    if args.prompt is None:
        raise UserError(GIVE)
    try:
        check_prompt(args.prompt)
    except UserError as error:
        raise UserError(f"--prompt: {error}") from None
    if args.person and (args.image or args.blend):
        raise UserError("--person: names people and their pictures; leave out --image and --blend")
    people = parse_people(args.person or (), args.region or ())
    return [Job(None, (args.prompt,), tuple(map(Path, args.image or ())), people=people)], []


def check_modes(args: argparse.Namespace) -> None:
    """`UserError` for options of pictures to begin with that do not go together."""
    check_range("--strength", args.strength, 0, 1)
    mode = args.mode or ("inpaint" if args.base else "generate")
    wrong = [
        (args.base and args.init, "--base and --init: each is a picture to begin with; give one"),
        (args.mask and not (args.base or args.init), "--mask: of --init or --base; give one of them"),
        (args.people and not args.base, "--people: whose faces --base gets; give --base, a folder of pictures"),
        (mode == "inpaint" and not args.base, "--mode inpaint: give the picture whose face is drawn anew as --base"),
        (args.base and mode != "inpaint", f"--mode {mode}: leave out --base, or use --mode inpaint (or --init)"),
        (mode == "edit" and (args.image or args.pose), "--mode edit: shows nobody; leave out --image and --pose"),
        (args.json and (args.base or args.init or args.mode), "-j: takes no --mode, --base and --init"),
        (args.base and len(args.person or ()) > 1, "--base: its one face is drawn anew; give one --person"),
        (not args.strength, "--strength 0: nothing would be drawn; use a number above 0, and at most 1"),
    ]
    for found, why in wrong:
        if found:
            raise UserError(why)


def check_faces(model: str | Path, ckpt_path: str | None, jobs: Sequence[Job]) -> None:
    """`UserError` for a job without pictures, unless the model can show nobody: before anything large is read."""
    if all(job.images or job.people for job in jobs):
        return
    from feedface.inference.model_files import shows_faces

    if shows_faces(model, ckpt_path):
        raise UserError(GIVE)


def check_pictures(args: argparse.Namespace, jobs: Sequence[Job]) -> None:
    """`UserError` for a picture named on the command line that cannot be opened: before anything large is read.

    Those of job files are tried one by one: one that is missing stops its own job alone.
    """
    from feedface.common.images import open_image

    named = [] if args.json else [path for job in jobs for path in job.images]
    named += [path for path in (args.init, args.base, args.mask) if path and not Path(path).is_dir()]
    for path in [*named, *(args.blend or ())]:
        with open_image(path):
            pass


def keep_person(pipe, job: Job, plan, detector, path: Path) -> None:
    """Write the person of a job's pictures as a file."""
    from feedface.faces.references import find_faces
    from feedface.inference.person import save_person

    if path.suffix != SUFFIX or not job.images:
        raise UserError(f"--save_person {path}: keeps the person of --image in a file whose name ends in {SUFFIX}")
    references, _ = find_faces(job.images, detector if plan.detect else None, plan.face)
    save_person(path, pipe, references, detector.name)
    print(f"person kept in {path}")


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    # All that can be checked quickly comes before the model is loaded.
    check_range("--n_samples", args.n_samples, 1, MAX_SAMPLES)
    check_range("--n_iter", args.n_iter, 1, 100_000)
    check_range("--clip_skip", args.clip_skip, 0, 64)
    check_range("--seed", args.seed, -1, MAX_SEED - args.n_samples * args.n_iter)
    if args.seed == -1:
        args.seed = random.SystemRandom().randrange(2**31)
        print(f"note: --seed {args.seed} was drawn; it makes the same pictures again")
    check_range("--blend_weight", args.blend_weight, 0, 1)
    if args.blend and not (args.image or args.json):
        raise UserError("--blend: somebody to blend with --image's person; give --image too")
    if args.batch_size is not None:
        check_range("--batch_size", args.batch_size, 1, 4096)
    settings = Settings(
        steps=args.steps,
        guidance=args.guidance,
        face_scale=args.face_scale,
        size=None if args.size is None else parse_size(args.size),
        preset=args.preset,
        scheduler=args.scheduler,
        guidance_interval=args.guidance_interval,
        face_interval=args.face_interval,
        reuse=args.reuse,
        uncond=args.uncond,
        negative_prompt=args.negative_prompt,
        rescale=args.rescale,
        face_box=args.face_box,
    )
    check_modes(args)
    face = None if args.face is None else check_choice(args.face)
    if face is not None and args.no_detect:
        raise UserError("--face chooses among the faces found, and --no_detect looks for none: leave one of them out")
    config = read_config(find_config(args.config)) if args.config else ConfigFile()
    settings = settings.over(config.settings)
    jobs, problems = find_jobs(args)
    for problem in problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    if not jobs:
        return EXIT_USER_ERROR
    check_pictures(args, jobs)
    check_writable(args.output)

    # These bring in torch: seconds that a mistyped command line need not wait for.
    from feedface.checkpoints.hub import fetch_model, is_hub_name
    from feedface.faces.detect import make_detector
    from feedface.inference.beginnings import Beginnings, run_folders
    from feedface.inference.job_run import RunPlan
    from feedface.inference.model_files import model_with, own_model
    from feedface.inference.runner import run_job, run_jobs
    from feedface.pipeline import FeedFacePipeline

    model = args.model or own_model(args.ckpt_path) or config.model
    if args.method is not None:
        model = model_with(args.method, model, args.ckpt_path)
    model = model or default_model()
    if is_hub_name(str(model)):
        model = fetch_model(str(model))
    if args.mode != "edit" and not args.people:
        check_faces(model, args.ckpt_path, jobs)
    pipe = FeedFacePipeline.from_pretrained(
        model,
        ckpt_path=args.ckpt_path,
        device=args.device,
        dtype=args.dtype,
        control=config.control,
        low_memory=args.low_memory,
        compile=args.compile,
        int8=args.int8,
        clip_skip=args.clip_skip,
        loras=args.lora,
        subject_word=args.subject_word,
        together="+" in (args.method or ""),
    )
    detector = make_detector(args.detector, pipe.bundle.faces_root)
    pipe.settings(settings)  # refuses a size that the model cannot draw, before any face is looked for
    if args.dense:
        from feedface.inference.dense import check_heads

        check_heads(pipe.bundle)
    begin = Beginnings(pipe, detector, settings, face, args.strength, args.mask, args.pose)
    if args.people:
        return run_folders(
            begin, Path(args.base), Path(args.people), args.prompt, args.seed, args.output, args.batch_size
        )
    start, pose, notices = begin.of(args.base, args.init)
    for notice in notices:
        print(f"note: {notice}")
    plan = RunPlan(
        settings,
        args.seed,
        args.n_samples,
        args.n_iter,
        not args.no_detect,
        args.batch_size,
        face,
        tuple(map(Path, args.blend or ())),
        args.blend_weight,
        dense=args.dense,
        start=start,
        strength=args.strength,
        pose=pose,
        format=args.format,
    )
    if args.save_person:
        keep_person(pipe, jobs[0], plan, detector, args.save_person)
    if not args.json:
        run_job(pipe, jobs[0], plan, detector, args.output)
        return 0
    failed = run_jobs(pipe, jobs, plan, detector, args.output)
    return EXIT_USER_ERROR if failed or problems else 0


def cli() -> None:
    run_cli(main)

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

from feedface.commands.inference_options import make_parser
from feedface.common.errors import EXIT_USER_ERROR, UserError, one_line, run_cli
from feedface.common.places import default_model, find_config
from feedface.common.saving import check_writable
from feedface.faces.choose import check_choice
from feedface.inference.config_file import ConfigFile, read_config
from feedface.inference.jobs import Job, read_jobs
from feedface.inference.somebody import SUFFIX, parse_people
from feedface.settings import (
    MAX_SAMPLES,
    MAX_SEED,
    Settings,
    check_prompt,
    check_range,
    parse_size,
)

FACE_PROMPT = "a close-up photo of * ."  # Dense-Face's own
GIVE = "give --prompt and --image, or -j with job files (python inference.py --help)"


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
    args = make_parser(__doc__).parse_args(argv)
    # All that can be checked quickly comes before the model is loaded.
    check_range("--n_samples", args.n_samples, 1, MAX_SAMPLES)
    check_range("--n_iter", args.n_iter, 1, 100_000)
    if args.best is not None:
        check_range("--best", args.best, 1, 100_000)
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
        pag_scale=args.pag_scale,
        pag_interval=args.pag_interval,
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
        cuda_graphs=args.cuda_graphs,
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
        best=args.best,
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

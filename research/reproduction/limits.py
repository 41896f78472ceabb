"""What limits the miniature: how much of a person is left after each part of it, judged by the inspector.

    python -m research.reproduction.limits --model models/mini --out outputs/limits.json
    python -m research.reproduction.limits --out outputs/quick.json --people 20 --training_people 200

VAE: pictures encoded and decoded. Base: pictures noised to a level t and denoised by the U-ViT with their true caption.
Face encoder: a linear probe. Detector: its crops against the renderer's boxes. Data: people trained on against unseen
people. Everything together: 0, 1 and more references. What was trained on is what configs/mini.py says: people from
number 0, scenes from 0. Rows are kept in FILE.part as they come, and the same command goes on where it was stopped.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.common.command_line import Parser
from feedface.common.device import pick_device, pick_dtype
from feedface.common.errors import UserError, run_cli
from feedface.common.json_files import load_json
from feedface.evaluation.cases import FIRST_IDENTITY, GALLERY, crop_references, make_cases
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.mini import Judge, load_judge
from feedface.inference.model_files import load_model, model_digest
from feedface.inference.outputs import check_writable, save_json
from feedface.settings import MAX_SEED, Settings, check_range
from research.reproduction.parts import FIGURES, Parts, by_count, portrait_cases
from research.reproduction.probe import choose_probe, pictures_to_fit

FIRST_HELD_OUT = 5_000  # people that nothing was trained on and nothing else is measured on: they choose the penalty
MAX_TRAINED = FIRST_HELD_OUT  # people are numbered up to there
NEW_SCENES, PICTURES = 100, 200  # and on: nobody was trained on these; the numbers of `make_cases`
TRAINED_SCENES = 10
UNSEEN, TRAINED_PEOPLE, TRAINED_PICTURES = "unseen people", "people trained on, new scenes", "pictures trained on"


def measure_limits(
    bundle: Bundle,
    inspector: Inspector,
    *,
    people: int = 100,
    samples: int = 1,
    references: int = 4,
    training_people: int = 2400,
    training_pictures: int = 2,
    held_out_people: int = 100,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    detector: str = "auto",
    seed: int = 0,
    batch_size: int = 64,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    known: dict | None = None,
    save: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure each part of `bundle` (all of `NETWORKS` loaded) and return what goes into JSON.

    Args:
        people, samples: people of each group and pictures to draw of each.
        references: the larger number of references; the smaller ones are 0 and 1.
        training_people: how many were trained on, from number 0. The probe is fitted on `training_pictures` (>= 2) new
            pictures of each; `held_out_people` others choose its penalty.
        settings: those left None are the model's. The base denoises without guidance.
        known: an earlier result for the same bundle and inspector; taken up if the settings and cases are the same.
        save: called with the result so far after each row.

    Returns:
        settings, cases, rows (see `Parts`), probe, detector, seconds by part, finished.
    """
    begun = time.perf_counter()
    device = torch.device(device)
    full = settings.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple)
    run = {"seed": seed, "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    result = {
        "settings": full.as_json() | run,
        "cases": {
            "people": people,
            "first_unseen_person": FIRST_IDENTITY,
            "chance": 1 / people,
            "samples": samples,
            "references": references,
            "gallery_pictures": GALLERY,
            "detector": detector,
            "probe_people": training_people,
            "probe_pictures": training_pictures,
            "probe_held_out_people": held_out_people,
            "probe_first_held_out_person": FIRST_HELD_OUT,
        },
        "rows": {},
        "probe": None,
        "detector": None,
        "seconds": {},
        "finished": False,
    }
    if known is not None and all(known.get(key) == result[key] for key in ("settings", "cases")):
        result = {key: known[key] for key in result}
    if result["finished"]:
        return result
    before = result["seconds"].get("in all", 0.0)

    def keep() -> None:
        result["seconds"]["in all"] = round(before + time.perf_counter() - begun, 1)
        save(result)

    how = {"seed": seed, "batch_size": batch_size, "device": device, "dtype": dtype}
    parts = Parts(bundle, full, **how, rows=result["rows"], seconds=result["seconds"], save=keep)
    size, new = bundle.image_size, range(NEW_SCENES, NEW_SCENES + references)

    unseen = parts.timed("rendering", make_cases, people, references, samples, size)
    judge = Judge(inspector, unseen)
    crops, _ = crop_references(unseen, "truth", None)
    parts.add_vae(UNSEEN, judge, unseen)
    parts.add_base(UNSEEN, judge, unseen)
    parts.add_drawn(UNSEEN, judge, unseen, None, by_count(0))
    for count in sorted({1, references}):
        parts.add_drawn(UNSEEN, judge, unseen, crops[:, :count], by_count(count))
    detected, found = parts.timed("detector", crop_references, unseen, detector, bundle.faces_root)
    result["detector"] = {"references_with_a_face_found": round(found, 4)}
    parts.add_drawn(UNSEEN, judge, unseen, detected[:, :1], f"{by_count(1)}, detector's crop")

    if result["probe"] is None:
        parts.add_embeddings("the inspector itself", judge, judge.references)
        args = (bundle.method, inspector, training_people, training_pictures, NEW_SCENES, size, device)
        states, targets = parts.timed("probe: pictures", pictures_to_fit, *args)
        others = portrait_cases(FIRST_HELD_OUT, held_out_people, range(GALLERY), new, (), size)
        held_out = parts.features(crop_references(others, "truth", None)[0])
        gallery = Judge(inspector, others).gallery
        probes, tried = parts.timed("probe: fitting", choose_probe, states, targets, held_out, gallery)
        for pooling, probe in probes.items():
            for label, cut in (("", crops), (", detector's crops", detected)):
                parts.add_embeddings(f"linear probe of {pooling}{label}", judge, probe.predict(parts.features(cut)))
        result["probe"] = {"penalty": {pooling: probe.penalty for pooling, probe in probes.items()}, "tried": tried}
        keep()

    trained_people = portrait_cases(0, people, range(GALLERY), new, range(PICTURES, PICTURES + samples), size)
    crops, _ = crop_references(trained_people, "truth", None)
    judge = Judge(inspector, trained_people)
    parts.add_vae(TRAINED_PEOPLE, judge, trained_people)
    for count in sorted({1, references}):
        parts.add_drawn(TRAINED_PEOPLE, judge, trained_people, crops[:, :count], by_count(count))

    # Nothing is shown here, but a judge wants to see a reference.
    ends = (GALLERY, GALLERY + 1, GALLERY + 1 + samples)
    trained = portrait_cases(0, people, range(ends[0]), range(*ends[:2]), range(*ends[1:]), size)
    judge = Judge(inspector, trained)
    parts.add_vae(TRAINED_PICTURES, judge, trained)
    parts.add_base(TRAINED_PICTURES, judge, trained)
    result["finished"] = True
    keep()
    return result


def markdown(rows: dict[str, dict[str, dict]]) -> str:
    """The rows as a table; square brackets are 95 % intervals over people."""
    lines = [f"| | {' | '.join(FIGURES.values())} |", "|---" * (len(FIGURES) + 1) + "|"]
    for group, labels in rows.items():
        lines.append(f"| **{group}** |" + " |" * len(FIGURES))
        for label, figures in labels.items():
            cells = [_show(name, figures[name]) if name in figures else "–" for name in FIGURES]
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _show(name: str, figure: dict[str, float]) -> str:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if name in ("nearest_identity", "attribute_all"):
        return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:z.2f} [{low:z.2f}, {high:z.2f}]"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m research.reproduction.limits", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", default="models/mini", help="model folder (default: %(default)s)")
    parser.add_argument("--ckpt_path", help="other face-controlnet weights, as in inference.py")
    parser.add_argument("--inspector", help="the judge's folder (default: the model's own)")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--people", type=int, default=100, help="of each group (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1, help="pictures a person to draw (default: %(default)s)")
    parser.add_argument("--references", type=int, default=4, help="besides 0 and 1 (default: %(default)s)")
    parser.add_argument("--training_people", type=int, default=2400, help="trained on, from 0 (default: %(default)s)")
    parser.add_argument("--training_pictures", type=int, default=2, help="of each (default: %(default)s)")
    parser.add_argument("--held_out_people", type=int, default=100, help="for the penalty (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="model evaluations (default: the model's)")
    parser.add_argument("--detector", default="auto", help="auto, mini, opencv, a pack (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--dtype", help="auto, fp32, bf16, fp16")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    args.command = shlex.join(["python", "-m", "research.reproduction.limits", *arguments])
    check_range("--training_people", args.training_people, 2, MAX_TRAINED)
    check_range("--people", args.people, 2, args.training_people)
    check_range("--samples", args.samples, 1, TRAINED_SCENES - GALLERY - 1)
    check_range("--references", args.references, 1, 32)
    check_range("--training_pictures", args.training_pictures, 2, 32)
    check_range("--held_out_people", args.held_out_people, 2, 5_000)
    check_range("--batch_size", args.batch_size, 1, 4096)
    check_range("--seed", args.seed, 0, MAX_SEED - args.people * args.samples)
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a JSON file")
    return args


def read_known(file: Path, same: dict) -> dict | None:
    """What an earlier run left in `file`, if it is about the `same` model and inspector."""
    try:
        known = load_json(file)
    except UserError:
        return None
    is_ours = isinstance(known, dict) and "rows" in known and all(known.get(key) == same[key] for key in same)
    return known if is_ours else None


def main() -> None:
    args = parse()
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    check_writable(args.out.parent)
    bundle = load_model(args.model, args.ckpt_path, device, dtype)
    bundle.image_encoder = load_bundle(args.model, device, dtype, components=["image_encoder"]).image_encoder
    inspector = load_judge(args.inspector, bundle, device)
    same = {
        "model": {"path": str(args.model), "name": bundle.name, "digest": model_digest(bundle)},
        "inspector": args.inspector,
    }
    part = args.out.with_name(args.out.name + ".part")
    names = ("people", "samples", "references", "training_people", "training_pictures", "held_out_people", "detector")
    result = measure_limits(
        bundle,
        inspector,
        **{name: getattr(args, name) for name in (*names, "seed", "batch_size")},
        settings=Settings(args.steps),
        device=device,
        dtype=dtype,
        known=read_known(part, same) or read_known(args.out, same),
        save=lambda result: save_json({"command": args.command, **same, **result}, part),
    )
    save_json({"command": args.command, **same, **result}, args.out)
    part.unlink(missing_ok=True)
    print(markdown(result["rows"]))
    print(f"written to {args.out}")


if __name__ == "__main__":
    run_cli(main)

"""Measure DreamBooth with LoRA on the evaluation's people, beside the same model without a face and with references.

    python -m research.baselines.dreambooth --model models/mini --people 6 --out outputs/dreambooth.json

Beside the file come a contact sheet and every person's pictures, `outputs/dreambooth_pictures/PERSON/`, under a
fingerprint of all that made them: the same command again trains only people whose pictures are not all there. People,
prompts, references and noise are those of `evaluate.py --protocol mini`, and the face-controlnet is shown the very
pictures that DreamBooth learns from. Letters: I people, S samples a person.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.checkpoints.bundle import load_bundle
from feedface.common.command_line import Parser
from feedface.common.contact_sheet import Tile, tile_rows
from feedface.common.device import pick_device
from feedface.common.errors import run_cli
from feedface.common.saving import check_writable, save_json, save_png
from feedface.diffusion.names import UNCOND_MODES
from feedface.evaluation.cases import Cases, crop_references, make_cases
from feedface.evaluation.metrics import Figure
from feedface.evaluation.mini import Judge, load_judge
from feedface.evaluation.people import MAX_IDENTITIES
from feedface.settings import MAX_SEED, Settings, check_range
from research.baselines.compare import (
    BASE,
    REFERENCES,
    differences,
    figures,
    measure_references,
    normalised,
)
from research.baselines.personalise import DreamBoothSettings
from research.baselines.sessions import Sessions, people_of
from research.people import Values, draw_people, judged
from research.results import as_recorded

PARTS = ("backbone", "method", "vae", "text_encoder", "image_encoder")
DREAMBOOTH, FEEDFACE = "dreambooth", "face-controlnet"
SHEET_PEOPLE, SHEET_PROMPTS = 8, 2


def first_people(cases: Cases, count: int) -> Cases:
    """The first `count` people of the cases."""
    return Cases(
        **{name: value[:count] for name, value in vars(cases).items() if name != "asked"},
        asked={name: values[:count] for name, values in cases.asked.items()},
    )


def run(args: argparse.Namespace) -> dict:
    """Learn, draw, judge; writes `args.out` and a contact sheet beside it, and returns what the file holds.

    "differences" are those of the face-controlnet less DreamBooth.
    """
    started = time.perf_counter()
    out = Path(args.out)
    folder = out.with_name(f"{out.stem}_pictures")
    check_writable(out.parent)
    device = pick_device(args.device)
    # Half precision loses the small steps of the training, so the whole comparison runs in single.
    bundle = load_bundle(args.model, device, torch.float32, PARTS)
    training = DreamBoothSettings(**{field.name: getattr(args, field.name) for field in fields(DreamBoothSettings)})
    wanted = Settings(args.steps, args.guidance, args.face_scale, None, args.uncond, pag_scale=0)
    settings = wanted.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple)
    inspector = load_judge(args.inspector, bundle, device)

    # Nearest identity means little among a handful, so the judge always has a crowd in front of it.
    crowd = make_cases(max(args.people, args.crowd), args.references, args.samples_per_identity, bundle.image_size)
    judge = Judge(inspector, crowd)
    cases = first_people(crowd, args.people)
    sessions = Sessions(bundle, training, args.prior_pictures, settings, folder)
    each = args.samples_per_identity
    drawn, records = [], []
    for i, person in enumerate(people_of(cases)):
        pictures, record = sessions(person, args.draw_seed + i * each, args.draw_batch_size)
        drawn.append(pictures)
        records.append(record)
        print(f"{person.case}: {record['steps']} steps, {record['seconds']:.0f} s", flush=True)

    pictures = {DREAMBOOTH: np.stack(drawn)}
    seconds = {DREAMBOOTH: float(np.mean([record["seconds"] + record["drawing_seconds"] for record in records]))}
    how = {"seed": args.draw_seed, "batch_size": args.draw_batch_size, "device": device}
    for name, shown in ((BASE, False), (FEEDFACE, True)):
        begun = time.perf_counter()
        crops = crop_references(cases, "truth", bundle.faces_root)[0] if shown else None
        pictures[name] = draw_people(bundle, cases.prompts, crops, settings, label=name, **how)
        seconds[name] = (time.perf_counter() - begun) / args.people
    systems = {name: judged(judge, drawn) for name, drawn in pictures.items()}
    systems[REFERENCES] = measure_references(judge, cases.references)
    scores = {
        "command": args.command,
        "model": {"path": str(args.model), "name": bundle.name, "digest": sessions.digest},
        "settings": settings.as_json() | {"seed": args.draw_seed, "device": str(device), "dtype": "float32"},
        "training": asdict(training) | {"prior_pictures": args.prior_pictures, "threads": torch.get_num_threads()},
        "cases": {
            "people": [record["case"] for record in records],
            "references": args.references,
            "samples_per_identity": each,
            "judged_among": len(crowd.prompts),
        },
        "systems": {
            name: {"per_person": _plain(values), "figures": _dicts(figures(values))} for name, values in systems.items()
        },
        "normalised": {name: _dicts(normalised(systems, name)) for name in systems},
        "differences": _dicts(differences(systems, FEEDFACE, DREAMBOOTH)),
        "people": records,
        # Of each person: learning and drawing; the prior is drawn once for all people of a class.
        "seconds": {name: round(value, 2) for name, value in seconds.items()}
        | {"prior": sessions.prior_seconds, "in_all": round(time.perf_counter() - started, 1)},
    }
    save_json(scores, out)
    save_png(contact_sheet(cases, pictures), out.with_name(f"{out.stem}_sheet.png"))
    for name, row in scores["systems"].items():
        print(name, json.dumps(row["figures"]))
    return scores


def _dicts(found: dict[str, Figure] | None) -> dict[str, dict[str, float]] | None:
    return None if found is None else {name: figure.as_dict() for name, figure in found.items()}


def _plain(values: Values) -> dict[str, list[float | None]]:
    """For JSON, which has no NaN."""
    return {
        name: [round(float(value), 5) if np.isfinite(value) else None for value in row] for name, row in values.items()
    }


def contact_sheet(cases: Cases, systems: dict[str, np.ndarray]):
    """A row a person: a reference, then each system's pictures [I,S,H,W,3] of the first prompts."""
    rows = []
    for person, prompts in enumerate(cases.prompts[:SHEET_PEOPLE]):
        tiles = [Tile(Image.fromarray(cases.references[person, 0]), "reference")]
        for name, pictures in systems.items():
            shown = zip(pictures[person], prompts[:SHEET_PROMPTS], strict=False)
            tiles += [Tile(Image.fromarray(picture), f"{name}: {prompt}") for picture, prompt in shown]
        rows.append(("", tiles))
    return tile_rows(rows, label_lines=8)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        prog="python -m research.baselines.dreambooth", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", default="models/mini", help="model folder (default: %(default)s)")
    parser.add_argument("--out", required=True, help="the JSON file to write")
    parser.add_argument("--people", type=int, default=6, help="how many to learn (default: %(default)s)")
    parser.add_argument("--crowd", type=int, default=100, help="people the judge chooses among (default: %(default)s)")
    parser.add_argument("--references", type=int, default=4, help="pictures to learn from (default: %(default)s)")
    parser.add_argument("--samples_per_identity", type=int, default=4, help="prompts a person (default: %(default)s)")
    parser.add_argument("--inspector", help="the judge's folder (default: the model's own)")
    parser.add_argument("--prior_pictures", type=int, default=32, help="pictures of others (default: %(default)s)")
    for field in fields(DreamBoothSettings):
        parser.add_argument(
            f"--{field.name}", type=type(field.default), default=field.default, help="training (default: %(default)s)"
        )
    parser.add_argument("--steps", type=int, help="model evaluations (this and the next three: the model's defaults)")
    parser.add_argument("--guidance", type=float, help="g of eps_u + g (eps_c - eps_u)")
    parser.add_argument("--face_scale", type=float, help="of the face-controlnet")
    parser.add_argument("--uncond", choices=UNCOND_MODES)
    parser.add_argument("--draw_seed", type=int, default=0, help="of the noise of pictures (default: %(default)s)")
    parser.add_argument("--draw_batch_size", type=int, default=64, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N, mps")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    args.command = as_recorded("research.baselines.dreambooth", arguments)
    ranges = {
        "people": (1, MAX_IDENTITIES),
        "crowd": (2, MAX_IDENTITIES),
        "references": (1, 32),
        "samples_per_identity": (1, 64),
        "prior_pictures": (1, 4096),
        "draw_batch_size": (1, 4096),
        "draw_seed": (0, MAX_SEED - args.people * args.samples_per_identity),
    }
    for name, (low, high) in ranges.items():
        check_range(f"--{name}", getattr(args, name), low, high)
    return args


def main() -> None:
    run(parse())


if __name__ == "__main__":
    run_cli(main)

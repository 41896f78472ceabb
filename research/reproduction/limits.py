"""What limits the miniature: how much of a person is left after each part of it, judged by the inspector.

    python -m research.reproduction.limits --model models/mini --out outputs/limits.json
    python -m research.reproduction.limits --out outputs/quick.json --people 20 --training_people 200

VAE: pictures encoded and decoded. Base: pictures noised to a level t and denoised by the U-ViT with their true caption.
Face encoder: a linear probe. Detector: its crops against the renderer's boxes. Data: people trained on against unseen
people. Everything together: 0, 1 and more references. Judge: real pictures with somebody else's hair, skin or
features. What was trained on is what configs/mini.py says: people from number 0, scenes from 0. Rows are kept in
FILE.part as they come, and the same command goes on where it was stopped.

Letters: I people, S pictures a person, R references, E embedding width.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.common.command_line import Parser
from feedface.common.device import pick_device, pick_dtype
from feedface.common.errors import UserError, run_cli
from feedface.common.json_files import load_json
from feedface.common.saving import check_writable
from feedface.evaluation.cases import FIRST_IDENTITY, GALLERY, WORLD_SEED, Cases, crop_references, make_cases
from feedface.evaluation.draw import through_vae
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.metrics import (
    bootstrap,
    mean_embedding,
    nearest_identity,
    similarity_to_own,
    similarity_to_strangers,
)
from feedface.evaluation.mini import Judge, load_judge
from feedface.inference.model_files import load_model, model_digest
from feedface.settings import MAX_SEED, Settings, check_range
from feedface.synthetic.world import make_portraits
from research.pages import table
from research.people import by_person, draw_people, flat
from research.reproduction.denoise import through_base
from research.reproduction.parts import PARTS, with_part_of_another
from research.reproduction.probe import choose_probe, face_features, pictures_to_fit
from research.results import as_recorded, store

LEVELS = (200, 400, 600, 800, 1000)
FIRST_HELD_OUT = 5_000  # people that nothing was trained on and nothing else is measured on: they choose the penalty
NEW_SCENES, PICTURES = 100, 200  # and on: nobody was trained on these; the numbers of `make_cases`
TRAINED_SCENES = 10
JUDGED = "unseen people, a part of them somebody else's"
UNSEEN, TRAINED_PEOPLE, TRAINED_PICTURES = "unseen people", "people trained on, new scenes", "pictures trained on"
REFERENCES = "references as embeddings"
NEAREST, SIMILARITY, ATTRIBUTES = "nearest_identity", "similarity_to_another_picture", "attribute_all"
FIGURES = {
    NEAREST: "nearest identity",
    SIMILARITY: "similarity to another picture",
    "similarity_to_strangers": "to strangers",
    ATTRIBUTES: "prompt attributes shown",
}
# Arguments that decide what is measured, and their names in results.
CASES = {
    **{name: name for name in ("people", "samples", "references", "detector")},
    "training_people": "probe_people",
    "training_pictures": "probe_pictures",
    "held_out_people": "probe_held_out_people",
}


def portrait_cases(
    first: int, people: int, gallery: Sequence[int], references: Sequence[int], pictures: Sequence[int], size: int
) -> Cases:
    """`cases.make_cases` for the people from number `first` and any scenes; no attributes are asked for."""
    scenes = [*gallery, *references, *pictures]
    who = np.repeat(np.arange(first, first + people), len(scenes))
    world = make_portraits(who, np.tile(scenes, people), WORLD_SEED, size)
    ends = np.cumsum([len(gallery), len(references)])
    shown, references, drawn = np.split(by_person(world.images, people), ends, axis=1)
    _, boxes, _ = np.split(world.boxes.reshape(people, -1, 4), ends, axis=1)
    prompts = np.array(world.captions).reshape(people, -1)[:, ends[1] :].tolist()
    return Cases(references, boxes, shown, drawn, prompts, asked={})


class Limits:
    """Measures a bundle's parts, one row after another: rows that are there already are not measured again.

    result: filled, and kept in `file` after each row. Its "rows" are group of people or pictures -> what was done to
    them -> figure -> {value, low, high}, with 95 % intervals over people; "seconds" are by part.
    """

    def __init__(
        self, args: argparse.Namespace, bundle: Bundle, settings: Settings, device: torch.device, dtype: torch.dtype,
        result: dict[str, Any], file: Path,
    ):  # fmt: skip
        self.args, self.bundle, self.settings, self.device, self.dtype = args, bundle, settings, device, dtype
        self.result, self.file = result, file
        self.begun, self.before = time.perf_counter(), result["seconds"].get("in all", 0.0)

    def keep(self, **found: Any) -> None:
        self.result.update(found)
        self.result["seconds"]["in all"] = round(self.before + time.perf_counter() - self.begun, 1)
        store(self.file, self.result)

    def timed(self, part: str, work: Callable, *args) -> Any:
        """`work(*args)`, its wall time added to that of `part`."""
        seconds, begun = self.result["seconds"], time.perf_counter()
        found = work(*args)
        seconds[part] = round(seconds.get(part, 0.0) + time.perf_counter() - begun, 1)
        return found

    def group(self, name: str, judge: Judge, cases: Cases) -> Callable[..., None]:
        """`add(label, part, make, *args)`: a row of this group for the pictures [I * S,H,W,3] or [I,S,…] of `make`."""
        rows = self.result["rows"].setdefault(name, {})

        def add(label: str, part: str, make: Callable, *args) -> None:
            if label not in rows:
                pictures = self.timed(part, make, *args).reshape(cases.pictures.shape)
                found, _ = judge.score(pictures, shown=1)
                rows[label] = {figure: found[figure].as_dict() for figure in FIGURES if figure in found}
                self.keep()

        return add

    def vae(self, add: Callable, cases: Cases) -> None:
        """The cases' pictures as they are and through the VAE."""
        add("real pictures", "judging", lambda: cases.pictures)
        add("through the VAE", "VAE", through_vae, self.bundle, flat(cases.pictures), self.args.batch_size, self.device)

    def base(self, add: Callable, cases: Cases) -> None:
        """The cases' pictures noised and denoised."""
        args = (self.settings.steps, self.args.seed, self.args.batch_size, self.device)
        prompts = [prompt for person in cases.prompts for prompt in person]
        for level in LEVELS:
            label = f"noised to {level}, denoised"
            add(label, "base", through_base, self.bundle, flat(cases.pictures), prompts, level, *args)

    def drawn(self, add: Callable, cases: Cases, crops: np.ndarray, count: int, how: str = "") -> None:
        """Pictures drawn from the cases' prompts and the first `count` of the face crops [I,R]."""
        label = f"{count} reference{'' if count == 1 else 's'}{how}"
        options = {"seed": self.args.seed, "batch_size": self.args.batch_size, "device": self.device}
        options |= {"dtype": self.dtype, "label": label}
        shown = crops[:, :count] if count else None
        add(label, "drawing", lambda: draw_people(self.bundle, cases.prompts, shown, self.settings, **options))

    def parts(self, add: Callable, cases: Cases) -> None:
        """The cases' pictures with one part of another person."""
        for label, names in PARTS.items():
            add(label, "rendering", with_part_of_another, cases, names, PICTURES)

    def embeddings(self, label: str, judge: Judge, found: np.ndarray) -> None:
        """Rows for embeddings [I,R,E] of the references: of each picture alone, and of the mean of all."""
        together = {"1 picture": found}
        if found.shape[1] > 1:
            together[f"{found.shape[1]} pictures"] = mean_embedding(found)[:, None]
        for count, some in together.items():
            values = (
                nearest_identity(some, mean_embedding(judge.gallery)),
                similarity_to_own(some, judge.gallery),
                similarity_to_strangers(some, judge.gallery),
            )
            row = {name: bootstrap(one).as_dict() for name, one in zip(FIGURES, values, strict=False)}
            self.result["rows"].setdefault(REFERENCES, {})[f"{label}, {count}"] = row

    def probe(self, inspector: Inspector, judge: Judge, crops: dict[str, np.ndarray]) -> None:
        """What linear probes of the face encoder say of the references: label -> face crops [I,R]."""
        args, method, size = self.args, self.bundle.method, self.bundle.image_size
        new = range(NEW_SCENES, NEW_SCENES + args.references)

        def features(some: np.ndarray) -> torch.Tensor:
            return face_features(method, some.flat, self.device).unflatten(0, some.shape)

        self.embeddings("the inspector itself", judge, judge.references)
        wanted = (args.training_people, args.training_pictures, NEW_SCENES, size, self.device)
        states, targets = self.timed("probe: pictures", pictures_to_fit, method, inspector, *wanted)
        others = portrait_cases(FIRST_HELD_OUT, args.held_out_people, range(GALLERY), new, (), size)
        held_out = features(crop_references(others, "truth", None)[0])
        gallery = Judge(inspector, others).gallery
        probes, tried = self.timed("probe: fitting", choose_probe, states, targets, held_out, gallery)
        for pooling, probe in probes.items():
            for label, some in crops.items():
                self.embeddings(f"linear probe of {pooling}{label}", judge, probe.predict(features(some)))
        self.keep(probe={"penalty": {pooling: probe.penalty for pooling, probe in probes.items()}, "tried": tried})

    def measure(self, inspector: Inspector) -> None:
        """Everything that is missing."""
        args, size = self.args, self.bundle.image_size
        counts = sorted({1, args.references})
        new = range(NEW_SCENES, NEW_SCENES + args.references)

        unseen = self.timed("rendering", make_cases, args.people, args.references, args.samples, size)
        judge = Judge(inspector, unseen)
        add = self.group(UNSEEN, judge, unseen)
        crops, _ = crop_references(unseen, "truth", None)
        self.vae(add, unseen)
        self.base(add, unseen)
        for count in (0, *counts):
            self.drawn(add, unseen, crops, count)
        self.parts(self.group(JUDGED, judge, unseen), unseen)
        detected, found = self.timed("detector", crop_references, unseen, args.detector, self.bundle.faces_root)
        self.result["detector"] = {"references_with_a_face_found": round(found, 4)}
        self.drawn(add, unseen, detected, 1, ", detector's crop")
        if self.result["probe"] is None:
            self.probe(inspector, judge, {"": crops, ", detector's crops": detected})

        scenes = (range(GALLERY), new, range(PICTURES, PICTURES + args.samples))
        known_people = portrait_cases(0, args.people, *scenes, size)
        add = self.group(TRAINED_PEOPLE, Judge(inspector, known_people), known_people)
        crops, _ = crop_references(known_people, "truth", None)
        self.vae(add, known_people)
        for count in counts:
            self.drawn(add, known_people, crops, count)

        # Nothing is shown here, but a judge wants to see a reference.
        first = GALLERY + 1
        known_pictures = portrait_cases(
            0, args.people, range(GALLERY), [GALLERY], range(first, first + args.samples), size
        )
        add = self.group(TRAINED_PICTURES, Judge(inspector, known_pictures), known_pictures)
        self.vae(add, known_pictures)
        self.base(add, known_pictures)
        self.keep(finished=True)


def markdown(rows: dict[str, dict[str, dict]]) -> str:
    """The rows as a table; square brackets are 95 % intervals over people."""
    lines = []
    for group, labels in rows.items():
        lines.append([f"**{group}**", *[""] * len(FIGURES)])
        for label, figures in labels.items():
            lines.append([label, *(_show(name, figures.get(name)) for name in FIGURES)])
    return table(["", *FIGURES.values()], lines)


def _show(name: str, figure: dict[str, float] | None) -> str:
    if figure is None:
        return "–"
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    if name in (NEAREST, ATTRIBUTES):
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
    args.command = as_recorded("research.reproduction.limits", arguments)
    ranges = {
        "training_people": (2, FIRST_HELD_OUT),
        "people": (2, args.training_people),
        "samples": (1, TRAINED_SCENES - GALLERY - 1),
        "references": (1, 32),
        "training_pictures": (2, 32),
        "held_out_people": (2, 5_000),
        "batch_size": (1, 4096),
        "seed": (0, MAX_SEED - args.people * args.samples),
    }
    for name, (low, high) in ranges.items():
        check_range(f"--{name}", getattr(args, name), low, high)
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a JSON file")
    return args


def read_known(file: Path, same: dict) -> dict | None:
    """What an earlier run left in `file`, if it is about the `same` model, judge, settings and cases."""
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
    settings = Settings(args.steps, pag_scale=0).for_model(bundle.defaults, bundle.image_size, bundle.size_multiple)
    drawn_with = {"seed": args.seed, "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    cases = {name: getattr(args, argument) for argument, name in CASES.items()}
    cases |= {"first_unseen_person": FIRST_IDENTITY, "probe_first_held_out_person": FIRST_HELD_OUT}
    same = {
        "model": {"path": str(args.model), "name": bundle.name, "digest": model_digest(bundle)},
        "inspector": args.inspector,
        "settings": settings.as_json() | drawn_with,
        "cases": cases | {"gallery_pictures": GALLERY, "chance": 1 / args.people},
    }
    part = args.out.with_name(args.out.name + ".part")
    result = read_known(part, same) or read_known(args.out, same)
    result = result or {**same, "rows": {}, "probe": None, "detector": None, "seconds": {}, "finished": False}
    if not result["finished"]:
        Limits(args, bundle, settings, device, dtype, result, part).measure(inspector)
    store(args.out, {**result, "command": args.command})
    part.unlink(missing_ok=True)
    print(markdown(result["rows"]))
    print(f"written to {args.out}")


if __name__ == "__main__":
    run_cli(main)

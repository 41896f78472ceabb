"""Measure a mini model on people it never saw, judged by the inspector.

    python -m feedface.evaluation.mini --model models/mini --out outputs/evaluation
    python -m feedface.evaluation.mini --model models/mini --identities 8 --samples_per_identity 2 --out outputs/quick

Every person has pictures of three kinds, all of different scenes: references (shown to the model), gallery pictures
(which say how the person looks elsewhere; nothing but the judge sees them) and prompt pictures (their captions are the
prompts, so the prompt always fits the person's gender, and the pictures themselves say how well a perfect model would
score). All numbers of references get the same prompts and the same noise. Letters: I people, S samples a person,
R references, G gallery pictures.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from feedface.checkpoints.bundle import Bundle
from feedface.device import pick_device, pick_dtype
from feedface.diffusion.guidance import UNCOND_MODES
from feedface.diffusion.sampling import sample
from feedface.encoders import preprocess_face
from feedface.errors import UserError, run_cli
from feedface.evaluation.cases import FIRST_IDENTITY, GALLERY, MAX_IDENTITIES, Cases, crop_references, make_cases
from feedface.evaluation.inspector import Findings, Inspector
from feedface.evaluation.metrics import (
    Figure,
    attribute_hits,
    bootstrap,
    mean_embedding,
    nearest_identity,
    ratio_of_means,
    similarity_to_own,
    similarity_to_strangers,
)
from feedface.evaluation.report import markdown, people_sheet
from feedface.files import atomic_file
from feedface.mini.common import to_pixels, to_uint8
from feedface.model_files import load_model, model_digest
from feedface.output import check_writable, save_json, save_png
from feedface.settings import MAX_SEED, Settings, check_range

SHEET_PEOPLE, SHEET_PROMPTS = 8, 3


@torch.inference_mode()
def encode_faces(bundle: Bundle, crops: np.ndarray, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Face crops [I, R] -> tokens [I, R * n, D], on the CPU."""
    net = bundle.face_controlnet
    rows = []
    for person in crops:
        pixels = torch.stack([preprocess_face(crop, net.face_size) for crop in person])
        rows.append(net.join(net.encode(pixels.to(device, dtype))[None]).cpu())
    return torch.cat(rows)


@torch.inference_mode()
def draw(
    bundle: Bundle,
    prompts: Sequence[str],
    faces: torch.Tensor | None,
    settings: Settings,
    seed: int,
    batch_size: int,
    device: torch.device,
    label: str,
) -> np.ndarray:
    """One picture per prompt, row i with noise from seed + i: uint8 [N, H, W, 3].

    faces: tokens [N, n, D], or None to leave the face-controlnet out. People are mixed in a batch, which is
    several times faster than one person at a time.
    """
    encode = bundle.text_encoder.encode
    empty = None if settings.uncond == "true_uncond" else encode([""])
    pictures = []
    with tqdm(total=len(prompts), desc=label, unit="picture") as bar:
        for start in range(0, len(prompts), batch_size):
            rows = range(start, min(start + batch_size, len(prompts)))
            latents, _ = sample(
                bundle.uvit,
                text=encode([prompts[row] for row in rows]),
                seeds=[seed + row for row in rows],
                steps=settings.steps,
                guidance=settings.guidance,
                uncond_mode=settings.uncond,
                empty_text=empty,
                face_controlnet=bundle.face_controlnet,
                face_tokens=None if faces is None else faces[rows.start : rows.stop].to(device),
                face_scale=settings.face_scale,
            )
            pictures.append(to_uint8(bundle.vae.decode(latents)))
            bar.update(len(rows))
    return np.concatenate(pictures)


@torch.inference_mode()
def through_vae(bundle: Bundle, pictures: np.ndarray, batch_size: int, device: torch.device) -> np.ndarray:
    """Encode and decode pictures uint8 [N, H, W, 3]: what no model behind this VAE can surpass."""
    parts = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    return np.concatenate(
        [to_uint8(bundle.vae.decode(bundle.vae.encode(to_pixels(part, device), sample=False))) for part in parts]
    )


def load_judge(folder: str | None, bundle: Bundle, device: torch.device) -> Inspector:
    """The inspector in `folder`, or the model's own."""
    folder = folder or bundle.components.get("inspector")
    if folder is None:
        raise UserError(f"{bundle.path}: has no inspector; name the folder of one with --inspector")
    return Inspector.from_pretrained(folder, device)


class Judge:
    """The inspector with the people of the cases in front of it: scores sets of pictures [I, S, H, W, 3]."""

    def __init__(self, inspector: Inspector, cases: Cases):
        self.inspector, self.asked = inspector, cases.asked
        self.gallery = self.look(cases.gallery)[0]  # [I, G, E]
        self.references = self.look(cases.references)[0]  # [I, R, E]

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        people, each = pictures.shape[:2]
        found: Findings = self.inspector.inspect(pictures.reshape(-1, *pictures.shape[2:]))
        classes = {name: values.reshape(people, each) for name, values in found.attributes.items()}
        return found.embedding.reshape(people, each, -1), classes

    def score(self, pictures: np.ndarray, shown: int) -> tuple[dict[str, Figure], np.ndarray]:
        """Figures for pictures made with the first `shown` references, and each person's attributes shown [I].

        Similarity to the reference is that to the references shown, or to the first where none was.
        """
        embedding, seen = self.look(pictures)
        figures = {
            "nearest_identity": bootstrap(nearest_identity(embedding, mean_embedding(self.gallery))),
            "similarity_to_another_picture": bootstrap(similarity_to_own(embedding, self.gallery)),
            "similarity_to_reference": bootstrap(similarity_to_own(embedding, self.references[:, : max(shown, 1)])),
            "similarity_to_strangers": bootstrap(similarity_to_strangers(embedding, self.gallery)),
        }
        hits = attribute_hits(seen, self.asked)
        for name, (shown_count, asked_count) in hits.items():
            if asked_count.any():
                figures[f"attribute_{name}"] = bootstrap(shown_count, asked_count, statistic=ratio_of_means)
        return figures, hits["all"][0]


def evaluate(args: argparse.Namespace) -> dict:
    """Run the whole evaluation and write it to `args.out`; returns what `scores.json` holds."""
    started = time.perf_counter()
    device = pick_device(args.device)
    dtype = pick_dtype(args.dtype, device)
    out = Path(args.out)
    check_writable(out)
    bundle = load_model(args.model, args.ckpt_path, device, dtype)
    inspector = load_judge(args.inspector, bundle, device)
    wanted = Settings(args.steps, args.guidance, args.face_scale, None, args.uncond)
    settings = wanted.for_model(bundle.defaults, bundle.image_size, bundle.vae.factor * bundle.uvit.patch_size)

    print(f"rendering {args.identities} people", flush=True)
    each = args.samples_per_identity
    cases = make_cases(args.identities, max(1, *args.references), each, bundle.image_size)
    crops, found = crop_references(cases, args.detector, bundle.faces_root)
    judge = Judge(inspector, cases)
    prompts = [prompt for person in cases.prompts for prompt in person]
    pictures = cases.pictures.reshape(-1, *cases.pictures.shape[2:])

    rows: dict[str, dict[str, Figure]] = {}
    hits: dict[int, np.ndarray] = {}
    seconds: dict[str, float] = {}
    rows["real other picture"], _ = judge.score(cases.pictures, shown=1)
    decoded = through_vae(bundle, pictures, args.batch_size, device)
    rows["real other picture through the VAE"], _ = judge.score(decoded.reshape(cases.pictures.shape), shown=1)
    for count in args.references:
        begun = time.perf_counter()
        label = f"{count} reference{'' if count == 1 else 's'}"
        faces = None
        if count:
            faces = encode_faces(bundle, crops[:, :count], device, dtype).repeat_interleave(each, dim=0)
        drawn = draw(bundle, prompts, faces, settings, args.seed, args.batch_size, device, label)
        seconds[label] = round(time.perf_counter() - begun, 1)
        drawn = drawn.reshape(cases.pictures.shape)
        rows[label], hits[count] = judge.score(drawn, count)
        sheet = people_sheet(
            cases.references[:SHEET_PEOPLE, 0],
            drawn[:SHEET_PEOPLE, :SHEET_PROMPTS],
            [row[:SHEET_PROMPTS] for row in cases.prompts[:SHEET_PEOPLE]],
        )
        save_png(sheet, out / sheet_name(count, args.references))

    relative = {}
    if 0 in hits and hits[0].any():
        relative = {count: bootstrap(hits[count], hits[0], statistic=ratio_of_means) for count in hits if count}
    seconds["in all"] = round(time.perf_counter() - started, 1)
    run_settings = {"seed": args.seed, "device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    scores = {
        "command": args.command,
        "model": {"path": str(args.model), "name": bundle.name, "digest": model_digest(bundle)},
        "settings": asdict(settings) | {"size": list(settings.size)} | run_settings,
        "cases": {
            "identities": args.identities,
            "first_identity": FIRST_IDENTITY,
            "samples_per_identity": each,
            "gallery_pictures": GALLERY,
            "chance": 1 / args.identities,
            "reference_crops": args.detector,
            "references_with_a_face_found": round(found, 4),
        },
        "seconds": seconds,
        "rows": {label: {name: figure.as_dict() for name, figure in row.items()} for label, row in rows.items()},
        "attributes_relative_to_no_face": {str(count): figure.as_dict() for count, figure in relative.items()},
    }
    save_json(scores, out / "scores.json")
    text = markdown(scores)
    with atomic_file(out / "scores.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    print(f"written to {out}: scores.json, scores.md, sheet*.png")
    return scores


def sheet_name(count: int, counts: Sequence[int]) -> str:
    """`sheet.png` is the one to look at first: the fewest references that are not none."""
    first = min((other for other in counts if other), default=0)
    return "sheet.png" if count == first else f"sheet_{count}_references.png"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m feedface.evaluation.mini", description=__doc__.split("\n\n")[0], allow_abbrev=False
    )
    parser.add_argument("--model", default="models/mini", help="model folder (default: %(default)s)")
    parser.add_argument("--ckpt_path", help="other face-controlnet weights, as in inference.py")
    parser.add_argument("--inspector", help="the judge's folder (default: the model's own)")
    parser.add_argument("--out", required=True, help="folder for scores.json, scores.md and the contact sheets")
    parser.add_argument("--identities", type=int, default=100, help="people (default: %(default)s)")
    parser.add_argument("--references", type=int, nargs="+", default=[0, 1, 4], help="numbers of references to try")
    parser.add_argument("--samples_per_identity", type=int, default=4, help="prompts a person (default: %(default)s)")
    parser.add_argument("--detector", default="truth", help="truth (the renderer's boxes), auto, mini, opencv, a pack")
    parser.add_argument("--steps", type=int, help="model evaluations (this and the next three: the model's defaults)")
    parser.add_argument("--guidance", type=float, help="g of eps_u + g (eps_c - eps_u)")
    parser.add_argument("--face_scale", type=float)
    parser.add_argument("--uncond", choices=UNCOND_MODES)
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures at a time (default: %(default)s)")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:N, mps")
    parser.add_argument("--dtype", help="auto, fp32, bf16, fp16")
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    args.command = shlex.join(["python", "-m", "feedface.evaluation.mini", *arguments])
    check_range("--identities", args.identities, 2, MAX_IDENTITIES)
    check_range("--samples_per_identity", args.samples_per_identity, 1, 64)
    check_range("--batch_size", args.batch_size, 1, 4096)
    check_range("--seed", args.seed, 0, MAX_SEED - args.identities * args.samples_per_identity)
    for count in args.references:
        check_range("--references", count, 0, 32)
    args.references = sorted(set(args.references))
    return args


def main() -> None:
    evaluate(parse())


if __name__ == "__main__":
    run_cli(main)

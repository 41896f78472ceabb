"""Dense-Face measured on people that nobody trained on, and sheets of it to look at.

    python -m research.dense_face --model models/mini-unet-denseface --out docs/denseface

Writes poses.png (a row a person: shown, then drawn with the head at each yaw), inpainting.png (a row a base picture,
then its face drawn anew as each person), dense.png (a row a picture drawn: its face parts, depth and landmarks as the
model says them) and figures.json, printed as well:
    pose    the yaw asked for against that of the mini pack's landmarks in what was drawn, in degrees; beside it the
            same measure's error on the renderer's own portraits
    dense   what the heads say of portraits, against the renderer: mean IoU, landmarks in pixels, depth of 0 to 1, of
            each kind of attribute the share that is right; beside each what an answer that is the same for all
            pictures reaches
    kept    the largest difference, of 255, outside the mask of in-painted pictures
Letters: P people, Y yaws.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.common.contact_sheet import Tile
from feedface.common.errors import UserError, run_cli
from feedface.common.files import atomic_file
from feedface.diffusion.state import take
from feedface.evaluation.cases import make_cases
from feedface.evaluation.metrics import Figure, bootstrap
from feedface.evaluation.people import FIRST_IDENTITY, WORLD_SEED
from feedface.faces.detect import make_detector
from feedface.faces.parse import FOLDER as PARSER
from feedface.faces.parse import MiniParser
from feedface.faces.pose import face_pose
from feedface.inference.batching import draw_batch
from feedface.inference.dense import annotations, check_heads, drawn
from feedface.inference.start import base_face, start_with_face
from feedface.methods.base import Identity
from feedface.synthetic.world import make_portraits
from feedface.synthetic.world.scene import ATTRIBUTES
from research.blending import CPU, Artist, save_sheet

YAWS = (-30.0, -20.0, -10.0, 0.0, 10.0, 20.0, 30.0)
MEASURED = (-24.0, -12.0, 0.0, 12.0, 24.0)  # within what training saw: to 32 degrees, and few so far
FRONTAL = (0.0, 0.0, 0.0)
CLASSES = 11


def turned(artist: Artist, people: Identity, prompts: Sequence[str], yaws: Sequence[float]) -> np.ndarray:
    """The people, each with one prompt and noise of their own, at each yaw: uint8 [P,Y,H,W,3]."""
    method = artist.bundle.method
    views = [artist.draw(prompts, method.posed(people, (yaw, 0, 0)), f"yaw {yaw:g}") for yaw in yaws]
    return np.stack(views, axis=1)


def yaw_figures(pictures: np.ndarray, yaws: Sequence[float], bundle: Bundle) -> dict[str, object]:
    """How far the yaw measured is from the one asked for; intervals over people."""
    detector = make_detector("mini", bundle.faces_root)
    found = np.full(pictures.shape[:2], np.nan)
    for place in np.ndindex(found.shape):
        faces = detector.detect(pictures[place])
        if faces:
            found[place] = face_pose(faces[0], detector.name)[0]
    seen = ~np.isnan(found).any(axis=1)
    errors, slopes = np.abs(found[seen] - yaws).mean(axis=1), found[seen] @ np.array(yaws) / np.square(yaws).sum()
    return {
        "error": bootstrap(errors),
        "turned by, for a degree asked": bootstrap(slopes),
        "mean yaw at each asked": dict(zip(yaws, np.nanmean(found, axis=0).round(2).tolist(), strict=True)),
        "without a face": int(np.isnan(found).sum()),
    }


def measure_of_portraits(portraits, bundle: Bundle) -> Figure:
    """Mean error of the yaw that is measured in portraits of a known pose: what no model can surpass."""
    detector = make_detector("mini", bundle.faces_root)
    errors = []
    for picture, (yaw, _, _) in zip(portraits.images, portraits.pose, strict=True):
        if faces := detector.detect(picture):
            errors.append(abs(face_pose(faces[0], detector.name)[0] + yaw))
    return bootstrap(np.array(errors))


def dense_figures(artist: Artist, portraits, people: Identity) -> dict[str, Figure]:
    """What the heads say of each person's portrait, and what the mean of all portraits' truth would reach."""
    prompts = [artist.named(caption) for caption in portraits.captions]
    batches = [slice(at, at + artist.batch_size) for at in range(0, len(prompts), artist.batch_size)]
    parts = [annotations(artist.bundle, portraits.images[b], prompts[b], take(people, b), CPU) for b in batches]
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    side, size = found["parsing"].shape[-1], portraits.images.shape[1]
    masks = np.stack(
        [np.asarray(Image.fromarray(m).resize((side, side), Image.Resampling.NEAREST)) for m in portraits.masks]
    )
    depth = np.stack(
        [np.asarray(Image.fromarray(d).resize((side, side), Image.Resampling.BOX)) for d in portraits.depth]
    )
    usual = np.stack([(masks == number).mean(0) for number in range(CLASSES)]).argmax(0)
    figures = {
        "mean IoU": bootstrap(overlaps(found["parsing"], masks)),
        "mean IoU, the usual parts": bootstrap(overlaps(np.broadcast_to(usual, masks.shape), masks)),
        "depth": bootstrap(np.abs(found["depth"][:, 0] - depth).mean((1, 2))),
        "depth, their mean": bootstrap(np.abs(depth.mean(0) - depth).mean((1, 2))),
    }
    true = portraits.landmarks
    for name, points in (("landmarks", found["landmarks"] * size), ("landmarks, their means", true.mean(0))):
        figures[name] = bootstrap(np.linalg.norm(points - true, axis=-1).mean(1))
    if "attributes" in found:
        figures |= attribute_figures(found["attributes"], artist.bundle.method.attributes, portraits.attributes)
    return figures


def attribute_figures(found: np.ndarray, names: Sequence[str], true: dict[str, np.ndarray]) -> dict[str, Figure]:
    """Of each kind in `names`, "KIND VALUE": how often the likeliest value [P,A] is the true one, and the usual one."""
    figures = {}
    for kind in dict.fromkeys(name.split()[0] for name in names):
        places = [place for place, name in enumerate(names) if name.split()[0] == kind]
        numbers = np.array([ATTRIBUTES[kind].index(names[place].removeprefix(f"{kind} ")) for place in places])
        said = numbers[found[:, places].argmax(axis=1)]
        figures[kind] = bootstrap((said == true[kind]).astype(float))
        figures[f"{kind}, the usual one"] = bootstrap((np.bincount(true[kind]).argmax() == true[kind]).astype(float))
    return figures


def overlaps(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean intersection over union [P] of the classes that are in a picture, of classes [P,g,g]."""
    rows = []
    for one, other in zip(found, true, strict=True):
        pairs = [(one == number, other == number) for number in np.unique(other)]
        rows.append(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))
    return np.array(rows)


def inpainted(artist: Artist, bases: np.ndarray, people: Identity, prompt: str) -> tuple[np.ndarray, int]:
    """Each base's face drawn anew as each person, its pose kept [bases,P,H,W,3]; the most that changed outside."""
    bundle, settings, rows, worst = artist.bundle, artist.settings, [], 0
    detector, parser = make_detector("mini", bundle.faces_root), MiniParser(bundle.extra(PARSER))
    count = len(people["face"])
    for number, base in enumerate(bases):
        face, _ = base_face(base, detector, f"base {number}", None)
        start = start_with_face(base, face, settings.size, parser)
        who = bundle.method.posed(people, face_pose(face, detector.name))
        drawn = draw_batch(bundle, [prompt] * count, range(count), who, settings, CPU, starts=[start] * count)
        finished = np.stack([start.finished(picture) for picture in drawn])
        outside = start.mask == 255
        worst = max(worst, int(np.abs(finished.astype(int) - base)[:, outside].max()))
        rows.append(finished)
    return np.stack(rows), worst


def tiles(pictures: Sequence[np.ndarray], labels: Sequence[str]) -> list[Tile]:
    return [Tile(Image.fromarray(picture), label) for picture, label in zip(pictures, labels, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/mini-unet-denseface"))
    parser.add_argument("--out", type=Path, default=Path("outputs/denseface"))
    parser.add_argument("--people", type=int, default=60, help="whose pictures are measured")
    parser.add_argument("--shown", type=int, default=4, help="rows of each sheet")
    parser.add_argument("--batch_size", type=int, default=20)
    options = parser.parse_args()
    if not 1 <= options.shown <= options.people:
        raise UserError(f"--shown {options.shown}: from 1 to --people, {options.people}")
    bundle = load_bundle(options.model, CPU, torch.float32)
    check_heads(bundle)
    shown, who = options.shown, np.arange(FIRST_IDENTITY, FIRST_IDENTITY + options.people)
    artist = Artist(bundle, make_cases(options.people, 1, 1, bundle.image_size), options.batch_size)
    everyone = artist.people(slice(options.people), 1)
    options.out.mkdir(parents=True, exist_ok=True)

    few = {name: value[:shown] for name, value in everyone.items()}
    views = turned(artist, few, artist.prompts[:shown], YAWS)
    save_sheet(
        options.out / "poses.png",
        [
            (prompt, tiles([crop, *row], ["shown", *(f"{yaw:g}°" for yaw in YAWS)]))
            for prompt, crop, row in zip(artist.prompts, artist.crops[:, 0], views, strict=False)
        ],
    )
    # Bases: scenes of other people than those who are put into them.
    bases = make_portraits(who[-shown:] + 500, np.full(shown, 7), WORLD_SEED, bundle.image_size).images
    painted, kept = inpainted(artist, bases, few, artist.named("a photo of a person"))
    first = [("", tiles([np.full_like(bases[0], 255), *artist.crops[:shown, 0]], ["", *["shown"] * shown]))]
    rows = [("", tiles([base, *row], ["base", *[""] * shown])) for base, row in zip(bases, painted, strict=True)]
    save_sheet(options.out / "inpainting.png", first + rows)
    middle = views[:, len(YAWS) // 2]
    found = annotations(bundle, list(middle), artist.prompts[:shown], bundle.method.posed(few, FRONTAL), CPU)
    rows = [drawn(picture, {k: v[at] for k, v in found.items()}) for at, picture in enumerate(middle)]
    with atomic_file(options.out / "dense.png") as temporary:
        Image.fromarray(np.concatenate([np.asarray(row) for row in rows])).save(temporary, format="PNG")

    portraits = make_portraits(who, np.full(len(who), 300), WORLD_SEED, bundle.image_size)
    figures = {
        "pose": yaw_figures(turned(artist, everyone, artist.prompts, MEASURED), MEASURED, bundle)
        | {"error of the measure, on portraits": measure_of_portraits(portraits, bundle)},
        "dense": dense_figures(artist, portraits, everyone),
        "kept": kept,
    }
    with atomic_file(options.out / "figures.json") as temporary:
        text = json.dumps({"people": options.people, **figures}, indent=1, default=asdict)
        temporary.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    run_cli(main)

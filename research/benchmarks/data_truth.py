"""How right make_data.py is, on portraits whose truth is known: boxes, landmarks, masks, and what it keeps.

    python -m research.benchmarks.data_truth [--pictures 2000] [--keep FOLDER] [--out truth.json]

Nine pictures in ten show one person never trained on, one in twenty two people side by side, one in twenty nobody (the
scenery alone). The mini pack finds, the mini parser parses, no filter is on. Wrongly dropped: one person, but not kept
as a single face. Wrongly kept: kept, but two people or nobody.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.common.errors import run_cli
from feedface.data.transforms import LAPA_VALUES
from feedface.faces.parse import CLASS_NAMES
from feedface.synthetic.world import make_portraits
from feedface.synthetic.world.background import paint_background
from feedface.synthetic.world.canvas import Canvas
from feedface.synthetic.world.scene import sample_scenes
from research.benchmarks.measuring import ROOT
from research.results import store

FIRST_PERSON = 33_000  # nobody is trained on from here on
PER_PERSON = 4
CHUNK = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000, help="default 2000")
    parser.add_argument("--size", type=int, default=96, help="side of a portrait in pixels (default 96)")
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "mini")
    parser.add_argument("--keep", type=Path, help="folder for pictures and records (default: a temporary one)")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        truth = write_pictures(folder / "pictures", args.pictures, args.size)
        command = [sys.executable, str(ROOT / "make_data.py"), "--data_folder", str(folder / "pictures")]
        command += ["--out_folder", str(folder / "data"), "--model", str(args.model), "--detector", "mini"]
        subprocess.run([*command, "--parser", "mini", "--device", "cpu"], check=True)
        result = compare(truth, folder / "data")
    print(json.dumps(result, indent=1))
    if args.out:
        store(args.out, result)


def write_pictures(folder: Path, count: int, size: int) -> dict[str, dict]:
    """Write `count` pictures; returns by name how many people it shows, and of one: box, landmarks, classes."""
    folder.mkdir(parents=True, exist_ok=True)
    few = count // 20
    truth = {}
    for begin in range(0, count - 2 * few, CHUNK):
        rows = np.arange(begin, min(begin + CHUNK, count - 2 * few))
        portraits = make_portraits(FIRST_PERSON + rows // PER_PERSON, rows % PER_PERSON, size=size)
        for i, row in enumerate(rows):
            name = f"one_{row:05d}.png"
            Image.fromarray(portraits.images[i]).save(folder / name)
            values = {"box": portraits.boxes[i], "landmarks": portraits.landmarks[i], "classes": portraits.masks[i]}
            truth[name] = {"people": 1, **values}
    pairs = make_portraits(FIRST_PERSON + 10_000 + np.arange(2 * few), np.zeros(2 * few, int), size=size).images
    scenery = empty_scenes(few, size)
    for i in range(few):
        for kind, people, picture in (
            ("two", 2, np.concatenate([pairs[2 * i], pairs[2 * i + 1]], axis=1)),
            ("none", 0, scenery[i]),
        ):
            Image.fromarray(picture).save(folder / f"{kind}_{i:05d}.png")
            truth[f"{kind}_{i:05d}.png"] = {"people": people}
    return truth


def empty_scenes(count: int, size: int) -> np.ndarray:
    """Backgrounds of portraits without anybody: uint8 [count, size, size, 3]."""
    scenes = sample_scenes(FIRST_PERSON + 20_000 + torch.arange(count), torch.zeros(count, dtype=torch.long), 0)
    canvas = Canvas(count, 2 * size)
    paint_background(canvas, scenes)
    pixels = torch.nn.functional.avg_pool2d(canvas.rgb.clamp(0, 1), 2)
    return (pixels.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()


def compare(truth: dict[str, dict], data: Path) -> dict:
    """Against what make_data.py left in `data`."""
    kept = {row["path"]: row for row in (json.loads(p.read_text()) for p in sorted((data / "single").rglob("*.json")))}
    dropped = [name for name, one in truth.items() if one["people"] == 1 and name not in kept]
    wrongly_kept = [name for name in kept if truth[name]["people"] != 1]
    right = [name for name in kept if truth[name]["people"] == 1]
    box_ious = [box_iou(kept[name]["bbox"], truth[name]["box"]) for name in right]
    errors = []
    shared, either = np.zeros(len(CLASS_NAMES)), np.zeros(len(CLASS_NAMES))
    face_ious = []
    for name in right:
        points, wanted = np.array(kept[name]["point"]), truth[name]["landmarks"]
        between_eyes = np.linalg.norm(wanted[0] - wanted[1])
        errors.append(np.linalg.norm(points - wanted, axis=1).mean() / between_eyes)
        with Image.open(data / "single" / f"{name}.png") as image:
            found = np.searchsorted(LAPA_VALUES, np.asarray(image))
        classes = truth[name]["classes"]
        for number in range(len(CLASS_NAMES)):
            a, b = found == number, classes == number
            shared[number] += (a & b).sum()
            either[number] += (a | b).sum()
        face_ious.append(((found > 0) & (classes > 0)).sum() / ((found > 0) | (classes > 0)).sum())
    by_class = shared / either.clip(1)
    return {
        "pictures": len(truth),
        "kept": len(kept),
        "wrongly_dropped": len(dropped),
        "wrongly_kept": len(wrongly_kept),
        "wrong_share": round((len(dropped) + len(wrongly_kept)) / len(truth), 4),
        "box_iou": round(float(np.mean(box_ious)), 4),
        "landmark_error_of_eye_distance": round(float(np.mean(errors)), 4),
        "mask_mean_iou_of_classes": round(float(by_class.mean()), 4),
        "face_against_rest_iou": round(float(np.mean(face_ious)), 4),
        "iou_by_class": {name: round(float(iou), 3) for name, iou in zip(CLASS_NAMES, by_class, strict=True)},
        "wrong": (dropped + wrongly_kept)[:50],
    }


def box_iou(a, b) -> float:
    """Of two boxes x0, y0, x1, y1."""
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a, b
    overlap = max(0, min(ax1, bx1) - max(ax0, bx0)) * max(0, min(ay1, by1) - max(ay0, by0))
    return overlap / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - overlap)


if __name__ == "__main__":
    run_cli(main)

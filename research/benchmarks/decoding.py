"""What reading a large photo for training costs, whole and with `config.data.draft`: CPU time, in turns.

    OMP_NUM_THREADS=1 python -m research.benchmarks.decoding PHOTO.jpg --resize 2400x3600 --face 700 900 800
    OMP_NUM_THREADS=1 python -m research.benchmarks.decoding PHOTO.jpg

The picture that is trained on is the centre square of 512 px, the reference a crop of 224 px of a square face box.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from feedface.common.errors import path_flag, run_cli
from feedface.common.images import read_image
from feedface.data.dataset import PictureStore
from feedface.data.records import Record
from feedface.methods.base import ReferenceSpec
from feedface.settings import parse_size
from research.benchmarks.measuring import check_least, median, time_in_turns

PICTURE_PX, LATENT_PX, CROP_PX = 512, 64, 224  # as at full size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=path_flag("photo"))
    parser.add_argument("--resize", help="make it this large first, WIDTHxHEIGHT, as a JPEG of quality 92")
    parser.add_argument("--face", type=int, nargs=3, metavar=("LEFT", "TOP", "SIDE"), help="in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    check_least(parser, options, rounds=1)
    with tempfile.TemporaryDirectory() as folder:
        file = options.photo
        if options.resize:
            file = Path(folder) / "photo.jpg"
            Image.fromarray(read_image(options.photo)).resize(parse_size(options.resize)).save(file, quality=92)
        with Image.open(file) as opened:
            width, height = opened.size
        left, top, side = options.face or (0, 0, min(width, height) // 3)
        box = (left, top, left + side, top + side)
        record = Record(file, "", width, height, bbox=box, square_bbox=box, mask_path=None)
        stores = {
            name: PictureStore([record], PICTURE_PX, LATENT_PX, ReferenceSpec("crop", CROP_PX), False, draft)
            for name, draft in (("whole", False), ("draft", True))
        }
        actions = {("the picture", name): lambda _, store=store: store.image(0) for name, store in stores.items()}
        actions |= {("the face", name): lambda _, store=store: store.face(file, box) for name, store in stores.items()}
        rows = time_in_turns(actions, torch.device("cpu"), options.rounds, warmup=1)
    print(f"{width} x {height} px, a face of {side} px\n")
    print("| | ms, whole | ms, draft | times faster |\n|---|---:|---:|---:|")
    for part in ("the picture", "the face"):
        whole, draft = (1e3 * median(rows[part, name], "cpu_seconds") for name in stores)
        print(f"| {part} | {whole:.0f} | {draft:.0f} | {whole / draft:.2f} |")


if __name__ == "__main__":
    run_cli(main)

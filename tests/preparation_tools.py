"""For the tests of make_data.py: folders of pictures, models to look at them with, a fingerprint of what comes out."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.faces.parser_net import ParserNet
from feedface.synthetic.world import make_portraits

MINI = Path(__file__).parents[1] / "models" / "mini"


def write_people(folder: Path, people: int = 3, per_person: int = 2, size: int = 96) -> list[str]:
    """Portraits `person_NN/M.png`; returns their paths below `folder`."""
    who, scene = np.repeat(np.arange(people), per_person), np.tile(np.arange(per_person), people)
    names = [f"person_{person:02d}/{number}.png" for person, number in zip(who, scene, strict=True)]
    for name, image in zip(names, make_portraits(who, scene, size=size).images, strict=True):
        save(image, folder / name)
    return names


def two_people(size: int = 96) -> np.ndarray:
    """A picture with two faces, side by side."""
    return np.concatenate(list(make_portraits([5, 6], [0, 0], size=size).images), axis=1)


def nobody(size: int = 96) -> np.ndarray:
    return np.full((size, size, 3), 120, np.uint8)


def save(image: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def write_model(folder: Path, seed: int = 0) -> Path:
    """The mini pack, and a parser that has learned nothing: quick, and every picture gets another mask."""
    shutil.copytree(MINI / "faces", folder / "faces")
    torch.manual_seed(seed)
    ParserNet(crop_px=32, expand=2.0, width=4).save_pretrained(folder / "parser")
    return folder


def tree(folder: Path) -> dict[str, str]:
    """A hash of every file below `folder`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

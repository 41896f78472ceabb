"""What a mini model is asked in an evaluation: people nobody trained on, their pictures, and prompts.

Letters: I people, R references, G gallery pictures, S samples a person.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from feedface.evaluation.people import FIRST_IDENTITY, GALLERY, WORLD_SEED
from feedface.faces.crop import crop_square, square_box
from feedface.faces.detect import make_detector
from feedface.synthetic.world import ATTRIBUTES, make_portraits

UNNAMED = ("none", "neutral")  # classes that no caption names: no hat, no glasses, no particular expression


@dataclass(frozen=True)
class Cases:
    """What is asked of a model: people, their pictures, and prompts."""

    references: np.ndarray  # [I, R, H, W, 3] uint8 RGB
    boxes: np.ndarray  # [I, R, 4] x0, y0, x1, y1 px, true face boxes of the references
    gallery: np.ndarray  # [I, G, H, W, 3]
    pictures: np.ndarray  # [I, S, H, W, 3]: what the prompts describe, as the renderer draws it
    prompts: list[list[str]]  # [I][S]
    asked: dict[str, np.ndarray]  # attribute -> [I, S] class index, -1 where the prompt does not name it


def make_cases(people: int, references: int, samples: int, size: int) -> Cases:
    """Render `people` unseen people: `GALLERY`, `references` and `samples` pictures of each, `size` px.

    The scenes of a kind have numbers of their own, so that more references do not change prompts or gallery.
    """
    kinds = (range(GALLERY), range(100, 100 + references), range(200, 200 + samples))
    scenes = np.concatenate(kinds)
    identity = np.repeat(np.arange(FIRST_IDENTITY, FIRST_IDENTITY + people), len(scenes))
    world = make_portraits(identity, np.tile(scenes, people), WORLD_SEED, size)

    def per_person(values: np.ndarray) -> list[np.ndarray]:
        rows = values.reshape(people, len(scenes), *values.shape[1:])
        return np.split(rows, [GALLERY, GALLERY + references], axis=1)

    gallery, shown, pictures = per_person(world.images)
    asked = {}
    for name, classes in ATTRIBUTES.items():
        wanted = per_person(world.attributes[name])[2]
        asked[name] = np.where(np.isin(np.array(classes)[wanted], UNNAMED), -1, wanted)
    return Cases(
        references=shown,
        boxes=per_person(world.boxes)[1],
        gallery=gallery,
        pictures=pictures,
        prompts=per_person(np.array(world.captions))[2].tolist(),
        asked=asked,
    )


def crop_references(cases: Cases, detector_name: str, faces_root: Path | None) -> tuple[np.ndarray, float]:
    """Face crops of the references, squares in an object array [I, R], and the share of pictures with a face found.

    "truth" cuts at the renderer's own boxes, so that what is measured is the model alone; any other name is a detector
    (`faces.detect.make_detector`), and where that finds no face the whole picture is taken, as `--no_detect` does.
    """
    crops, found = np.empty(cases.references.shape[:2], dtype=object), 0
    detector = None if detector_name == "truth" else make_detector(detector_name, faces_root)
    for place in np.ndindex(crops.shape):
        picture = cases.references[place]
        boxes = [cases.boxes[place]] if detector is None else [face.box for face in detector.detect(picture)]
        crops[place] = crop_square(picture, square_box(boxes[0])) if boxes else picture
        found += bool(boxes)
    return crops, found / crops.size

"""One picture on its way to a result: read, detect, parse, drop duplicates, sort, filter.

The steps are FeedFace's (appendix A of the paper, and the authors' release): a picture with one face is kept; a face
found twice, whose two parsing masks cover the same place, counts once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.faces.crop import square_box
from feedface.faces.parse import mask_box
from feedface.faces.types import Face, FaceDetector
from feedface.preparation.filters import MEASURES, Thresholds, measure, reject
from feedface.preparation.result import ERROR, FILTERED, MULTI, SINGLE, Result, Stamp, plain, rounded
from feedface.preparation.scan import stamp_of

Box = Sequence[float]  # x0, y0, x1, y1 in pixels
SQUARES = ("pad", "inside")
EMBEDDING_DIGITS = 6


@dataclass(frozen=True)
class Rules:
    """What decides which faces are kept and what is written about them.

    Attributes:
        duplicate_iou: two faces whose mask boxes overlap more are one.
        square: "pad": the square may pass the border, `crop_square` repeats the edge there; "inside": it is moved into
            the picture, and made smaller only where the picture is.
        thresholds: what a single face has to reach.
    """

    duplicate_iou: float = 0.7
    square: str = "pad"
    thresholds: Thresholds = field(default_factory=Thresholds)


@dataclass
class Loaded:
    """A picture file, read: `image` is uint8 RGB [H, W, 3], or None and `problem` says why."""

    rel: str
    path: Path
    stamp: Stamp | None
    image: np.ndarray | None = None
    problem: str = ""


def load(data: Path, rel: str) -> Loaded:
    """Read the picture `rel` of the folder `data`, upright; what cannot be read is no error but says so."""
    path = data / rel
    loaded = Loaded(rel, path, stamp_of(path))
    try:
        loaded.image = read_image(path)
    except UserError as error:
        # Without its folder: results must not depend on where the pictures lie.
        loaded.problem = " ".join(str(error).replace(str(path), path.name).removeprefix(f"{path.name}: ").split())
    return loaded


def detect(image: np.ndarray, detector: FaceDetector, threshold: float = 0.0) -> list[Face]:
    """The faces that are in the picture, at least partly, the largest first."""
    height, width = image.shape[:2]
    faces = []
    for face in detector.detect(image):
        x0, y0, x1, y1 = rounded(face.box)
        inside = x0 < x1 and y0 < y1 and x1 > 0 and y1 > 0 and x0 < width and y0 < height
        if inside and face.score >= threshold:
            faces.append(face)
    return faces


def judge(loaded: Loaded, faces: Sequence[Face], classes: Sequence[np.ndarray], rules: Rules) -> Result:
    """What becomes of a picture with these faces and their class maps [H, W]; captions come later."""
    if loaded.image is None:
        return Result(loaded.rel, loaded.stamp, None, ERROR, loaded.problem)
    result = Result(loaded.rel, loaded.stamp, (loaded.image.shape[1], loaded.image.shape[0]), ERROR)
    faces = [replace(face, box=np.array(rounded(face.box)), score=plain(face.score)) for face in faces]
    kept = drop_duplicates([face.score for face in faces], [mask_box(one) for one in classes], rules.duplicate_iou)
    if not kept:
        result.reason = "no face found"
    elif len(kept) == 1 and not classes[kept[0]].any():
        result.reason = "the parser sees no face where the detector found one"
    else:
        result.faces = [describe(faces[index], classes[index], loaded.image, rules.square) for index in kept]
        result.masks = [classes[index] for index in kept]
        result.kind, result.reason = MULTI, f"{len(kept)} faces"
        if len(kept) == 1:
            result.reason = reject(result.faces[0], rules.thresholds)
            result.kind = FILTERED if result.reason else SINGLE
    return result


def describe(face: Face, classes: np.ndarray, image: np.ndarray, square: str) -> dict:
    """The face's keys of the JSON files, see `result`."""
    box = face.box.tolist()
    measures = measure(image, box, face.landmarks)
    return {
        "rect": box,
        "bbox": box,
        "square_bbox": rounded(squared(box, image.shape[1], image.shape[0], square)),
        "mask_bbox": rounded(seen) if (seen := mask_box(classes)) else None,
        "point": None if face.landmarks is None else rounded(face.landmarks),
        "scores": face.score,
        "resize_s": 1.0,
        **{name: plain(measures[name]) for name in MEASURES},
        "embedding": None if face.embedding is None else rounded(face.embedding, EMBEDDING_DIGITS),
    }


def squared(box: Box, width: int, height: int, rule: str) -> tuple[float, float, float, float]:
    """The box x 1.1, squared on its longer side, x0, y0, x1, y1 px; `rule` as in `Rules.square`."""
    square = square_box(box)
    if rule == "pad":
        return square
    return square_inside(square, min(square[2] - square[0], width, height), width, height)


def square_inside(box: Box, side: float, width: int, height: int) -> tuple[float, float, float, float]:
    """A square of the picture of this side, with the middle of the box as near its own as can be."""
    left = min(max((box[0] + box[2] - side) / 2, 0), width - side)
    top = min(max((box[1] + box[3] - side) / 2, 0), height - side)
    return left, top, left + side, top + side


def drop_duplicates(scores: Sequence[float], boxes: Sequence[Box | None], iou: float) -> list[int]:
    """Of faces whose mask boxes overlap by more than `iou`, the one with the highest score; which they are."""
    kept: list[int] = []
    # Sorting is stable: of equal scores the first stays, which is the larger face.
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        if all(overlap(boxes[index], boxes[other]) <= iou for other in kept):
            kept.append(index)
    return sorted(kept)


def overlap(a: Box | None, b: Box | None) -> float:
    """Intersection over union of two boxes; 0 where one is missing."""
    if a is None or b is None:
        return 0.0
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0

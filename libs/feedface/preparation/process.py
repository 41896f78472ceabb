"""One picture on its way to an outcome: read, detect, parse, drop duplicates, sort, filter.

The steps are FeedFace's (appendix A of the paper, and the authors' release): a picture with one face is kept; a face
found twice, whose two parsing masks cover the same place, counts once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.faces.crop import square_box
from feedface.faces.detect import Face, FaceDetector
from feedface.faces.parse import mask_box
from feedface.preparation.captions import Captioner, NoCaption
from feedface.preparation.captions import Picture as Uncaptioned
from feedface.preparation.filters import Thresholds, measure, reject
from feedface.preparation.outcome import ERROR, FILTERED, MULTI, SINGLE, FoundFace, Outcome, Stamp, plain, rounded
from feedface.preparation.scan import stamp_of

SQUARES = ("pad", "inside")
EMBEDDING_DIGITS = 6
SCORE_DIGITS = 4
MEASURES = ("face_px", "blur", "yaw", "pitch", "roll")


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
        # Without its folder: outcomes must not depend on where the pictures lie.
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


def judge(loaded: Loaded, faces: Sequence[Face], classes: Sequence[np.ndarray], rules: Rules) -> Outcome:
    """What becomes of a picture with these faces and their class maps [H, W]; captions come later."""
    if loaded.image is None:
        return Outcome(loaded.rel, loaded.path, loaded.stamp, None, ERROR, loaded.problem)
    size = loaded.image.shape[1], loaded.image.shape[0]
    outcome = Outcome(loaded.rel, loaded.path, loaded.stamp, size, ERROR)
    found = [
        FoundFace(tuple(rounded(face.box)), plain(face.score, SCORE_DIGITS), face.landmarks, face.embedding, one)
        for face, one in zip(faces, classes, strict=True)
    ]
    found = drop_duplicates(found, rules.duplicate_iou)
    if not found:
        outcome.reason = "no face found"
    elif len(found) == 1 and not found[0].classes.any():
        outcome.reason = "the parser sees no face where the detector found one"
    else:
        outcome.faces = [describe(face, loaded.image, rules.square) for face in found]
        outcome.masks = [face.classes for face in found]
        outcome.kind, outcome.reason = MULTI, f"{len(found)} faces"
        if len(found) == 1:
            outcome.reason = verdict(outcome.faces[0], rules.thresholds)
            outcome.kind = FILTERED if outcome.reason else SINGLE
    return outcome


def verdict(face: dict, thresholds: Thresholds) -> str:
    """Why the filters reject a face, from the keys of its JSON; empty if they do not."""
    return reject({name: face[name] for name in MEASURES}, face["scores"], thresholds) or ""


def caption_all(captioner: Captioner, pictures: Sequence[Uncaptioned]) -> list[tuple[str, str]]:
    """For each picture its caption, or why it has none: one of the two is empty."""
    answers = captioner.caption_many(pictures)
    return [("", " ".join(str(one).split())) if isinstance(one, NoCaption) else (one, "") for one in answers]


def describe(face: FoundFace, image: np.ndarray, square: str) -> dict:
    """The face's keys of the JSON files, see `outcome`."""
    height, width = image.shape[:2]
    measures = measure(image, face.box, face.landmarks)
    return {
        "rect": list(face.box),
        "bbox": list(face.box),
        "square_bbox": rounded(squared(face.box, width, height, square)),
        "mask_bbox": rounded(box) if (box := mask_box(face.classes)) else None,
        "point": None if face.landmarks is None else rounded(face.landmarks),
        "scores": face.score,
        "resize_s": 1.0,
        **{name: plain(measures[name]) for name in MEASURES},
        "embedding": None if face.embedding is None else rounded(face.embedding, EMBEDDING_DIGITS),
    }


def squared(box: Sequence[float], width: int, height: int, rule: str) -> tuple[float, float, float, float]:
    """The box x 1.1, squared on its longer side, x0, y0, x1, y1 px; `rule` as in `Rules.square`."""
    x0, y0, x1, y1 = square_box(box)
    if rule == "pad":
        return x0, y0, x1, y1
    side = min(x1 - x0, width, height)
    left = min(max((x0 + x1 - side) / 2, 0), width - side)
    top = min(max((y0 + y1 - side) / 2, 0), height - side)
    return left, top, left + side, top + side


def drop_duplicates(faces: Sequence[FoundFace], iou: float) -> list[FoundFace]:
    """Of faces whose mask boxes overlap by more than `iou`, the one with the highest score; the order stays."""
    boxes = [mask_box(face.classes) for face in faces]
    kept: list[int] = []
    # Sorting is stable: of equal scores the first stays, which is the larger face.
    for index in sorted(range(len(faces)), key=lambda index: -faces[index].score):
        if all(overlap(boxes[index], boxes[other]) <= iou for other in kept):
            kept.append(index)
    return [faces[index] for index in sorted(kept)]


def overlap(a: Sequence[float] | None, b: Sequence[float] | None) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1; 0 where one is missing."""
    if a is None or b is None:
        return 0.0
    both = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / union if union > 0 else 0.0

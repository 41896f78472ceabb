"""What is measured on a face, and the thresholds that decide whether it is good enough to train on.

face_px  shorter side of the detected box, in pixels.
blur     sharpness: variance of the Laplacian in percent of the variance of the grey levels, of the face's inner square
         resized to 64 x 64. High is sharp. The resizing takes resolution out (a face of 500 px and the same of 100 px
         measure about the same; one below 64 px has less to show and measures lower), the ratio takes out exposure
         and contrast: without it the dark faces of sharp photos measure lower than blurred bright ones.
         Median [2 %, 98 %] of 17 faces in photos, 73 to 244 px: 35 [19, 61]; blurred by 1 % of the face's width
         11 [6, 18], by 2 % 3 [2, 6]. Of 60 drawn portraits with faces of 53 px: 63 [25, 176], blurred by 1 px 8
         [3, 23]; with faces of 27 px: 13 [5, 41], blurred by half a pixel 6 [2, 22].
         A threshold of 10 leaves out what is plainly blurred, 20 keeps only what is sharp.
yaw, pitch, roll  degrees, from five landmarks, see `faces.pose.head_pose`; None where the detector gives none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feedface.common.errors import UserError
from feedface.faces.crop import crop_square
from feedface.faces.detect import OPENCV
from feedface.faces.pose import head_pose

BLUR_PX = 64
MEASURES = ("face_px", "blur", "yaw", "pitch", "roll")
# Of each threshold: the key of a face's JSON file that it is about, its largest value, and what is said of a face that
# does not reach it (min_…) or passes it to either side (max_…).
THRESHOLDS = {
    "min_face_px": ("face_px", math.inf, "face {value:g} px, smaller than"),
    "min_blur": ("blur", math.inf, "blur {value:g}, less sharp than"),
    "max_yaw": ("yaw", 180, "yaw {value:g} degrees, more than"),
    "max_pitch": ("pitch", 180, "pitch {value:g} degrees, more than"),
    "max_roll": ("roll", 180, "roll {value:g} degrees, more than"),
    "min_score": ("scores", 1, "score {value:g}, lower than"),
}


@dataclass(frozen=True)
class Thresholds:
    """What a face has to reach; None or 0 asks for nothing. Each field is a flag of the same name.

    Attributes:
        min_face_px: shorter side of the box, pixels.
        min_blur: see the module's docstring; lower is more blurred.
        max_yaw, max_pitch, max_roll: degrees, either way.
        min_score: the detector's confidence, 0 to 1.
    """

    min_face_px: float | None = None
    min_blur: float | None = None
    max_yaw: float | None = None
    max_pitch: float | None = None
    max_roll: float | None = None
    min_score: float | None = None

    def check(self, detector: str) -> None:
        """`UserError`, before any work, for a value out of range or one that `detector`'s faces cannot be judged by."""
        for name, (_, most, _) in THRESHOLDS.items():
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and 0 <= value <= most):
                top = "" if most == math.inf else f" and at most {most}"
                raise UserError(f"--{name} {value}: must be a number of at least 0{top}; 0 asks for nothing")
            # OpenCV's cascade: no landmarks, and every score is 1.
            if value and detector == OPENCV and name not in ("min_face_px", "min_blur"):
                lacks = "gives no scores" if name == "min_score" else "finds no landmarks to tell a pose by"
                raise UserError(f"--{name}: the detector 'opencv' {lacks}; leave it out, or use --detector buffalo_l")


def measure(image: np.ndarray, box: Sequence[float], landmarks: np.ndarray | None) -> dict[str, float | None]:
    """`MEASURES` of a face of a uint8 RGB [H, W, 3] picture, see the module's docstring.

    `box`: x0, y0, x1, y1 px; `landmarks`: [5, 2] px in insightface's order, or None.
    """
    angles = [None] * 3 if landmarks is None else [round(angle, 2) for angle in head_pose(landmarks)]
    values = [round(float(_shorter_side(box)), 2), round(blur(image, box), 2), *angles]
    return dict(zip(MEASURES, values, strict=True))


def reject(face: Mapping[str, float | None], thresholds: Thresholds) -> str:
    """Why a face is left out, by the keys of its JSON file; empty if it is kept.

    A face whose pose is not known does not pass a threshold on the pose.
    """
    for name, (key, _, words) in THRESHOLDS.items():
        limit, value = getattr(thresholds, name), face[key]
        if limit and value is None:
            return f"{key} not known without landmarks, and --{name} {limit:g} asks for it"
        if limit and (abs(value) > limit if name.startswith("max_") else value < limit):
            return f"{words.format(value=value)} --{name} {limit:g}"
    return ""


def blur(image: np.ndarray, box: Sequence[float]) -> float:
    """Sharpness of the square inside a face's box, in percent, see the module's docstring; high is sharp."""
    # Costs a tenth of a second to import; the rest of the package runs without it.
    import cv2

    x0, y0, x1, y1 = (float(side) for side in box)
    half = _shorter_side(box) / 2  # inside the face: the background may be sharp where the face is not
    center_x, center_y = (x0 + x1) / 2, (y0 + y1) / 2
    square = (center_x - half, center_y - half, center_x + half, center_y + half)
    grey = cv2.cvtColor(crop_square(image, square, BLUR_PX), cv2.COLOR_RGB2GRAY).astype(np.float64)
    # + 1: in an even square there is nothing to see but the rounding to whole grey levels
    return 100 * float(cv2.Laplacian(grey, cv2.CV_64F).var() / (grey.var() + 1))


def _shorter_side(box: Sequence[float]) -> float:
    return min(box[2] - box[0], box[3] - box[1])

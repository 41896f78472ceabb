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
yaw, pitch, roll  degrees, from five landmarks, see `head_pose`; None where the detector gives none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from feedface.common.errors import UserError
from feedface.faces.crop import crop_square
from feedface.faces.detect import OPENCV

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
# A head, in distances between the eyes: x to the viewer's right, y down, z towards the viewer. x and y are the mean
# face that insightface aligns to (its 112 px template); a nose tip stands 25 mm out and eyes are 63 mm apart.
HEAD = np.array(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.572, 0.40], [-0.414, 1.156, 0.05], [0.414, 1.156, 0.05]]
)  # fmt: skip


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


def head_pose(landmarks: np.ndarray) -> tuple[float, float, float]:
    """Five landmarks [5, 2] px -> yaw, pitch, roll in degrees, by a weak-perspective fit of one mean head.

    Positive yaw turns the face to the picture's right, positive pitch looks down, positive roll tilts the head
    clockwise. Roll is the slope of the line through the eyes; yaw and pitch follow from where the nose lies between
    eyes and mouth. Mean error against the renderer's truth on 600 portraits (yaw to 32, pitch and roll to 9 degrees):
    yaw 1.4, roll 1.6; with the landmarks of the mini pack 3.8 and 4.4. Pitch cannot be told from the length of a nose:
    among pictures of one person its error is 5, but the portraits' many noses add 19, so that only wide limits on it
    mean something.
    """
    points = np.asarray(landmarks, np.float64)
    # points = HEAD · A.T + t; the rotation nearest to A says where the head's axes point in the picture.
    model = np.column_stack([HEAD, np.ones(len(HEAD))])
    affine = np.linalg.lstsq(model, points, rcond=None)[0][:3].T  # [2, 3]
    left, _, right = np.linalg.svd(affine, full_matrices=False)
    across, down = left @ right
    ahead = np.array([across[2], down[2], across[0] * down[1] - across[1] * down[0]])
    # Rotation = tilt · nod · turn: undo the tilt, read the nod and the turn off the direction the face looks in.
    tilt = math.atan2(-across[1], down[1])
    x = math.cos(tilt) * ahead[0] + math.sin(tilt) * ahead[1]
    y = math.cos(tilt) * ahead[1] - math.sin(tilt) * ahead[0]
    yaw, pitch = math.asin(min(1.0, max(-1.0, x))), math.atan2(y, ahead[2])
    roll = math.atan2(points[1, 1] - points[0, 1], points[1, 0] - points[0, 0])
    return math.degrees(yaw), math.degrees(pitch), math.degrees(roll)


def _shorter_side(box: Sequence[float]) -> float:
    return min(box[2] - box[0], box[3] - box[1])

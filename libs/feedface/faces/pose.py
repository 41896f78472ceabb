"""The head's pose out of a face's landmarks, or of what a user writes."""

import math

import numpy as np

from feedface.common.errors import UserError
from feedface.faces.types import Face

# A head, in distances between the eyes: x to the viewer's right, y down, z towards the viewer. x and y are the mean
# face that insightface aligns to (its 112 px template); a nose tip stands 25 mm out and eyes are 63 mm apart.
HEAD = np.array(
    [[-0.5, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 0.572, 0.40], [-0.414, 1.156, 0.05], [0.414, 1.156, 0.05]]
)  # fmt: skip
# Of MediaPipe's 468 or 478 points, those of the five: corners of the eyes, tip of the nose, corners of the mouth.
MEDIAPIPE = ((33, 133), (362, 263), (1,), (61,), (291,))
MOST_DEGREES = 90.0


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


def face_pose(face: Face, detector: str) -> tuple[float, float, float]:
    """Yaw, pitch, roll of a detected face as Dense-Face counts them, see `feedface.head_pose`: the other way round."""
    if face.landmarks is None:
        raise UserError(f"the detector {detector!r} finds no landmarks to take a pose from; give --pose yaw,pitch,roll")
    yaw, pitch, roll = head_pose(five_points(face.landmarks))
    return -yaw, -pitch, roll


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """[5,2] as detectors give them, out of five, or of MediaPipe's 468 or 478, in pixels."""
    landmarks = np.asarray(landmarks, np.float64)[:, :2]
    if len(landmarks) == 5:
        return landmarks
    if len(landmarks) in (468, 478):
        return np.stack([landmarks[list(group)].mean(axis=0) for group in MEDIAPIPE])
    raise UserError(f"{len(landmarks)} landmarks: a pose is found from 5, or from MediaPipe's 468 or 478")


def parse_pose(text: str) -> tuple[float, float, float]:
    """ "20,-5,0" -> yaw, pitch, roll; `UserError` for anything else, and beyond 90 degrees."""
    parts = text.split(",")
    try:
        angles = tuple(float(part) for part in parts)
    except ValueError:
        angles = ()
    if len(parts) != 3 or len(angles) != 3:
        raise UserError(
            f"--pose {text[:60]}: give yaw,pitch,roll in degrees, such as 20,-5,0, or a picture to take it from"
        )
    for name, angle in zip(("yaw", "pitch", "roll"), angles, strict=True):
        if not abs(angle) <= MOST_DEGREES:
            raise UserError(
                f"--pose {text}: {name} {angle:g} is out of range; use -{MOST_DEGREES:g} to {MOST_DEGREES:g}"
            )
    return angles

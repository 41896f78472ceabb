"""The head's pose out of a face's landmarks: yaw, pitch, roll in degrees, see `head_pose`."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from feedface.common.errors import UserError
from feedface.faces.types import Face

# A face's five points in space, in distances of its eyes: x to the picture's right, y down, z away from the viewer. Of
# an average head.
FIVE = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.62, -0.42], [-0.39, 1.12, -0.05], [0.39, 1.12, -0.05]])
# Of the miniature's portraits, fitted to 400 of them: yaw is then found to 4.6 degrees on average, roll to 1.2, pitch
# to 10 only, as faces differ in what tells it. By pack, as `identity.SAME_PERSON`.
PACK_POINTS = {"mini": np.array([[-0.5, 0, 0], [0.5, 0, 0], [0, 0.41, -0.29], [-0.38, 0.84, 0.19], [0.38, 0.84, 0.19]])}
# Of MediaPipe's 468 or 478 points, those of the five: corners of the eyes, tip of the nose, corners of the mouth.
MEDIAPIPE = ((33, 133), (362, 263), (1,), (61,), (291,))
MOST_DEGREES = 90.0


def face_pose(face: Face, size: Sequence[int], pack: str) -> tuple[float, float, float]:
    """Yaw, pitch, roll of a detected face in a picture of (width, height); `pack`: the detector's name."""
    if face.landmarks is None:
        raise UserError(
            f"the detector {pack!r} finds no landmarks, which a pose is taken from; give --pose yaw,pitch,roll"
        )
    return head_pose(face.landmarks, size, PACK_POINTS.get(pack, FIVE))


def five_points(landmarks: np.ndarray) -> np.ndarray:
    """[5,2] as detectors give them, out of five, or of MediaPipe's 468 or 478, in pixels."""
    landmarks = np.asarray(landmarks, np.float64)[:, :2]
    if len(landmarks) == 5:
        return landmarks
    if len(landmarks) in (468, 478):
        return np.stack([landmarks[list(group)].mean(axis=0) for group in MEDIAPIPE])
    raise UserError(f"{len(landmarks)} landmarks: a pose is found from 5, or from MediaPipe's 468 or 478")


def head_pose(landmarks: np.ndarray, size: Sequence[int], model: np.ndarray = FIVE) -> tuple[float, float, float]:
    """Yaw, pitch, roll of a face by its landmarks [K,2] in a picture of (width, height) pixels.

    `model`: the five points in space [5,3].
    """
    points = five_points(landmarks)
    focal = 2.0 * max(size)  # about that of portraits; the pose hardly depends on it
    camera = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    distance = focal / max(np.linalg.norm(points[1] - points[0]), 1e-3)
    found, rotation, _ = cv2.solvePnP(
        model.astype(np.float64),
        points,
        camera,
        None,
        np.zeros((3, 1)),
        np.array([[0.0], [0.0], [distance]]),
        useExtrinsicGuess=True,
        flags=cv2.SOLVEPNP_ITERATIVE,
    )
    if not found:
        raise UserError("the face's landmarks fit no head; give --pose yaw,pitch,roll")
    return angles_of(cv2.Rodrigues(rotation)[0])


def angles_of(rotation: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch, roll in degrees of a rotation [3,3] of the head, whose axes then are as `head_pose.draw_pose` draws
    them: the face's own left, down, and out of the face."""
    right, down, away = rotation.T  # of the head, x right, y down, z away from the viewer
    out = -away
    # draw_pose: the x of the axes is cos y cos r, −cos y sin r, sin y; out of the face, y is −cos y sin p.
    yaw = -math.degrees(math.asin(np.clip(out[0], -1, 1)))
    pitch = math.degrees(math.atan2(-out[1], -out[2]))
    roll = math.degrees(math.atan2(-down[0], right[0]))
    return yaw, pitch, roll


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

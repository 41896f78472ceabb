"""Head pose as three angles, and the picture of it that Dense-Face is shown.

Angles are yaw, pitch, roll in degrees, as SixDRepNet gives them: positive yaw turns the face to the picture's left,
positive pitch looks up, positive roll leans the head clockwise, all as the viewer sees it.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS_PX = 256
AXIS_PX, NOSE_PX, LINE_PX = 100, 200, 4  # of the drawing: length of the axes, of the one out of the face, line width
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def draw_pose(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """The head's axes on white, uint8 RGB [256,256,3]: to its left red, down green, out of the face blue, on top."""
    p, y, r = math.radians(pitch), -math.radians(yaw), math.radians(roll)
    sin_p, cos_p, sin_y, cos_y, sin_r, cos_r = (f(angle) for angle in (p, y, r) for f in (math.sin, math.cos))
    ends = (
        (AXIS_PX * cos_y * cos_r, AXIS_PX * (cos_p * sin_r + cos_r * sin_p * sin_y), RED),
        (AXIS_PX * -cos_y * sin_r, AXIS_PX * (cos_p * cos_r - sin_p * sin_y * sin_r), GREEN),
        (NOSE_PX * sin_y, NOSE_PX * -cos_y * sin_p, BLUE),
    )
    middle = (CANVAS_PX - 1) / 2
    canvas = np.full((CANVAS_PX, CANVAS_PX, 3), 255, np.uint8)
    for x, y_px, colour in ends:
        cv2.line(canvas, (int(middle), int(middle)), (int(middle + x), int(middle + y_px)), colour, LINE_PX)
    return canvas


def pose_hints(poses: Tensor, size: Sequence[int]) -> Tensor:
    """Drawings of poses [B,3], yaw, pitch, roll: float32 [B,3,*size] in 0…1, on the CPU."""
    drawn = np.stack([draw_pose(*angles) for angles in poses.tolist()])
    hints = torch.from_numpy(drawn).permute(0, 3, 1, 2).float() / 255
    return hints if tuple(size) == (CANVAS_PX,) * 2 else F.interpolate(hints, tuple(size), mode="area")


def mirrored(poses: Tensor) -> Tensor:
    """The poses [B,3] of the mirrored pictures."""
    return poses * torch.tensor([-1.0, 1.0, -1.0]).to(poses)

"""Portraits from identities and scenes: picture, parsing mask, face box, landmarks, depth and pose.

Everything is computed for a batch at once in torch; small pictures at twice the size and averaged down.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from feedface.synthetic.world.accessories import paint_glasses, paint_hat
from feedface.synthetic.world.background import paint_background
from feedface.synthetic.world.body import paint_body
from feedface.synthetic.world.canvas import Canvas
from feedface.synthetic.world.face import (
    NOSE_PROTRUSION,
    mouth_shape,
    paint_beard,
    paint_eyes,
    paint_head,
    paint_mouth,
    paint_nose,
    paint_skin_details,
)  # fmt: skip
from feedface.synthetic.world.geometry import HeadFrame
from feedface.synthetic.world.hair import Hair
from feedface.synthetic.world.identity import Identities
from feedface.synthetic.world.scene import Scenes

_CHUNK = 4  # portraits painted at once: larger batches only leave the processor's cache


@dataclass
class Portraits:
    """N rendered portraits of size x size pixels, as tensors on the CPU."""

    image: Tensor  # [N, 3, H, W] float32 RGB in [0, 1]
    mask: Tensor  # [N, H, W] uint8 LaPa classes 0..10
    box: Tensor  # [N, 4] float32 x0, y0, x1, y1 in pixels: forehead to chin, cheek to cheek
    landmarks: (
        Tensor  # [N, 5, 2] float32 pixels: right eye (picture's left), left eye, nose, right and left mouth corner
    )
    depth: Tensor  # [N, H, W] float32: 0 behind the head, else nearness of the head's surface, up to 1
    pose: Tensor  # [N, 3] float32 degrees: yaw, pitch, roll


@torch.no_grad()
def render(identities: Identities, scenes: Scenes, size: int = 128, supersampling: int | None = None) -> Portraits:
    """Render identity i in scene i for every row. The same rows give the same pixels in any batch.

    supersampling: None for 1 from 128 px on (edges are painted soft, which is enough there), else 2.
    """
    supersampling = supersampling or (1 if size >= 128 else 2)
    if len(identities) != len(scenes):
        raise ValueError(f"{len(identities)} identities but {len(scenes)} scenes")
    parts = [
        _render_chunk(identities[start : start + _CHUNK], scenes[start : start + _CHUNK], size, supersampling)
        for start in range(0, len(identities), _CHUNK)
    ]
    return Portraits(*(torch.cat([getattr(part, name) for part in parts]) for name in Portraits.__dataclass_fields__))


def _render_chunk(who: Identities, scene: Scenes, size: int, supersampling: int) -> Portraits:
    canvas = Canvas(len(who), size * supersampling)
    paint_background(canvas, scene)
    head, coverage = paint_person(canvas, who, scene)
    middle = supersampling // 2
    depth = avg_pool2d((coverage * (0.25 + 0.75 * head.depth))[:, None], supersampling)[:, 0]
    return Portraits(
        image=finish(canvas, scene, supersampling),
        mask=canvas.labels[:, middle::supersampling, middle::supersampling].contiguous(),
        box=face_box(head, size),
        landmarks=face_landmarks(head, size),
        depth=depth,
        pose=scene.pose(),
    )


def paint_person(canvas: Canvas, who: Identities, scene: Scenes) -> tuple[HeadFrame, Tensor]:
    """Paint everything of a person over what the canvas shows; returns the head and its coverage [N, H, W]."""
    head = HeadFrame(canvas, who, scene)
    hair = Hair(canvas, head)
    hair.behind()
    paint_body(canvas, head)
    hair.hanging()
    coverage = paint_head(canvas, head)
    paint_skin_details(canvas, head, coverage)
    paint_eyes(canvas, head, coverage)
    paint_beard(canvas, head, coverage)
    paint_nose(canvas, head)
    paint_mouth(canvas, head)
    hair.cap()
    paint_glasses(canvas, head)
    paint_hat(canvas, head)
    return head, coverage


def finish(canvas: Canvas, scene: Scenes, supersampling: int) -> Tensor:
    """The canvas in the scene's light, averaged down: [N, 3, H, W] in [0, 1]."""
    tint = torch.stack([1 + scene.warmth, torch.ones_like(scene.warmth), 1 - scene.warmth], 1) * scene.exposure[:, None]
    return avg_pool2d((canvas.rgb * tint[:, :, None, None]).clamp(0, 1), supersampling)


def _to_pixels(points: Tensor, size: int) -> Tensor:
    """Canvas positions in [-1, 1] -> pixel positions, where the picture's corner is (0, 0)."""
    return (points + 1) * (size / 2)


def face_landmarks(head: HeadFrame, size: int) -> Tensor:
    """[N, 5, 2] pixels, see `Portraits`."""
    who = head.who
    half, lift, _ = mouth_shape(head)
    corner = who.mouth_height - 0.65 * lift
    nose_tip = who.eye_height + who.nose_length - 0.055
    points = [
        head.project(-who.eye_spacing, who.eye_height, -0.03),
        head.project(who.eye_spacing, who.eye_height, -0.03),
        head.project(torch.zeros_like(half), nose_tip, NOSE_PROTRUSION),
        head.project(-half, corner, 0.05),
        head.project(half, corner, 0.05),
    ]
    return _to_pixels(torch.stack(points, 1), size)


def face_box(head: HeadFrame, size: int) -> Tensor:
    """[N, 4] pixels: bounds of the head's outline from the middle of the forehead down to the chin."""
    who = head.who
    angle = torch.linspace(0, 2 * math.pi, 48)[None]
    cos, sin = angle.cos().expand(len(who), -1), angle.sin().expand(len(who), -1)
    power = torch.where(sin > 0, who.jaw_power[:, None], torch.tensor(2.1))
    radius = (cos.abs().pow(power) + sin.abs().pow(power)).pow(-1 / power)
    v = radius * sin * torch.where(sin > 0, who.chin[:, None], torch.tensor(1.0))
    u = radius * cos * head.outline_width(v[:, None])[:, 0]
    points = _to_pixels(head.to_canvas(u, v.clamp(min=-0.62)), size)
    return torch.cat([points.amin(1), points.amax(1)], 1)

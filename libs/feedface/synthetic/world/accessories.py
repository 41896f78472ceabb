"""Glasses and hats."""

import torch
from torch import Tensor

from feedface.synthetic.world.canvas import BACKGROUND, Canvas, col, smoothstep
from feedface.synthetic.world.geometry import HeadFrame
from feedface.synthetic.world.scene import COLOUR_RGB, GLASSES, HATS


def paint_glasses(canvas: Canvas, head: HeadFrame) -> None:
    """Clear or dark glasses on the bridge of the nose; the label map keeps what lies beneath."""
    who, scene, scale = head.who, head.scene, head.scale
    worn = col((scene.glasses > 0).float())
    dark = col((scene.glasses == GLASSES.index("sunglasses")).float())
    gx, gy = head.protruding(0.08)
    dy = gy - col(who.eye_height) - 0.02
    lens_half, rim = col(0.78 * who.eye_spacing), 0.030
    frame = torch.tensor([[0.10, 0.09, 0.10]])
    for side in (-1.0, 1.0):
        dx = gx * side - col(who.eye_spacing)
        lens = ((dx.abs() / lens_half).pow(3) + (dy.abs() / 0.195).pow(3)).pow(1 / 3).sub(1) * 0.2
        canvas.paint(torch.tensor([[0.06, 0.06, 0.08]]), canvas.inside(lens, scale) * worn * dark * 0.96)
        shine = canvas.inside((dx + 1.2 * dy).abs() - 0.035, scale) * canvas.inside(lens + 0.03, scale)
        canvas.paint(torch.ones(1, 3), shine * worn * (0.16 + 0.12 * dark))
        canvas.paint(frame, canvas.inside(lens.abs() - rim, scale) * worn)
    bridge = torch.maximum((dy + 0.05).abs() - rim * 0.9, gx.abs() - col(who.eye_spacing) + lens_half)
    arms = torch.maximum((dy + 0.05).abs() - rim * 0.9, col(who.eye_spacing) + lens_half - gx.abs())
    edge = smoothstep(1.02, 0.95, head.radius)
    canvas.paint(frame, torch.maximum(canvas.inside(bridge, scale), canvas.inside(arms, scale)) * worn * edge)


def paint_hat(canvas: Canvas, head: HeadFrame) -> None:
    """A cap with a visor, a beanie with a folded band, or a sun hat with a wide brim."""
    scene, scale = head.scene, head.scale
    colour = COLOUR_RGB[scene.hat_colour]
    worn = {name: col((scene.hat == i).float()) for i, name in enumerate(HATS)}
    some = 1 - worn["none"]
    inflation = 1.14 + 0.06 * worn["beanie"]
    hx, hy, _ = head.surface(1.17)
    lift = 0.10 * worn["sun hat"] + 0.05 * worn["beanie"]
    dome = torch.maximum((head.radius - inflation - lift * smoothstep(-0.6, -1.1, head.v)) * 0.75, hy + 0.44)
    facing = 0.90 + 0.22 * (head.u * col(scene.light_x) + (head.v + 0.5) * col(scene.light_y))
    knit = 1 + 0.10 * worn["beanie"] * (40 * hx).sin()
    seams = 1 - 0.22 * worn["cap"] * smoothstep(0.96, 1.0, (7.5 * hx).cos())
    tint = colour[:, :, None, None] * (facing * knit * seams)[:, None]
    canvas.paint(tint, canvas.inside(dome, scale) * some, BACKGROUND)

    band = torch.maximum(
        torch.maximum((hy + 0.50).abs() - 0.11, (head.radius - inflation - 0.03) * 0.75), head.v + 0.05
    )
    canvas.paint(tint * 0.82, canvas.inside(band, scale) * worn["beanie"], BACKGROUND)
    ribbon = torch.maximum((hy + 0.56).abs() - 0.075, (head.radius - inflation) * 0.75)
    canvas.paint(tint * 0.55, canvas.inside(ribbon, scale) * worn["sun hat"], BACKGROUND)

    vx, vy = _brim_frame(head, 0.34)
    visor = ((vx / col(head.who.head_width * 0.92)).square() + ((vy + 0.40) / 0.15).square()).sqrt().sub(1) * 0.15
    canvas.paint(tint * 0.78, canvas.inside(visor, scale) * worn["cap"], BACKGROUND)
    bx, by = _brim_frame(head, 0.05)
    brim = ((bx / col(head.who.head_width * 1.50)).square() + ((by + 0.47) / 0.16).square()).sqrt().sub(1) * 0.17
    canvas.paint(tint * 0.90, canvas.inside(brim, scale) * worn["sun hat"], BACKGROUND)


def _brim_frame(head: HeadFrame, protrusion: float) -> tuple[Tensor, Tensor]:
    """Head-plane coordinates of something flat that sticks out in front of the head by `protrusion`."""
    return head.u - (0.55 + protrusion) * col(head.sin_yaw), head.v - protrusion * col(head.sin_pitch)

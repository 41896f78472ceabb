"""Neck, shoulders and clothes, in the picture's own upright frame."""

import torch
from torch import Tensor

from feedface.synthetic.world.canvas import BACKGROUND, Canvas, col, smoothstep
from feedface.synthetic.world.geometry import HeadFrame
from feedface.synthetic.world.scene import CLOTHES, COLOUR_RGB


def paint_body(canvas: Canvas, head: HeadFrame) -> None:
    """Neck, then the garment with its collar, folds and pattern. They hide hair that falls behind them."""
    who, scene = head.who, head.scene
    skin, colour = who.skin(), COLOUR_RGB[scene.clothes_colour]
    garment = {name: scene.clothes == i for i, name in enumerate(CLOTHES)}
    scale = scene.scale
    # Body frame: origin below the chin, in half head heights; it stays upright and lags behind the head.
    bx = (canvas.x - col(scene.x * 0.7)) / col(scale)
    by = (canvas.y - col(scene.y)) / col(scale) - 1.0
    man = (who.gender == 0).float()

    neck_half = col(0.34 + 0.08 * man)
    neck = canvas.inside(bx.abs() - neck_half - 0.25 * smoothstep(0.05, 0.5, by), scale) * canvas.inside(
        -by - 0.7, scale
    )
    shadow = 0.62 + 0.25 * smoothstep(0.0, 0.45, by)
    hood = col(garment["hoodie"].float())
    inside_hood = canvas.inside((_hood_ring(bx, by) - 1) * 0.34, scale) * smoothstep(-0.20, -0.14, by)
    canvas.paint(colour * 0.50, inside_hood * hood, BACKGROUND)
    canvas.paint(skin[:, :, None, None] * shadow[:, None], neck, BACKGROUND)

    slope = 0.16 + 0.36 * (bx.abs() / col(1.45 + 0.2 * man)).pow(2.2)
    rounding = 2.0 * (bx.abs() - col(1.62 + 0.22 * man)).clamp(min=0).square()
    surface = slope + rounding - by
    cloth = canvas.inside(surface * 0.8, scale)
    folds = 1.0 + 0.10 * (6 * bx + 2.5 * by + col(scene.background_phase)).sin() * smoothstep(0.2, 0.9, by)
    side = 1.0 + 0.22 * col(scene.light_x) * (bx / 1.6).clamp(-1, 1) - 0.12 * (bx / 1.6).square().clamp(max=1)
    tint = colour[:, :, None, None] * (folds * side)[:, None]

    stripes = smoothstep(-0.25, 0.25, (by * 17).sin()) * col(garment["striped shirt"].float())
    pale = torch.where(
        (scene.clothes_colour == 6)[:, None], torch.tensor([[0.25, 0.3, 0.5]]), torch.tensor([[0.95, 0.95, 0.93]])
    )
    tint = torch.lerp(tint, pale[:, :, None, None] * side[:, None], stripes[:, None])
    canvas.paint(tint, cloth, BACKGROUND)

    neckline = _neckline(bx, by, garment, neck_half)
    opening = canvas.inside(neckline, scale) * cloth
    bare = skin[:, :, None, None] * (0.70 + 0.22 * smoothstep(0.0, 0.5, by))[:, None]
    bare = torch.lerp(bare, pale[:, :, None, None], col(garment["suit"].float())[:, None])
    canvas.paint(bare, opening, BACKGROUND)
    hem = neckline.abs() - 0.035
    canvas.shade(
        torch.full_like(bx, 0.72), canvas.inside(hem, scale) * cloth * col(1 - garment["striped shirt"].float())
    )

    _paint_hood(canvas, bx, by, colour, hood, scale)
    _paint_tie(canvas, bx, by, scene.clothes_colour, col(garment["suit"].float()) * cloth, scale)


def _neckline(bx: Tensor, by: Tensor, garment: dict[str, Tensor], neck_half: Tensor) -> Tensor:
    """Signed distance of the collar opening: round for T-shirts and hoodies, a V for suits and v-necks."""
    round_neck = ((bx / (neck_half + 0.10)).square() + ((by - 0.12) / 0.22).square()).sqrt().sub(1) * 0.22
    v_neck = (bx.abs() - (0.46 - 0.52 * (by - 0.05))) * 0.85
    deep = (bx.abs() - (0.52 - 0.40 * (by - 0.05))) * 0.85
    shape = torch.where(col(garment["v-neck"]), v_neck, round_neck)
    return torch.where(col(garment["suit"]), deep, shape)


def _hood_ring(bx: Tensor, by: Tensor) -> Tensor:
    """1 on the middle of the hood's roll round the neck, less inside it."""
    return ((bx / 0.72).square() + ((by - 0.16) / 0.34).square()).sqrt()


def _paint_hood(canvas: Canvas, bx: Tensor, by: Tensor, colour: Tensor, worn: Tensor, scale: Tensor) -> None:
    roll = canvas.inside((_hood_ring(bx, by) - 1).abs() * 0.42 - 0.11, scale) * smoothstep(-0.12, 0.0, by)
    canvas.paint(colour * 0.80, roll * worn, BACKGROUND)
    cords = (
        canvas.inside((bx.abs() - 0.20).abs() - 0.022, scale) * smoothstep(0.42, 0.46, by) * smoothstep(0.95, 0.90, by)
    )
    canvas.paint((colour + 0.45).clamp(max=1), cords * worn)


def _paint_tie(canvas: Canvas, bx: Tensor, by: Tensor, clothes_colour: Tensor, worn: Tensor, scale: Tensor) -> None:
    tie = canvas.inside(bx.abs() - (0.075 + 0.07 * smoothstep(0.25, 0.9, by)), scale) * smoothstep(0.20, 0.24, by)
    canvas.paint(COLOUR_RGB[(clothes_colour + 3) % len(COLOUR_RGB)] * 0.85, tie * worn)
    lapel = canvas.inside(((bx.abs() - (0.62 - 0.42 * (by - 0.05))).abs() - 0.02) * 0.9, scale) * smoothstep(
        0.1, 0.2, by
    )
    canvas.shade(torch.full_like(bx, 0.6), lapel * worn)

"""Backgrounds: every one has more than one colour, and depth enough to look like a place."""

import torch
from torch import Tensor

from feedface.synthetic.world.canvas import Canvas, col, smoothstep
from feedface.synthetic.world.scene import BACKGROUNDS, Scenes

_BACKDROPS = {"blue backdrop": (0.30, 0.48, 0.78), "green backdrop": (0.36, 0.62, 0.40),
              "red backdrop": (0.72, 0.28, 0.28), "grey backdrop": (0.62, 0.62, 0.64)}  # fmt: skip


def paint_background(canvas: Canvas, scene: Scenes) -> None:
    """Paint each portrait's background; portraits are grouped by kind, so that each kind is computed once."""
    for kind, name in enumerate(BACKGROUNDS):
        rows = (scene.background == kind).nonzero()[:, 0]
        if not len(rows):
            continue
        x, y, phase = canvas.x[rows], canvas.y[rows], col(scene.background_phase[rows])
        if name in _BACKDROPS:
            picture = _backdrop(x, y, phase, _BACKDROPS[name])
        else:
            picture = _PAINTERS[name](x, y, phase)
        canvas.rgb[rows] = (picture * scene.background_shade[rows, None, None, None]).clamp(0, 1)


def _rgb(red: float, green: float, blue: float) -> Tensor:
    return torch.tensor([red, green, blue])[None, :, None, None]


def _mix(below: Tensor, above: Tensor, amount: Tensor) -> Tensor:
    return below + (above - below) * amount[:, None]


def _backdrop(x: Tensor, y: Tensor, phase: Tensor, colour: tuple[float, float, float]) -> Tensor:
    # A spot light on cloth: bright off centre, darker to the corners, with soft folds.
    distance = ((x - 0.5 * phase.cos()) ** 2 + (y + 0.3) ** 2).sqrt()
    folds = 0.05 * (7 * x + 2 * phase + 1.5 * (3 * y).sin()).sin()
    return _rgb(*colour) * (1.25 - 0.45 * distance + folds)[:, None]


def _beach(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    horizon = 0.05 + 0.12 * phase.sin()
    sky = _mix(_rgb(0.40, 0.66, 0.93), _rgb(0.82, 0.92, 0.98), smoothstep(-1.0, horizon, y))
    cloud = smoothstep(0.55, 0.95, (3 * x + 2 * phase).sin() * (5 * y + phase).sin())
    sky = _mix(sky, _rgb(0.97, 0.98, 1.0), 0.6 * cloud)
    sea = _mix(_rgb(0.10, 0.50, 0.66), _rgb(0.28, 0.72, 0.76), 0.5 + 0.5 * (40 * y + 3 * (4 * x).sin()).sin())
    sand = _mix(_rgb(0.90, 0.80, 0.58), _rgb(0.82, 0.70, 0.48), 0.5 + 0.5 * (9 * x + 14 * y).sin())
    shore = horizon + 0.32 + 0.05 * (3 * x + phase).sin()
    return _mix(
        _mix(sky, sea, smoothstep(horizon - 0.015, horizon + 0.015, y)), sand, smoothstep(shore - 0.03, shore + 0.03, y)
    )


def _forest(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    leaves = (6 * x + phase).sin() * (7 * y + 2 * phase).sin() + 0.7 * (13 * x + 11 * y + phase).sin()
    leaves = leaves + 0.5 * (17 * x - 19 * y).sin()
    green = _mix(_rgb(0.08, 0.22, 0.10), _rgb(0.36, 0.58, 0.20), smoothstep(-1.2, 1.6, leaves))
    light = smoothstep(1.2, 1.9, leaves) * smoothstep(0.6, -0.6, y)
    trunk = smoothstep(0.93, 0.98, (4.2 * x + phase + 0.2 * (2 * y).sin()).cos())
    return _mix(_mix(green, _rgb(0.80, 0.90, 0.55), light), _rgb(0.22, 0.14, 0.09), trunk)


def _city_at_night(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    sky = _mix(_rgb(0.04, 0.05, 0.15), _rgb(0.20, 0.15, 0.35), smoothstep(-1.0, 1.0, y))
    block = (x * 3.0 + phase).floor()
    roof = -0.55 + 0.35 * (block * 12.9898 + phase).sin()
    building = smoothstep(-0.01, 0.01, y - roof)
    walls = _mix(_rgb(0.07, 0.08, 0.14), _rgb(0.13, 0.12, 0.20), 0.5 + 0.5 * (block * 5.3).sin())
    column, line = (x * 15 + 5 * phase), (y * 11)
    frame = smoothstep(0.0, 0.45, (column * 6.2832).sin()) * smoothstep(0.0, 0.45, (line * 6.2832).sin())
    lit = ((column.floor() * 127.1 + line.floor() * 311.7 + phase).sin() * 43.7).frac().abs() > 0.45
    return _mix(_mix(sky, walls, building), _rgb(1.0, 0.83, 0.42), building * frame * lit)


def _sunset(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    sky = _mix(_rgb(0.36, 0.22, 0.50), _rgb(0.98, 0.52, 0.22), smoothstep(-1.0, 0.35, y))
    sky = _mix(sky, _rgb(1.0, 0.80, 0.40), smoothstep(0.0, 0.45, y))
    sun = (x - 0.75 * phase.cos().sign()) ** 2 + (y + 0.05) ** 2
    sky = _mix(sky, _rgb(1.0, 0.95, 0.72), smoothstep(0.075, 0.045, sun))
    hills = 0.42 + 0.08 * (3 * x + phase).sin() + 0.04 * (7 * x).sin()
    return _mix(sky, _rgb(0.20, 0.10, 0.18), smoothstep(hills - 0.02, hills + 0.02, y))


def _brick_wall(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    line = y * 5 + phase
    across = x * 2.5 + 0.5 * (line.floor() % 2) + phase
    tone = (across.floor() * 91.7 + line.floor() * 47.3).sin()
    brick = _mix(_rgb(0.58, 0.27, 0.20), _rgb(0.72, 0.38, 0.27), 0.5 + 0.5 * tone)
    edge = torch.minimum(
        (across.frac().abs() - 0.5).abs().neg() + 0.5, ((line.frac().abs() - 0.5).abs().neg() + 0.5) * 0.6
    )
    return _mix(_rgb(0.80, 0.76, 0.70), brick, smoothstep(0.03, 0.09, edge))


def _snowy_mountains(x: Tensor, y: Tensor, phase: Tensor) -> Tensor:
    sky = _mix(_rgb(0.36, 0.58, 0.88), _rgb(0.84, 0.92, 0.98), smoothstep(-1.0, 0.2, y))
    ridge = -0.35 + 0.55 * ((x * 1.3 + phase).frac().abs() - 0.5).abs() * 2 + 0.05 * (23 * x).sin()
    rock = _mix(_rgb(0.40, 0.45, 0.56), _rgb(0.30, 0.34, 0.45), smoothstep(-0.2, 0.2, (11 * x + 3 * y).sin()))
    snow_line = ridge + 0.22 + 0.08 * (15 * x + phase).sin()
    mountain = _mix(_rgb(0.95, 0.97, 1.0), rock, smoothstep(snow_line - 0.03, snow_line + 0.03, y))
    picture = _mix(sky, mountain, smoothstep(ridge - 0.015, ridge + 0.015, y))
    field = 0.55 + 0.06 * (2.5 * x + phase).sin()
    return _mix(picture, _rgb(0.93, 0.95, 0.99), smoothstep(field - 0.03, field + 0.03, y))


_PAINTERS = {"beach": _beach, "forest": _forest, "city at night": _city_at_night, "sunset": _sunset,
             "brick wall": _brick_wall, "snowy mountains": _snowy_mountains}  # fmt: skip

"""Head, ears and the features of the face, painted in face coordinates so that they turn with the head."""

import torch
from torch import Tensor

from feedface.synthetic.world.canvas import (
    INNER_MOUTH,
    LEFT_BROW,
    LEFT_EYE,
    LOWER_LIP,
    NOSE,
    RIGHT_BROW,
    RIGHT_EYE,
    SKIN,
    UPPER_LIP,
    Canvas,
    col,
    smoothstep,
)  # fmt: skip
from feedface.synthetic.world.geometry import HeadFrame
from feedface.synthetic.world.identity import BEARDS
from feedface.synthetic.world.scene import EXPRESSIONS

NOSE_PROTRUSION = 0.15


def paint_head(canvas: Canvas, head: HeadFrame) -> Tensor:
    """Ears and the shaded skull; returns the head's coverage [N, H, W]."""
    who = head.who
    skin = who.skin()
    for side in (-1.0, 1.0):
        # An ear slides behind the head on the side that turns away.
        ear_u = head.u * side - col(who.head_width * 0.97 - 0.10 * side * head.sin_yaw)
        ear = ((ear_u / col(who.ear_size * 0.62)).square() + ((head.v - 0.08) / col(who.ear_size)).square()).sqrt() - 1
        ear = ear * col(who.ear_size * 0.62)
        canvas.paint(skin * 0.86, canvas.inside(ear, head.scale), SKIN)
        canvas.paint(skin * 0.66, canvas.inside(ear + 0.055, head.scale))
    coverage = canvas.inside((head.radius - 1) * 0.72, head.scale)
    canvas.paint(skin[:, :, None, None] * _light(head)[:, None], coverage, SKIN)
    return coverage


def _light(head: HeadFrame) -> Tensor:
    """[N, H, W] factor: a soft light from the scene's direction on a ball, darker towards the edge."""
    scene = head.scene
    nx, ny = (head.u / head.half_width).clamp(-1, 1), head.v.clamp(-1, 1)
    facing = nx * col(scene.light_x) + ny * col(scene.light_y)
    return 0.80 + 0.24 * head.depth + col(scene.light_strength) * 0.55 * facing


def paint_skin_details(canvas: Canvas, head: HeadFrame, coverage: Tensor) -> None:
    """Blush, freckles, a mole and the lines of age."""
    who, scale = head.who, head.scale
    fx, fy = head.fx, head.fy
    cheek = ((fx.abs() - 0.40).square() + (fy - 0.30).square()) / 0.045
    red = torch.tensor([[0.80, 0.30, 0.28]])
    canvas.paint(red, (-cheek).exp() * col(0.05 + 0.30 * who.blush) * coverage)
    phase = col(who.texture_phase)
    # Two gratings that do not line up, bent, so that the dots do not stand in rows.
    dots = (27 * fx + 2.0 * (9 * fy).sin() + phase).sin() * (25 * fy + 2.0 * (8 * fx + phase).sin() + 2 * phase).sin()
    dots = smoothstep(0.40, 0.95, dots)
    band = smoothstep(0.62, 0.40, fx.abs()) * smoothstep(0.02, 0.12, fy) * smoothstep(0.52, 0.38, fy)
    canvas.paint(
        who.skin() * torch.tensor([[0.68, 0.52, 0.42]]), dots * band * col((who.freckles == 1) * 0.60) * coverage
    )
    mole = ((fx - col(who.mole_x)).square() + (fy - col(who.mole_y)).square()).sqrt() - 0.042
    canvas.paint(who.skin() * 0.32, canvas.inside(mole, scale) * col((who.mole == 1).float()) * coverage)
    # Past sixty percent of the age range: forehead lines, and folds from nose to mouth.
    old = col(((who.age - 0.6) / 0.4).clamp(0, 1)) * coverage
    forehead = smoothstep(0.35, 0.8, (34 * (fy + 0.05 * fx.square())).sin()) * smoothstep(0.42, 0.25, fx.abs())
    forehead = forehead * smoothstep(-0.52, -0.46, fy) * smoothstep(-0.26, -0.32, fy)
    fold = canvas.inside(((fx.abs() - 0.20 - 0.30 * (fy - 0.3)).abs() - 0.014), scale) * smoothstep(0.3, 0.36, fy)
    canvas.shade(torch.full_like(fx, 0.72), (forehead + fold * smoothstep(0.62, 0.52, fy)).clamp(0, 1) * old)


def paint_eyes(canvas: Canvas, head: HeadFrame, coverage: Tensor) -> None:
    """Sockets, eyes with iris, pupil and glint, lids, and the brows above."""
    who, scene, scale = head.who, head.scene, head.scale
    surprised = (scene.expression == EXPRESSIONS.index("surprised")).float()
    laughing = (scene.expression == EXPRESSIONS.index("laugh")).float()
    sad = (scene.expression == EXPRESSIONS.index("sad")).float()
    openness = who.eye_openness * (1 + 0.22 * surprised - 0.38 * laughing - 0.15 * sad)
    brow_rise = 0.09 * surprised - 0.01 * sad
    hair, iris_colour = who.hair(), who.iris()
    brow_colour = torch.where((who.dyed > 0)[:, None], torch.tensor([[0.22, 0.15, 0.11]]), hair * 0.75)
    eye_x, eye_y = head.protruding(-0.03)
    for side, eye_label, brow_label in ((-1.0, RIGHT_EYE, RIGHT_BROW), (1.0, LEFT_EYE, LEFT_BROW)):
        dx, dy = eye_x * side - col(who.eye_spacing), eye_y - col(who.eye_height)
        socket = (dx / 0.27).square() + ((dy + 0.02) / 0.19).square()
        canvas.shade(1 - 0.20 * (-socket).exp(), coverage)
        dy_tilted = dy + col(who.eye_tilt) * dx
        height = who.eye_width * openness
        across = (dx / col(who.eye_width)).clamp(-1, 1)
        lens = col(height) * (1 - across.square()).clamp(min=0).pow(0.8)
        distance = torch.maximum(dy_tilted.abs() - lens, dx.abs() - col(who.eye_width))
        eye = canvas.inside(distance, scale) * coverage
        canvas.paint(torch.tensor([[0.95, 0.94, 0.92]]), eye, eye_label)
        from_centre = (dx.square() + dy_tilted.square()).sqrt()
        radius = 0.102  # so large that the lids cut it: an iris with white all round stares
        canvas.paint(iris_colour * 0.55, canvas.inside(from_centre - radius, scale) * eye)
        canvas.paint(iris_colour, canvas.inside(from_centre - radius * 0.84, scale) * eye)
        canvas.paint(torch.tensor([[0.03, 0.03, 0.04]]), canvas.inside(from_centre - 0.042, scale) * eye)
        glint = ((dx * side + 0.03).square() + (dy_tilted + 0.035).square()).sqrt() - 0.026
        canvas.paint(torch.ones(1, 3), canvas.inside(glint, scale) * eye * 0.9)
        lash = 0.030 + 0.014 * (who.gender == 1)
        lid = (
            canvas.inside((dy_tilted + lens).abs() - col(lash), scale)
            * (dx.abs() < col(who.eye_width * 1.08))
            * coverage
        )
        canvas.paint(who.skin() * 0.22, lid * 0.9)

        along = (dx / col(who.brow_length)).clamp(-1.2, 1.2)
        tilt = col(who.brow_tilt + 0.22 * sad)
        arch = col(who.eye_height - who.brow_gap - brow_rise) + 0.055 * along.square() + tilt * along * 0.20
        thickness = col(who.brow_thickness) * (1.05 - 0.45 * smoothstep(0.0, 1.0, along))
        brow = torch.maximum((eye_y - arch).abs() - thickness, (along.abs() - 1) * col(who.brow_length))
        canvas.paint(brow_colour, canvas.inside(brow, scale) * coverage * 0.95, brow_label)


def paint_nose(canvas: Canvas, head: HeadFrame) -> None:
    """Bridge, tip and nostrils by light and shadow."""
    who, scene, scale = head.who, head.scene, head.scale
    nx, ny = head.protruding(NOSE_PROTRUSION)
    ny = ny - col(who.eye_height)
    half = col(who.nose_width)
    down = (ny / col(who.nose_length)).clamp(0, 1)
    ends = torch.maximum(-ny, ny - col(who.nose_length) - 0.05)
    wedge = torch.maximum(nx.abs() - half * (0.32 + 0.68 * down.square()), ends)
    region = canvas.inside(wedge, scale)
    canvas.labels = torch.where(region > 0.5, NOSE, canvas.labels)
    shadow_side = smoothstep(0.0, 1.0, -nx * col(scene.light_x.sign()) / half) * smoothstep(0.05, 0.5, down)
    canvas.shade(1 - 0.26 * shadow_side, region)
    tip_y = ny - col(who.nose_length) + 0.055
    tip = (nx / half).square() + (tip_y / 0.10).square()
    canvas.paint(torch.lerp(who.skin(), torch.tensor([[0.85, 0.32, 0.28]]), (0.5 * who.nose_redness)[:, None]),
                 (-1.3 * tip).exp() * 0.6)  # fmt: skip
    highlight = (nx / 0.055).square() + (tip_y / 0.05).square()
    canvas.paint(torch.ones(1, 3), (-highlight).exp() * 0.28)
    bridge = (nx / 0.045).square() + smoothstep(0.75, 1.0, down) * 9
    canvas.paint(torch.ones(1, 3), (-bridge).exp() * 0.14 * smoothstep(-0.05, 0.1, ny))
    under = ((nx / (half * 1.05)).square() + ((tip_y - 0.085) / 0.045).square()).sqrt() - 1
    canvas.shade(torch.full_like(nx, 0.66), canvas.inside(under * 0.045, scale))
    for side in (-1.0, 1.0):
        nostril = ((nx * side - half * 0.50) / (half * 0.34)).square() + ((tip_y - 0.070) / 0.032).square()
        canvas.paint(who.skin() * 0.30, canvas.inside((nostril.sqrt() - 1) * 0.032, scale) * 0.9)


def mouth_shape(head: HeadFrame) -> tuple[Tensor, Tensor, Tensor]:
    """[N] half width, corner lift and half opening of each mouth, by person and expression."""
    who, expression = head.who, head.scene.expression
    # Rows: neutral, smile, laugh, sad, surprised.
    width = torch.tensor([1.0, 1.18, 1.22, 0.92, 0.72])[expression]
    lift = torch.tensor([0.0, 0.095, 0.085, -0.085, 0.0])[expression]
    opening = torch.tensor([0.0, 0.0, 0.085, 0.0, 0.115])[expression]
    return who.mouth_width * width, lift, opening


def paint_mouth(canvas: Canvas, head: HeadFrame) -> None:
    """Lips, the line between them, and teeth or a dark opening when the mouth is open."""
    who, scale = head.who, head.scale
    half, lift, opening = mouth_shape(head)
    mx, my = head.protruding(0.05)
    along = mx / col(half)
    profile = (1 - along.square()).clamp(min=0)
    centre = col(who.mouth_height) + col(lift) * (0.35 - along.square())
    dy = my - centre
    limits = (along.abs() - 1) * col(half)
    gap = col(opening) * profile.sqrt()
    upper_edge = col(who.upper_lip) * profile.sqrt() * (1 - 0.30 * (-(along / 0.22).square()).exp()) + gap
    lower_edge = col(who.lower_lip) * profile.pow(0.75) + gap
    lips = who.lips()
    upper = torch.maximum(torch.maximum(-upper_edge - dy, dy + gap), limits)
    lower = torch.maximum(torch.maximum(gap - dy, dy - lower_edge), limits)
    inner = torch.maximum(dy.abs() - gap, limits)
    canvas.paint(lips * 1.08, canvas.inside(lower, scale), LOWER_LIP)
    canvas.paint(lips * 0.86, canvas.inside(upper, scale), UPPER_LIP)
    open_mouth = canvas.inside(inner, scale) * col((opening > 0).float())
    canvas.paint(torch.tensor([[0.30, 0.06, 0.07]]), open_mouth, INNER_MOUTH)
    laughing = col((head.scene.expression == EXPRESSIONS.index("laugh")).float())
    teeth = canvas.inside(torch.maximum(dy - gap * 0.25, -dy - gap), scale) * open_mouth * laughing
    canvas.paint(torch.tensor([[0.96, 0.95, 0.91]]), teeth)
    line = canvas.inside(torch.maximum(dy.abs() - 0.020, limits - 0.03), scale) * col((opening == 0).float())
    canvas.paint(lips * 0.40, line * 0.9)
    gloss = (-((along / 0.35).square() + ((dy - 0.5 * lower_edge) / 0.02).square())).exp()
    canvas.paint(torch.ones(1, 3), gloss * 0.16)


def paint_beard(canvas: Canvas, head: HeadFrame, coverage: Tensor) -> None:
    """Stubble, moustache, goatee or full beard, in the hair's colour. Paint before the lips."""
    who, scale = head.who, head.scale
    fx, fy = head.fx, head.fy
    half, _, _ = mouth_shape(head)
    grown = {name: col((who.beard == i).float()) for i, name in enumerate(BEARDS)}
    strands = 0.94 + 0.06 * (61 * fx + 1.5 * (17 * fy).sin() + col(who.texture_phase)).sin() * (47 * fy).cos()
    colour = (who.hair() * 0.82)[:, :, None, None] * (strands * (0.85 + 0.15 * head.depth))[:, None]
    mouth_y = col(who.mouth_height)
    cheeks = 0.50 - 0.85 * (fx.abs() - 0.25).clamp(min=0) - fy
    around_lips = ((fx / col(half * 0.95)).square() + ((fy - mouth_y) / 0.10).square()).sqrt()
    full = smoothstep(0.10, -0.12, cheeks) * smoothstep(0.80, 1.15, around_lips)
    full = torch.maximum(
        full, canvas.inside((fy - mouth_y + 0.13).abs() - 0.055, scale) * smoothstep(0.36, 0.30, fx.abs())
    )
    canvas.paint(colour, full * coverage * (0.92 * grown["full beard"] + 0.26 * grown["stubble"]))
    chin = ((fx / 0.27).square() + ((fy - mouth_y - 0.27) / 0.20).square()).sqrt() - 1
    goatee = torch.maximum(
        canvas.inside(chin * 0.2, scale), canvas.inside((around_lips - 1.35).abs() * 0.1 - 0.035, scale)
    )
    canvas.paint(colour, goatee * coverage * 0.92 * grown["goatee"])
    droop = (fy - mouth_y + 0.125 - 0.45 * fx.square()).abs() - 0.062 * (1 - (fx / col(half * 1.15)).square()).clamp(
        min=0
    ).sqrt()
    moustache = canvas.inside(torch.maximum(droop, fx.abs() - col(half * 1.15)), scale)
    canvas.paint(colour, moustache * coverage * 0.95 * grown["moustache"])

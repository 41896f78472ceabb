"""Hair: what hangs behind, what falls before the shoulders, and the cap that grows from the hairline."""

import torch
from torch import Tensor

from feedface.synthetic.world.canvas import HAIR, Canvas, col, smoothstep
from feedface.synthetic.world.geometry import HeadFrame
from feedface.synthetic.world.identity import HAIR_STYLES

# Per style: volume of the cap over the skull (low, range), how far the sides reach down (low, range; -1 crown, 1 chin),
# length of the hanging hair (low, range; 0 = none), its half width, waves of its edge, curls of the cap, fringe.
_STYLE = {
    #                 volume         sides          length       width  waves  curls  fringe
    "bald":          (0.00, 0.00, -1.20, 0.00,  0.00, 0.00,  0.0,  0.00,  0.00,  0.0),
    "buzz cut":      (0.03, 0.02, -0.15, 0.15,  0.00, 0.00,  0.0,  0.00,  0.00,  0.0),
    "short":         (0.09, 0.07, -0.05, 0.20,  0.00, 0.00,  0.0,  0.00,  0.02,  0.3),
    "side part":     (0.13, 0.08, -0.05, 0.20,  0.00, 0.00,  0.0,  0.00,  0.00,  0.2),
    "quiff":         (0.12, 0.06, -0.20, 0.15,  0.00, 0.00,  0.0,  0.00,  0.02,  0.0),
    "curly":         (0.20, 0.12,  0.10, 0.30,  0.00, 0.00,  0.0,  0.00,  0.06,  0.5),
    "afro":          (0.38, 0.22,  0.20, 0.20,  0.00, 0.00,  0.0,  0.00,  0.035, 0.2),
    "bob":           (0.12, 0.06,  0.55, 0.20,  0.75, 0.35,  1.10, 0.00,  0.00,  0.9),
    "long straight": (0.09, 0.05,  0.60, 0.20,  1.45, 0.75,  1.05, 0.00,  0.00,  0.2),
    "long wavy":     (0.15, 0.08,  0.60, 0.20,  1.30, 0.70,  1.18, 0.07,  0.03,  0.1),
    "bun":           (0.06, 0.03, -0.05, 0.15,  0.00, 0.00,  0.0,  0.00,  0.00,  0.0),
}  # fmt: skip
_TABLE = torch.tensor([_STYLE[name] for name in HAIR_STYLES])


class Hair:
    """The hair of N people on one canvas; paint `behind`, then the body, then `hanging`, the head, and `cap`."""

    def __init__(self, canvas: Canvas, head: HeadFrame):
        self.canvas, self.head, self.who = canvas, head, head.who
        style = _TABLE[self.who.hair_style]
        amount = self.who.hair_volume
        self.volume = style[:, 0] + style[:, 1] * amount
        self.sides = style[:, 2] + style[:, 3] * self.who.hair_length
        self.length = style[:, 4] + style[:, 5] * self.who.hair_length
        self.width, self.waves, self.curls, self.fringe = style[:, 6], style[:, 7], style[:, 8], style[:, 9]
        self.hangs = col((self.length > 0).float())
        self.colour = self.who.hair()
        # Long hair hangs from the back of the head and so swings against the turn.
        self._u = head.u + 0.12 * col(head.sin_yaw)
        wave = col(self.waves) * (7 * head.v + col(self.who.texture_phase)).sin()
        spread = col(self.width * self.who.head_width) * (1 + 0.10 * smoothstep(0.3, 1.6, head.v)) * (1 + wave)
        # Above the ears the hanging hair rounds off with the skull, so that it meets the cap without a corner.
        spread = spread * (1 - 0.80 * head.v.clamp(max=0).square()).clamp(min=0).sqrt()
        self._hanging = torch.maximum(
            self._u.abs() - spread * 1.12, torch.maximum(-1.0 - head.v, head.v - col(self.length))
        )

    def _strands(self, along: Tensor, frequency: float) -> Tensor:
        phase = col(self.who.texture_phase)
        return 0.93 + 0.07 * (frequency * along + phase + 2.2 * (2.6 * self.head.v + phase).sin()).sin()

    def behind(self) -> None:
        """Hanging hair behind neck and shoulders, and the bun."""
        bun_here = col((self.who.hair_style == HAIR_STYLES.index("bun")).float())
        bun = (self.head.u.square() + (self.head.v + 1.12).square()).sqrt() - col(0.25 + 0.12 * self.who.hair_volume)
        light = 0.70 + 0.35 * smoothstep(-0.8, -1.5, self.head.v)
        shade = (self._strands(self.head.u, 19.0) * light)[:, None]
        self.canvas.paint(
            self.colour[:, :, None, None] * shade, self.canvas.inside(bun, self.head.scale) * bun_here, HAIR
        )
        shade = (self._strands(self._u, 17.0) * 0.62)[:, None]
        hanging = self.canvas.inside(self._hanging, self.head.scale) * self.hangs
        self.canvas.paint(self.colour[:, :, None, None] * shade, hanging, HAIR)

    def hanging(self) -> None:
        """Locks that fall in front of the shoulders on both sides of the neck."""
        inner = col(0.70 * self.who.head_width) - 0.12 * smoothstep(0.3, 1.4, self.head.v)
        locks = torch.maximum(self._hanging, inner - self._u.abs())
        shade = (self._strands(self._u, 17.0) * (0.92 - 0.16 * self._u.abs()))[:, None]
        self.canvas.paint(
            self.colour[:, :, None, None] * shade, self.canvas.inside(locks, self.head.scale) * self.hangs, HAIR
        )

    def cap(self) -> None:
        """The hair on the skull: everything above the hairline, with volume, fringe, parting, quiff and curls."""
        head, who = self.head, self.who
        quiff = (who.hair_style == HAIR_STYLES.index("quiff")).float()
        angle = torch.atan2(head.u, -head.v)
        bumps = col(self.curls) * (13 * angle + 5 * (3 * angle).sin() + col(who.texture_phase)).sin()
        top = smoothstep(0.6, -0.9, head.v)
        volume = col(self.volume) * top + col(quiff * 0.16) * smoothstep(-0.6, -1.0, head.v) + bumps * top
        outline = head.radius - (1 + volume)
        hx, hy, _ = head.surface(1 + 0.5 * self.volume)
        parting = col(who.parting)
        side_part = col((who.hair_style == HAIR_STYLES.index("side part")).float())
        combed = side_part * (0.42 * parting.sign() * hx).clamp(min=-0.16)
        recede = 0.10 * (6 * hx.abs() - 1.6).clamp(0, 1) * col((who.gender == 0).float())
        front = col(who.hairline + 0.30 * self.fringe) + combed - recede + 0.22 * hx.square()
        fringe_edge = 0.03 * col(self.fringe) * (26 * hx + col(who.texture_phase)).sin()
        turn = smoothstep(0.74, 0.98, hx.abs() / col(who.head_width))
        sides = col(self.sides) * turn + front * (1 - turn) + fringe_edge
        hair = torch.maximum(outline * 0.75, hy - sides)
        bald = col((who.hair_style == HAIR_STYLES.index("bald")).float())
        coverage = self.canvas.inside(hair, head.scale) * (1 - bald)
        scene = head.scene
        facing = 0.5 * (head.u * col(scene.light_x) + head.v * col(scene.light_y))
        gloss = (-((head.v + 0.72 + 0.25 * head.u * col(scene.light_x)) / 0.16).square()).exp()
        shade = self._strands(torch.where(top > 0.3, hx, head.u), 21.0) * (0.86 + 0.30 * facing) + 0.16 * gloss
        shade = shade + 1.6 * bumps
        buzz = col((who.hair_style == HAIR_STYLES.index("buzz cut")).float())
        self.canvas.paint(self.colour[:, :, None, None] * shade[:, None], coverage * (1 - 0.28 * buzz), HAIR)

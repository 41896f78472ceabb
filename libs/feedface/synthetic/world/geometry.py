"""The head as a turned, textured ball: from picture positions to places on the face and back.

Head plane: (u, v), origin at the head's centre, rolled with it, in half head heights (crown v = -1, chin v = +1).
Face coordinates: (fx, fy) on the surface after undoing yaw and pitch, the same units; features live there, and so
they move, narrow and vanish round the edge as the head turns.
"""

import torch
from torch import Tensor

from feedface.synthetic.world.canvas import Canvas, col, smoothstep
from feedface.synthetic.world.identity import Identities
from feedface.synthetic.world.scene import Scenes


class HeadFrame:
    """Per-pixel head-plane and face coordinates of N heads on a canvas, and the forward projection of face points."""

    def __init__(self, canvas: Canvas, who: Identities, scene: Scenes):
        self.who, self.scene = who, scene
        yaw, pitch, roll = (torch.deg2rad(angle) for angle in scene.pose().unbind(1))
        self.sin_yaw, self.cos_yaw = yaw.sin(), yaw.cos()
        self.sin_pitch, self.cos_pitch = pitch.sin(), pitch.cos()
        self.sin_roll, self.cos_roll = roll.sin(), roll.cos()
        self.scale = scene.scale
        dx, dy = canvas.x - col(scene.x), canvas.y - col(scene.y)
        self.u = (dx * col(self.cos_roll) + dy * col(self.sin_roll)) / col(self.scale)
        self.v = (dy * col(self.cos_roll) - dx * col(self.sin_roll)) / col(self.scale)
        self.half_width = self.outline_width(self.v)
        self.radius = self._radius()
        self.fx, self.fy, self.depth = self.surface(1.0)

    def outline_width(self, v: Tensor) -> Tensor:
        """Half width of the head's box at height v: narrower towards the chin, by the person's jaw."""
        return col(self.who.head_width) * (1 - col(self.who.jaw_taper) * smoothstep(0.0, 1.0, v))

    def _radius(self) -> Tensor:
        # A superellipse: round above, squarer at the jaw; the head's outline is radius = 1.
        power = torch.where(self.v > 0, col(self.who.jaw_power), torch.tensor(2.1))
        height = torch.where(self.v > 0, col(self.who.chin), torch.tensor(1.0))
        across, down = (self.u / self.half_width).abs() + 1e-4, (self.v / height).abs() + 1e-4
        return (across.pow(power) + down.pow(power)).pow(1 / power)

    def surface(self, inflation: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(fx, fy, z) of the ball `inflation` times the head's size, at every pixel: z in [0, 1] towards the viewer."""
        # Beyond the outline z stays 0 and the coordinates run on, so that nothing smears along the edge.
        inflation = col(inflation) if isinstance(inflation, Tensor) else inflation
        qx = self.u / (self.half_width * inflation)
        qy = self.v / inflation
        z = (1 - qx * qx - qy * qy).clamp(min=0).sqrt()
        y = qy * col(self.cos_pitch) - z * col(self.sin_pitch)
        z_level = qy * col(self.sin_pitch) + z * col(self.cos_pitch)
        x = qx * col(self.cos_yaw) - z_level * col(self.sin_yaw)
        return x * col(self.who.head_width), y, z

    def protruding(self, amount: float) -> tuple[Tensor, Tensor]:
        """Face coordinates of things that stand out from the face by `amount` and so move further as it turns."""
        return self.fx - amount * col(self.sin_yaw), self.fy - amount * col(self.sin_pitch)

    def project(self, fx: Tensor, fy: Tensor, protrusion: float = 0.0) -> Tensor:
        """Face points [N] -> [N, 2] canvas positions (the inverse of `surface(1.0)` on the front of the face)."""
        x = (fx + protrusion * self.sin_yaw) / self.who.head_width
        y = fy + protrusion * self.sin_pitch
        z = (1 - x * x - y * y).clamp(min=0).sqrt()
        qx = x * self.cos_yaw + z * self.sin_yaw
        z_level = z * self.cos_yaw - x * self.sin_yaw
        qy = y * self.cos_pitch + z_level * self.sin_pitch
        width = self.who.head_width * (1 - self.who.jaw_taper * smoothstep(0.0, 1.0, qy))
        return self.to_canvas(qx * width, qy)

    def to_canvas(self, u: Tensor, v: Tensor) -> Tensor:
        """Head-plane points [N] or [N, P] -> [..., 2] canvas positions."""
        extra = (slice(None),) + (None,) * (u.ndim - 1)
        cos, sin, scale = self.cos_roll[extra], self.sin_roll[extra], self.scale[extra]
        x = self.scene.x[extra] + scale * (u * cos - v * sin)
        y = self.scene.y[extra] + scale * (u * sin + v * cos)
        return torch.stack([x, y], -1)

"""Who a portrait shows: everything about a person that does not change from picture to picture."""

import torch
from torch import Tensor

from feedface.synthetic.world.fields import Field, FieldValues, draw_fields, seeded_uniforms

GENDERS = ("man", "woman")
HAIR_STYLES = (
    "bald", "buzz cut", "short", "side part", "quiff", "curly", "afro", "bob", "long straight", "long wavy", "bun",
)  # fmt: skip
BEARDS = ("none", "stubble", "moustache", "goatee", "full beard")

# Weights per hair style, men then women: a style is drawn from the row of the person's gender.
_STYLE_WEIGHTS = torch.tensor(
    [
        [1.2, 1.3, 2.0, 2.0, 1.6, 1.3, 0.7, 0.3, 0.5, 0.4, 0.3],
        [0.1, 0.2, 0.6, 0.8, 0.4, 1.2, 0.9, 2.0, 2.2, 2.0, 1.3],
    ]
)
_BEARD_WEIGHTS = torch.tensor([[3.0, 1.5, 1.2, 1.2, 1.8], [1.0, 0.0, 0.0, 0.0, 0.0]])

# Anchors of sRGB colours in [0, 1]; a position between two anchors is their mixture.
SKIN_TONES = torch.tensor(
    [[0.98, 0.86, 0.79], [0.95, 0.78, 0.67], [0.88, 0.68, 0.53], [0.76, 0.55, 0.40], [0.58, 0.39, 0.27],
     [0.42, 0.27, 0.19], [0.30, 0.19, 0.14]]
)  # fmt: skip
HAIR_COLOURS = torch.tensor(
    [[0.08, 0.07, 0.08], [0.20, 0.12, 0.08], [0.36, 0.22, 0.12], [0.52, 0.24, 0.10], [0.75, 0.38, 0.14],
     [0.80, 0.62, 0.30], [0.93, 0.84, 0.58], [0.58, 0.57, 0.57], [0.88, 0.87, 0.86]]
)  # fmt: skip
DYED_COLOURS = torch.tensor([[0.20, 0.40, 0.85], [0.88, 0.30, 0.58], [0.25, 0.65, 0.45], [0.55, 0.30, 0.72]])
IRIS_COLOURS = torch.tensor(
    [[0.16, 0.09, 0.05], [0.40, 0.23, 0.09], [0.45, 0.42, 0.14], [0.25, 0.50, 0.28], [0.25, 0.48, 0.75],
     [0.52, 0.60, 0.66]]
)  # fmt: skip

# Lengths are in half head heights (crown to chin = 2); y grows downwards from the head's centre.
FIELDS = (
    Field("gender", weights=(1, 1)),
    Field("skin_tone"), Field("skin_redness"), Field("lip_redness"),
    Field("hair_colour"), Field("hair_shade", 0.8, 1.2), Field("dyed", weights=(0.92, 0.02, 0.02, 0.02, 0.02)),
    Field("hair_style", weights=(1.0,) * len(HAIR_STYLES)), Field("beard", weights=(1.0,) * len(BEARDS)),
    Field("head_width", 0.66, 0.86), Field("jaw_taper", 0.08, 0.42), Field("jaw_power", 1.9, 3.0),
    Field("chin", 0.90, 1.10), Field("ear_size", 0.12, 0.24),
    Field("hairline", -0.62, -0.36), Field("hair_volume", 0.0, 1.0), Field("hair_length"), Field("parting", -1, 1),
    Field("eye_colour"), Field("eye_width", 0.135, 0.205), Field("eye_openness", 0.42, 0.66),
    Field("eye_spacing", 0.27, 0.38), Field("eye_height", -0.10, 0.10), Field("eye_tilt", -0.28, 0.28),
    Field("brow_thickness", 0.028, 0.085), Field("brow_gap", 0.17, 0.27), Field("brow_tilt", -0.30, 0.25),
    Field("brow_length", 0.16, 0.25),
    Field("nose_width", 0.10, 0.21), Field("nose_length", 0.24, 0.42), Field("nose_redness"),
    Field("mouth_width", 0.21, 0.36), Field("mouth_height", 0.50, 0.64), Field("upper_lip", 0.025, 0.075),
    Field("lower_lip", 0.04, 0.105),
    Field("freckles", weights=(0.8, 0.2)), Field("mole", weights=(0.75, 0.25)), Field("mole_x", -0.4, 0.4),
    Field("mole_y", 0.2, 0.75), Field("blush"), Field("age"), Field("texture_phase", 0.0, 6.2831853),
)  # fmt: skip


class Identities(FieldValues):
    """N people. Fields as in `FIELDS`; colours by `skin()`, `hair()` and `iris()`."""

    def skin(self) -> Tensor:
        """[N, 3] sRGB in [0, 1]."""
        base = _ramp(SKIN_TONES, self.skin_tone)
        redness = (self.skin_redness - 0.5)[:, None] * torch.tensor([[0.03, -0.03, -0.05]])
        return (base + redness).clamp(0, 1)

    def hair(self) -> Tensor:
        """[N, 3] sRGB in [0, 1]; one person in twelve has dyed hair."""
        natural = _ramp(HAIR_COLOURS, self.hair_colour) * self.hair_shade[:, None]
        dyed = DYED_COLOURS[(self.dyed - 1).clamp(min=0)]
        return torch.where((self.dyed > 0)[:, None], dyed, natural).clamp(0, 1)

    def iris(self) -> Tensor:
        """[N, 3] sRGB in [0, 1]."""
        return _ramp(IRIS_COLOURS, self.eye_colour)

    def lips(self) -> Tensor:
        """[N, 3] sRGB in [0, 1]: the skin, redder; more so for women."""
        amount = (0.25 + 0.45 * self.lip_redness + 0.2 * (self.gender == 1))[:, None]
        return torch.lerp(self.skin() * 0.85, torch.tensor([[0.72, 0.18, 0.22]]), amount.clamp(0, 0.9))


def sample_identities(indices, seed: int = 0) -> Identities:
    """The people with these indices ([N] integers) in world `seed`; person i is the same in every call."""
    indices = torch.as_tensor(indices).tolist()
    uniforms = seeded_uniforms([(seed, 1, i) for i in indices], len(FIELDS))
    people = Identities(FIELDS, draw_fields(FIELDS, uniforms).values)
    column = {field.name: i for i, field in enumerate(FIELDS)}
    gender = people.gender
    people.values["hair_style"] = _by_gender(_STYLE_WEIGHTS, gender, uniforms[:, column["hair_style"]])
    people.values["beard"] = _by_gender(_BEARD_WEIGHTS, gender, uniforms[:, column["beard"]])
    # Men: wider, squarer jaws and heavier brows; women: fuller lips and larger eyes (the ranges overlap).
    woman = gender.float()
    for name, shift in {"jaw_taper": 0.06, "jaw_power": -0.4, "brow_thickness": -0.014, "upper_lip": 0.012,
                        "eye_width": 0.012, "head_width": -0.015}.items():  # fmt: skip
        people.values[name] = people.values[name] + shift * (2 * woman - 1) / 2
    return people


def _ramp(anchors: Tensor, position: Tensor) -> Tensor:
    scaled = position.clamp(0, 1 - 1e-6) * (len(anchors) - 1)
    low = scaled.long()
    return torch.lerp(anchors[low], anchors[low + 1], (scaled - low)[:, None])


def _by_gender(weights: Tensor, gender: Tensor, uniform: Tensor) -> Tensor:
    edges = (weights / weights.sum(1, keepdim=True)).cumsum(1)[gender]
    return (uniform[:, None] >= edges[:, :-1]).sum(1)

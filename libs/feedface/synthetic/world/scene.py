"""What a picture shows besides the person: background, clothes, hat, glasses, expression, pose, light."""

import torch
from torch import Tensor

from feedface.synthetic.world.fields import Field, FieldValues, draw_fields, seeded_uniforms
from feedface.synthetic.world.identity import GENDERS, Identities

COLOURS = {
    "red": (0.80, 0.15, 0.15), "orange": (0.93, 0.52, 0.12), "yellow": (0.93, 0.82, 0.22), "green": (0.18, 0.58, 0.26),
    "blue": (0.16, 0.34, 0.78), "purple": (0.50, 0.24, 0.66), "white": (0.92, 0.92, 0.90), "black": (0.10, 0.10, 0.12),
}  # fmt: skip
COLOUR_NAMES = tuple(COLOURS)
COLOUR_RGB = torch.tensor(list(COLOURS.values()))
BACKGROUNDS = (
    "blue backdrop", "green backdrop", "red backdrop", "grey backdrop", "beach", "forest", "city at night", "sunset",
    "brick wall", "snowy mountains",
)  # fmt: skip
CLOTHES = ("t-shirt", "hoodie", "suit", "striped shirt", "v-neck")
HATS = ("none", "cap", "beanie", "sun hat")
GLASSES = ("none", "glasses", "sunglasses")
EXPRESSIONS = ("neutral", "smile", "laugh", "sad", "surprised")

# What a caption names and a judge can check: attribute -> its classes.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": GENDERS,
    "expression": EXPRESSIONS,
    "clothes": CLOTHES,
    "clothes_colour": COLOUR_NAMES,
    "hat": HATS,
    "glasses": GLASSES,
    "background": BACKGROUNDS,
}

FIELDS = (
    Field("background", weights=(1.0,) * len(BACKGROUNDS)),
    Field("background_phase", 0.0, 6.2831853), Field("background_shade", 0.85, 1.15),
    Field("clothes", weights=(1.0,) * len(CLOTHES)), Field("clothes_colour", weights=(1.0,) * len(COLOURS)),
    Field("hat", weights=(0.55, 0.15, 0.15, 0.15)), Field("hat_colour", weights=(1.0,) * len(COLOURS)),
    Field("glasses", weights=(0.62, 0.21, 0.17)), Field("expression", weights=(1.0, 1.3, 1.0, 0.7, 0.7)),
    Field("yaw", -22.0, 22.0), Field("pitch", -6.0, 6.0), Field("roll", -6.0, 6.0),
    Field("scale", 0.62, 0.68), Field("x", -0.05, 0.05), Field("y", -0.19, -0.11),
    Field("light_x", -1.0, 1.0), Field("light_y", -0.9, 0.1), Field("light_strength", 0.22, 0.42),
    Field("warmth", -0.05, 0.05), Field("exposure", 0.93, 1.07),
)  # fmt: skip

# How much of the picture the head fills, how far it turns, and what it wears. FIELDS are the tight framing; the wide
# one has fewer hats and glasses, as the worlds of 64 px had.
_WIDE = (
    Field("hat", weights=(0.73, 0.1, 0.1, 0.07)), Field("glasses", weights=(0.72, 0.18, 0.10)),
    Field("yaw", -32.0, 32.0), Field("pitch", -9.0, 9.0), Field("roll", -9.0, 9.0),
    Field("scale", 0.50, 0.60), Field("x", -0.09, 0.09), Field("y", -0.13, -0.03),
)  # fmt: skip
FRAMINGS = {"tight": FIELDS, "wide": tuple({f.name: f for f in (*FIELDS, *_WIDE)}.values())}


def framing_for(size: int) -> str:
    """The framing that suits pictures of `size` px: below 128 px, that of the models that were trained there."""
    return "tight" if size >= 128 else "wide"


class Scenes(FieldValues):
    """N scenes. Angles in degrees; positions and scale in half picture widths; fields as in `FIELDS`."""

    def pose(self) -> Tensor:
        """[N, 3] yaw, pitch, roll in degrees; positive yaw turns the face towards the picture's right."""
        return torch.stack([self.yaw, self.pitch, self.roll], 1)


def sample_scenes(identity_indices, scene_indices, seed: int = 0, framing: str = "tight") -> Scenes:
    """Scene `scene_indices[i]` of person `identity_indices[i]` in world `seed`: the same in every call.

    framing: "tight" (the face fills a third of the picture) or "wide" (smaller heads, turned further).
    """
    fields = FRAMINGS[framing]
    pairs = zip(torch.as_tensor(identity_indices).tolist(), torch.as_tensor(scene_indices).tolist(), strict=True)
    uniforms = seeded_uniforms([(seed, 2, person, scene) for person, scene in pairs], len(fields))
    return Scenes(fields, draw_fields(fields, uniforms).values)


def attributes(identities: Identities, scenes: Scenes) -> dict[str, Tensor]:
    """attribute -> [N] int64 class index into `ATTRIBUTES[attribute]`."""
    return {name: identities.gender if name == "gender" else getattr(scenes, name) for name in ATTRIBUTES}

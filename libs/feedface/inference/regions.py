"""Several people in one picture: an identity that is theirs together, each in a region, and a method that shows it.

The joint identity is rows by name like any other, so it travels through batches as one person's does:
{"0:tokens": [B,…], "0:region": [B,H,W], "1:tokens": …}. Regions are masks, 0 … 1, of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.backbones.control import Control, Regions
from feedface.common.errors import UserError
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.state import length
from feedface.inference.somebody import Box

if TYPE_CHECKING:
    from feedface.backbones.base import Backbone, Prompt
    from feedface.methods.base import Identity, Method

REGION = "region"
MASK_PX = 256  # side of the masks that boxes become


def box_mask(box: Box) -> Tensor:
    """A box as a mask [H,W]: 1 inside, 0 outside."""
    x0, y0, x1, y1 = (round(side * MASK_PX) for side in box)
    mask = torch.zeros(MASK_PX, MASK_PX)
    mask[y0:y1, x0:x1] = 1
    return mask


def strips(count: int) -> list[Box]:
    """Equal parts of a picture, from the left."""
    return [(place / count, 0.0, (place + 1) / count, 1.0) for place in range(count)]


def together(identities: Sequence[Identity], regions: Sequence[Box | Tensor]) -> Identity:
    """People of one row each, and where each is: a box, or a mask [H,W] of 0 … 1."""
    joint: dict[str, Tensor] = {}
    for number, (identity, region) in enumerate(zip(identities, regions, strict=True)):
        mask = region if isinstance(region, Tensor) else box_mask(region)
        joint |= {f"{number}:{name}": value for name, value in identity.items()}
        joint[f"{number}:{REGION}"] = F.interpolate(mask[None, None].float(), (MASK_PX, MASK_PX), mode="area")[0]
    return joint


def is_joint(identity: Identity | None) -> bool:
    """Whether it is of several people."""
    return identity is not None and f"0:{REGION}" in identity


def apart(identity: Identity) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The people of a joint identity, each with their masks [B,H,W]."""
    people: dict[int, dict[str, Tensor]] = {}
    for key, value in identity.items():
        number, _, name = key.partition(":")
        people.setdefault(int(number), {})[name] = value
    return [(person, person.pop(REGION)) for _, person in sorted(people.items())]


class InRegions:
    """A method that shows several people, each in their region, for `diffusion.sampling.sample`."""

    guided_model = GuidedModel

    def __init__(self, method: Method):
        check_regions(type(method))
        self._method = method

    def prompted(self, identity: Identity, prompt: Prompt) -> Identity:
        return self._each(identity, lambda person: self._method.prompted(person, prompt))

    def unconditional(self, identity: Identity, mode: str) -> Identity | None:
        if any(self._method.unconditional(person, mode) is None for person, _ in apart(identity)):
            return None
        return self._each(identity, lambda person: self._method.unconditional(person, mode))

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> Control | None:
        parts = [
            (self._method.bind(backbone, person, scale, rows), mask if len(mask) > 1 else mask[0])
            for person, mask in apart(identity)
        ]
        return Regions(parts) if any(control is not None for control, _ in parts) else None

    def _each(self, identity: Identity, change) -> Identity:
        people = apart(identity)
        changed = [change(person) for person, _ in people]
        rows = max(length(person) for person in changed)
        joint: dict[str, Tensor] = {}
        for number, (person, (_, mask)) in enumerate(zip(changed, people, strict=True)):
            joint |= {f"{number}:{name}": value for name, value in person.items()}
            joint[f"{number}:{REGION}"] = mask.expand(rows, *mask.shape[1:]) if len(mask) == 1 else mask
        return joint


def check_regions(method: type[Method]) -> None:
    """`UserError` for a method that cannot keep people apart: by the prompt, or by guidance of its own."""
    if method.changes_prompt or method.guided_model is not GuidedModel:
        raise UserError(
            f"several people: the method {method.kind} shows a person by the prompt or by a guidance of its own, "
            "not in regions; feedface and flashface can"
        )


def method_for(method: Method, identity: Identity | None) -> Method | InRegions:
    """What shows such an identity."""
    return InRegions(method) if is_joint(identity) else method


def at_size(identity: Identity | None, latent_size: tuple[int, int]) -> Identity | None:
    """A joint identity with its masks at a latent's (height, width); another one as it is."""
    if not is_joint(identity):
        return identity
    return {
        name: F.interpolate(value[:, None], latent_size, mode="area")[:, 0] if name.endswith(f":{REGION}") else value
        for name, value in identity.items()
    }

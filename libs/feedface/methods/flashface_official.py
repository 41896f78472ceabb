"""FlashFace as its own authors have it: a second attention for the references, a face mask, three-branch guidance.

A layer of its own, beside each self-attention at the sites, attends to the picture's tokens and the references'; its
result is added to the untouched self-attention's. The reference net sees clean latents at the current timestep, so it
works at every step, and reads the negative prompt. The denoiser takes a mask beside the latent, where the face shall
be (`UNet`'s `mask_channels`). Only for drawing with the released weights: the authors' training is not public.

Shapes: B rows, F references, L tokens of one, N of the picture, D width of a site.
Source: Zhang et al. 2024, "FlashFace: Human Image Personalization with High-fidelity Identity Preservation".
"""

import copy
from collections.abc import Iterable, Sequence
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Len
from pydantic import Field
from torch import Tensor, nn

from feedface.backbones.base import Backbone, Prompt, Site
from feedface.backbones.control import Control, Operator
from feedface.common.errors import UserError
from feedface.common.sizes import SidePx, Width
from feedface.common.validation import Text
from feedface.diffusion.guidance import rescaled
from feedface.diffusion.state import State, expand, join, length
from feedface.methods.base import Identity
from feedface.methods.flashface import FlashFace, slot
from feedface.shared_attention import log_weights

Strength = Annotated[float, Field(ge=0, le=50, allow_inf_nan=False)]


class SecondAttention(nn.Module):
    """Keys, values and queries without bias, and an output projection, of `heads` heads."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """`x` [B,N,D] attends to itself and to `keys`, `values` [B,F·L,D]; `mask` [B,1,1,N+F·L] adds to the scores."""
        key, value = torch.cat([self.to_k(x), keys], dim=1), torch.cat([self.to_v(x), values], dim=1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.to_q(x), key, value))
        return self.to_out(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class StepwiseControl(Control):
    """A(y,y) + s·A'(y,[y;R]) + (1−s)·A'(y,y), with R of the timestep at hand. Made by `FlashFaceOfficial.bind`.

    A row without a reference gets A(y,y) + A'(y,y), which is not the backbone alone. s may be above 1.

    Args:
        identity: of B rows; its weights are all rows'.
        weights: [K·B,F], for a batch of K parts that show the same people, each with weights of its own.
    """

    def __init__(
        self,
        method: "FlashFaceOfficial",
        identity: Identity,
        scale: float,
        rows: slice | None = None,
        weights: Tensor | None = None,
    ):
        self.method, self.identity, self.scale, self.rows = method, identity, scale, rows
        self.weights = identity["weights"] if weights is None else weights
        self.sites = frozenset(method.sites)
        self._keys_values: dict[str, tuple[Tensor, Tensor]] = {}  # of this step

    def residuals(self, state: State, t: Tensor) -> dict[str, Tensor]:
        """Called as each step begins: the reference net works at its timestep."""
        known = self.method.read(self.method.refnet, self.identity, t[: length(self.identity)])
        for name in self.method.sites:
            tokens, layer = known[name].flatten(1, 2), self.method.second[slot(name)]
            parts = (len(self.weights) // len(tokens), 1, 1)
            self._keys_values[name] = layer.to_k(tokens).repeat(parts), layer.to_v(tokens).repeat(parts)
        return {}

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        layer = self.method.second[slot(site.name)]
        keys, values = (part.expand(len(x), -1, -1) for part in self._keys_values[site.name])
        out = self.scale * layer(x, keys, values, log_weights(self.weights, x, keys.shape[1]))
        if self.scale != 1:
            out = out + (1 - self.scale) * layer(x, keys[:, :0], values[:, :0])
        return op(x, context) + out

    def first(self, count: int) -> "StepwiseControl":
        return StepwiseControl(self.method, {k: v[:count] for k, v in self.identity.items()}, self.scale)


class ThreeWayGuidance:
    """Callable `(state, t) -> noise in it`, as `diffusion.guidance.GuidedModel`, in two or three rows a sample.

    Above timestep `launch`, ε_u + g (ε_c − ε_u) with the references at `early_scale` in both. From there on they are
    in a third row alone, at `scale`: ε_u + g (ε_c − ε_u) + face_guidance (ε_r − ε_c). The result's standard deviation
    is then taken back by the share `rescale`. All four are the method's.

    Args: see `GuidedModel`. `prompt` may hold a "mask" [B,1,h,w], which is then every row's.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompt: Prompt,
        *,
        empty_prompt: Prompt,
        guidance: float = 7.5,
        method: "FlashFaceOfficial",
        identity: Identity,
        scale: float = 1.2,
        latent_size: tuple[int, int] | None = None,
        **_: Any,
    ):
        self.backbone, self.guidance, self.settings = backbone, guidance, method.config
        count = length(prompt)
        mask = {"mask": prompt["mask"]} if "mask" in prompt else {}
        negative = {**expand({"text": empty_prompt["text"]}, count), **mask}
        known = expand(method.reading(identity, {"text": empty_prompt["text"]}), count)
        shown, nobody = known["weights"], torch.zeros_like(known["weights"])
        self.early = backbone.conditions(join(prompt, negative), latent_size)
        self.late = backbone.conditions(join(prompt, prompt, negative), latent_size)
        early, late = torch.cat([shown, shown]), torch.cat([shown, nobody, nobody])
        self.early_control = StepwiseControl(method, known, self.settings["early_scale"], weights=early)
        self.late_control = StepwiseControl(method, known, scale, weights=late)

    def __call__(
        self, state: State, t: float, *, guided: bool = True, controlled: bool = True, reused: bool = False
    ) -> State:
        # The authors count timesteps from 0.
        late = t - 1 <= self.settings["launch"] and self.settings["face_guidance"] > 0
        parts = 3 if late else 2
        state = join(*[state] * parts)
        conditions, control = (self.late, self.late_control) if late else (self.early, self.early_control)
        if not controlled:
            control = copy.copy(control)
            control.weights = torch.zeros_like(control.weights)
        times = torch.full((length(state),), t, dtype=torch.float32, device=state["img"].device)
        noise = self.backbone(state, times, conditions, control)["img"].float().chunk(parts)
        return {"img": self._guide(noise) if guided else noise[0]}

    def _guide(self, noise: tuple[Tensor, ...]) -> Tensor:
        *shown, conditional, unconditional = noise
        out = unconditional + self.guidance * (conditional - unconditional)
        if shown:
            out = out + self.settings["face_guidance"] * (shown[0] - conditional)
        return rescaled(out, conditional, self.settings["rescale"]) if self.settings["rescale"] else out


class FlashFaceOfficial(FlashFace):
    """The released model's second layers and reference net. Identity: as `FlashFace`'s, with the negative prompt.

    Args:
        sites, reference_px, refnet, widths: see `FlashFace`; heads: of each second attention.
        face_guidance, launch, early_scale, rescale: see `ThreeWayGuidance`.
    """

    kind, settings, guided_model, reads_prompt = "flashface_official", None, ThreeWayGuidance, False
    places_faces = True

    def __init__(
        self,
        sites: Annotated[list[Text], Len(1, 1024)],
        refnet: dict[str, Any],
        widths: Annotated[list[Width], Len(1, 1024)],
        heads: Width = 8,
        reference_px: SidePx = 224,
        face_guidance: Strength = 3.2,
        launch: Annotated[int, Field(ge=0, le=1000)] = 750,
        early_scale: Strength = 0.85,
        rescale: Annotated[float, Field(ge=0, le=1)] = 0.5,
    ):
        super().__init__(sites, reference_px, refnet, backbone="frozen")
        if len(widths) != len(sites):
            raise ValueError(f"{len(sites)} sites with {len(widths)} widths")
        guidance = {"face_guidance": face_guidance, "launch": launch, "early_scale": early_scale, "rescale": rescale}
        own = {"sites": self.sites, "widths": list(widths), "heads": heads, "reference_px": reference_px}
        self.config = {**own, "refnet": self.config["refnet"], **guidance}
        self.second = nn.ModuleDict(
            {slot(site): SecondAttention(width, heads) for site, width in zip(sites, widths, strict=True)}
        )

    @classmethod
    def fresh(cls, config: Any, backbone: Backbone, **parts: Any) -> "FlashFaceOfficial":
        raise UserError(f"{cls.kind} is for drawing with the released weights; flashface is what can be trained here")

    @classmethod
    def placed(cls, prompt: Prompt, box: Sequence[float], latent_size: tuple[int, int]) -> Prompt:
        mask = face_mask(box, latent_size).to(prompt["text"])
        return {**prompt, "mask": mask.expand(length(prompt), -1, -1, -1)}

    def prompted(self, identity: Identity, prompt: Prompt) -> Identity:
        """Not with the prompt: `ThreeWayGuidance` hands the negative one to `reading`."""
        return identity

    def reading(self, identity: Identity, prompt: Prompt) -> Identity:
        """The identities with what the reference net reads; both have B rows, or one for all."""
        return expand({**identity, "text": prompt["text"]}, max(length(identity), length(prompt)))

    def bind(
        self, backbone: Backbone, identity: Identity, scale: float = 1.0, rows: slice | None = None
    ) -> StepwiseControl:
        """Also at scale 0: the second layers act without references, too."""
        return StepwiseControl(self, identity, scale, rows)

    @property
    def done_when_prompted(self) -> bool:
        return False

    def step_blocks(self) -> Iterable[nn.Module]:
        return [*self.second.values(), *super().encoders()]

    def encoders(self) -> Iterable[nn.Module]:
        return ()

    def trained(self, backbone: Backbone) -> dict[str, nn.Module]:
        return {}


def face_mask(box: Sequence[float], latent_size: tuple[int, int], factor: int = 8) -> Tensor:
    """Where the face shall be, [1,1,h,w] of zeros and ones, for a prompt's "mask".

    `box`: x1, y1, x2, y2 in 0 … 1 of the picture; a square from its corner, as long as its longer side. A box of
    zeros leaves the place open. `factor`: pixels along a latent cell.
    """
    height, width = (side * factor for side in latent_size)
    if not all(0 <= side <= 1 for side in box):
        raise UserError(f"face box {list(box)}: x1, y1, x2, y2 are shares of the picture, 0 to 1")
    left, top, right, bottom = (int(side * whole) for side, whole in zip(box, (width, height) * 2, strict=True))
    side = max(right - left, bottom - top)
    mask = torch.zeros(1, 1, height, width)
    mask[..., top : top + side, left : left + side] = 1
    return mask[..., ::factor, ::factor]

"""A batch of training: what was drawn for its samples, and what frozen encoders made of them.

Shapes: B batch, F references, T text tokens, C h w latent.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from feedface.diffusion.state import State


@dataclass(frozen=True, slots=True)
class Draw:
    """One sample. `faces` are the pictures that give its references: 0 the record's own, i the i-th of `ref`; `flips`
    says which of them are mirrored. `shown`: how many of them a method shows that can show fewer to some samples.

    `size`: (width, height) in pixels that the picture is cut to, at `place` of what it has more, 0 … 1 across and down;
    None: its centre square. `seed`: of what an objective draws besides. `fixed`: which of its picture's draws it is,
    where there are only a few."""

    row: int
    flip: bool
    hair: bool
    standard: bool
    drop_face: bool
    drop_text: bool
    t: int
    faces: tuple[int, ...]
    vae_noise: np.ndarray
    noise: dict[str, np.ndarray]
    flips: tuple[bool, ...] = ()
    shown: int = 1
    size: tuple[int, int] | None = None
    place: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    fixed: int = 0


class Tensors:
    """A dataclass of tensors, of mappings and dataclasses of them, and of other things."""

    __slots__ = ()

    def pin_memory(self) -> Self:
        """With tensors in memory that a GPU copies from by itself; `DataLoader` calls it."""
        return self._each(lambda name, value: value.pin_memory())

    def to(self, device: torch.device) -> Self:
        """With tensors on a device; from pinned memory they go there while the caller goes on."""
        return self._each(lambda name, value: value.to(device, non_blocking=True))

    def _each(self, change: Callable[[str, Tensor], Tensor]) -> Self:
        def changed(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(name, value)
            if isinstance(value, Tensors):
                return value._each(change)
            if isinstance(value, Mapping):
                return {key: changed(name, one) for key, one in value.items()}
            return value

        return replace(self, **{one.name: changed(one.name, getattr(self, one.name)) for one in fields(self)})


@dataclass(slots=True)
class Draws(Tensors):
    """A batch of them. [B]: bool, or int64 of rows, timesteps, counts and seeds. Float32: `vae_noise` [B,C,h,w] picks a
    latent of the posterior, `noise` is added to each part of the state."""

    rows: Tensor
    flip: Tensor
    hair: Tensor
    standard: Tensor
    drop_face: Tensor
    drop_text: Tensor
    t: Tensor
    vae_noise: Tensor
    noise: State
    shown: Tensor
    seeds: Tensor | None = None
    fixed: Tensor | None = None

    def to(self, device: torch.device) -> Self:
        """With timesteps and noise on a device. Flags and rows stay: what is computed depends on them."""
        moved = ("t", "vae_noise", "noise")
        return self._each(lambda name, value: value.to(device, non_blocking=True) if name in moved else value)

    @classmethod
    def collate(cls, draws: Sequence[Draw]) -> "Draws":
        """Stack samples."""
        scalars = np.array([(d.row, d.flip, d.hair, d.standard, d.drop_face, d.drop_text, d.t) for d in draws])
        rows, flip, hair, standard, drop_face, drop_text, t = torch.from_numpy(scalars.T.copy())
        vae_noise = torch.from_numpy(np.stack([d.vae_noise for d in draws]))
        noise = {name: torch.from_numpy(np.stack([d.noise[name] for d in draws])) for name in draws[0].noise}
        flags = (flag.bool() for flag in (flip, hair, standard, drop_face, drop_text))
        return cls(
            rows,
            *flags,
            t,
            vae_noise,
            noise,
            torch.tensor([d.shown for d in draws]),
            torch.tensor([d.seed for d in draws]),
            torch.tensor([d.fixed for d in draws]),
        )


@dataclass(slots=True)
class Encoded(Tensors):
    """A batch as the objective takes it.

    Attributes:
        mean, std: of the latent's posterior, [B,C,h,w], scaled as the backbone wants latents.
        others: the state's other parts, clean: on the U-ViT "clip_img" [B,1,Dc].
        text: [B,T,Dt].
        features: of the references, [B,F,…], by the names that `Method.features` gives them.
        mask: [B,1,h,w] in 0…1.
        frozen: the frozen backbone's prediction, where it is known already: [B,C,h,w].
        labels, captions: what records say of the pictures, where the method's objective asks: see `data.labels`.
    """

    mean: Tensor
    std: Tensor
    others: State
    text: Tensor
    features: Mapping[str, Tensor]
    mask: Tensor
    frozen: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    captions: Sequence[str] = ()

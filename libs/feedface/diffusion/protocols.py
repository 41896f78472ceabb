"""What guidance and sampling ask of a backbone and a method; `backbones/base.py` and `methods/base.py` offer it.

Named here so that this package, at the bottom, knows neither of them.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from feedface.diffusion.state import State

Rows = Mapping[str, Tensor]  # encoded prompts, or identities: a row each, by name


class NoisePredictor(Protocol):
    """See `Backbone`."""

    uncond_modes: tuple[str, ...]
    reusable: bool

    def state_shapes(self, latent_size: tuple[int, int] | None = None) -> dict[str, tuple[int, ...]]: ...

    def guided_prompt(self, prompt: Rows, mode: str, empty_prompt: Rows | None, noise: Tensor | None) -> Rows: ...

    def perturbed(self) -> Any: ...

    def conditions(self, prompt: Rows, latent_size: tuple[int, int] | None = None) -> Any: ...

    def __call__(
        self, state: State, t: Tensor, conditions: Any, control: Any = None, memory: dict[str, Tensor] | None = None
    ) -> State: ...


class Personalisation(Protocol):
    """See `Method`."""

    guided_model: type

    def unconditional(self, identity: Rows, mode: str) -> Rows | None: ...

    def prompted(self, identity: Rows, prompt: Rows) -> Rows: ...

    def bind(self, backbone: NoisePredictor, identity: Rows, scale: float = 1.0, rows: slice | None = None) -> Any: ...

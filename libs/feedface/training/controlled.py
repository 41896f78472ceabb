"""What is trained, as one module for accelerate: the backbone with a method beside it."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone, Prompt, Site
from feedface.backbones.control import Control, Controls, Operator
from feedface.diffusion.state import State, length
from feedface.methods.base import Features, Identity, Method


class ControlledBackbone(nn.Module):
    """Predicts noise with the method's control, or without: the frozen model.

    What is trained is float32; products are in `dtype`, which may be lower: by default the backbone's, which has that
    where it is frozen.

    Args:
        constants: whole numbers that every prompt has besides its text, such as the U-ViT's {"data_type": 0}.
        frozen: networks that an objective asks besides, by name; no parts of the module.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: Method,
        constants: Mapping[str, int] | None = None,
        frozen: Mapping[str, nn.Module] | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.frozen = dict(frozen or {})
        self.backbone, self.method, self.constants = backbone, method, dict(constants or {})
        self.dtype = dtype or backbone.dtype

    def trained(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: see `Method.trained`. Under FSDP each process has a part of each."""
        return dict(self.method.trained_parameters(self.backbone))

    def forward(
        self,
        state: State,
        t: Tensor,
        prompt: Prompt | Callable[[Identity], Prompt],
        features: Features | None = None,
        watch: Control | None = None,
    ) -> State:
        """Noise predicted in `state` at timesteps `t` [B]. `features` [B,F,…]: None is the frozen model.

        `prompt`: with features it may be a function of who is shown. `watch`: an objective's own control, besides.
        """
        identity = None
        if features is not None:
            with self._autocast(True):
                identity = self.method.identity(features)
                prompt = prompt(identity) if callable(prompt) else prompt
        rows = length(prompt)
        constants = {name: torch.full((rows,), value, device=t.device) for name, value in self.constants.items()}
        # What is frozen is in low precision as a whole, and needs no autocast, which would make its tokens float32.
        with self._autocast(self.backbone.dtype != self.dtype):
            own = None if identity is None else self._control(identity, prompt)
            both = [control for control in (own, watch) if control is not None]
            control = Controls(both) if len(both) > 1 else next(iter(both), None)
            conditions = self.backbone.conditions({**prompt, **constants}, tuple(state["img"].shape[-2:]))
            noise = self.backbone(state, t, conditions, control)
            return noise if own is None else noise | self.method.read_out(own.control, state, t, noise)

    def _control(self, identity: Identity, prompt: Prompt) -> Control | None:
        with self._autocast(True):
            identity = self.method.prompted(identity, prompt)
            control = self.method.bind(self.backbone, identity)
        return None if control is None else InContext(control, lambda: self._autocast(True))

    def _autocast(self, on: bool) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(next(self.backbone.parameters()).device.type, self.dtype, enabled=on)


class InContext(Control):
    """A control whose hooks run inside a context of their own."""

    def __init__(self, control: Control, context: Callable[[], AbstractContextManager]):
        self.control, self.context = control, context
        self.sites, self.rows = control.sites, control.rows

    def block(self, site: Site, x: Tensor, out: Tensor) -> Tensor | None:
        with self.context():
            return self.control.block(site, x, out)

    def attention(self, site: Site, op: Operator, x: Tensor, context: Tensor) -> Tensor:
        with self.context():
            return self.control.attention(site, op, x, context)

    def residuals(self, state: State, t: Tensor) -> dict[str, Tensor]:
        with self.context():
            return self.control.residuals(state, t)

    def first(self, count: int) -> "InContext":
        return InContext(self.control.first(count), self.context)

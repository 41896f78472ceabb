"""Guidance, ε = ε_u + g (ε_c − ε_u) + s (ε_c − ε_p).

Its first part is classifier-free guidance, with both predictions from one batch. The second is perturbed-attention
guidance, with s > 0 (`backbones/perturbed_attention.py`): in ε_p image tokens do not see each other, and no
control acts, which is less work and no less alike. The difference is what makes parts fit together: two eyes, one
mouth.

What "unconditional" means (`uncond_mode`; each backbone has its own `uncond_modes`):
- "true_uncond" (the release's default): text replaced by Gaussian noise and declared to be so (t_text = 1000), no face;
- "empty_token" (the release's other choice): the empty prompt, or a negative one, no face;
- "paper": the empty prompt, or a negative one, and the zero face vector, which still passes through the control blocks.

B samples are 2 B rows under guidance: the conditional half, then the unconditional one. Nothing here knows a backbone
or a method; `backbones/base.py` and `methods/base.py` say what they must offer.
"""

from typing import Any

import torch
from torch import Tensor

from feedface.diffusion.protocols import NoisePredictor, Personalisation, Rows
from feedface.diffusion.state import State, expand, join, length


class GuidedModel:
    """Callable `(state, t) -> noise in it`, float32, under guidance.

    All that stays the same over the steps (both halves' conditions, the faces' keys and values) is prepared once here.
    Savings at single steps, see `plan.Evaluation`: `guided=False` evaluates the conditional half alone,
    `controlled=False` leaves the face out, `perturbed=False` ε_p, `reused=True` goes on with the deep blocks' output of
    the call before, which must have been guided, controlled and perturbed alike.

    Args:
        prompt: encoded, B rows, as `Method.prompt` gives it.
        empty_prompt: the encoded empty or negative prompt, of one row or B; not needed by "true_uncond", nor at
            `guidance` 1, which skips the unconditional half.
        noise: standard normal [B,…] in the shape of prompt["text"], for "true_uncond".
        uncond_mode: by default the first of the backbone's `uncond_modes`.
        identity: who is shown, B rows or one for all; with `method`, which makes a control of it. None: nobody.
        scale: strength of the identity.
        rescale: φ of Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps are Flawed", eq. 15 and 16:
            how far a guided prediction's standard deviation is taken back to the conditional one's.
        latent_size: (h, w), by default the backbone's own.
        pag_scale: s; 0 evaluates no ε_p.

    Raises `ValueError` for a mode that the backbone has not, or that lacks its text.
    """

    def __init__(
        self,
        backbone: NoisePredictor,
        prompt: Rows,
        *,
        empty_prompt: Rows | None = None,
        noise: Tensor | None = None,
        guidance: float = 1.0,
        uncond_mode: str | None = None,
        method: Personalisation | None = None,
        identity: Rows | None = None,
        scale: float = 1.0,
        rescale: float = 0.0,
        latent_size: tuple[int, int] | None = None,
        pag_scale: float = 0.0,
    ):
        mode = uncond_mode or backbone.uncond_modes[0]
        if mode not in backbone.uncond_modes:
            raise ValueError(f"uncond_mode must be one of {', '.join(backbone.uncond_modes)}, not {mode!r}")
        self.backbone, self.guidance, self.pag_scale, self.rescale = backbone, guidance, pag_scale, rescale
        self.guided = guidance != 1
        batch = length(prompt)
        rows = None
        if identity is not None:
            identity = method.prompted(identity, prompt)
        if self.guided:
            prompt = backbone.guided_prompt(prompt, mode, empty_prompt, noise)
            if identity is not None:
                other = method.unconditional(identity, mode)
                if other is None:
                    rows = slice(0, batch)  # nobody in the second half, and no work for it
                else:
                    identity = join(expand(identity, batch), expand(other, batch))
        self.conditions = backbone.conditions(prompt, latent_size)
        self.control = None if identity is None else method.bind(backbone, identity, scale, rows)
        self.conditional = self.conditions[:batch] if self.guided else self.conditions
        self.perturbed = backbone.perturbed() if pag_scale else None
        self._memory: dict[str, Tensor] = {}  # of the deep blocks
        self._perturbed_memory: dict[str, Tensor] = {}

    def __call__(
        self,
        state: State,
        t: float,
        *,
        guided: bool = True,
        controlled: bool = True,
        perturbed: bool = True,
        reused: bool = False,
        guidance: float | None = None,
    ) -> State:
        batch = length(state)
        guided = guided and self.guided
        control = self.control if controlled else None
        if not reused:
            self._memory, self._perturbed_memory = {}, {}
        lesser: State = {}
        if perturbed and self.perturbed is not None:
            lesser = self._predict(state, t, self.conditional, self.perturbed, self._perturbed_memory)
        if guided:
            noise = self._predict(join(state, state), t, self.conditions, control, self._memory)
        else:
            if self.guided and control is not None:
                control = control.first(batch)
            noise = self._predict(state, t, self.conditional, control, self._memory)
        scale = self.guidance if guidance is None else guidance
        return {name: self._guide(value, lesser.get(name), guided, scale) for name, value in noise.items()}

    def _predict(self, state: State, t: float, conditions: Any, control: Any, memory: dict[str, Tensor]) -> State:
        times = torch.full((length(state),), t, dtype=torch.float32, device=next(iter(state.values())).device)
        noise = self.backbone(state, times, conditions, control, memory=memory)
        return {name: value.float() for name, value in noise.items()}

    def _guide(self, noise: Tensor, perturbed: Tensor | None, guided: bool, scale: float) -> Tensor:
        out = conditional = noise
        if guided:
            conditional, unconditional = noise.chunk(2)
            out = unconditional + scale * (conditional - unconditional)
        if perturbed is not None:
            out = out + self.pag_scale * (conditional - perturbed)
        return rescaled(out, conditional, self.rescale) if self.rescale and out is not conditional else out


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """`guided` with `share` of the way to the standard deviation of `conditional`, row by row."""
    dims = tuple(range(1, guided.dim()))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (share * ratio + 1 - share)

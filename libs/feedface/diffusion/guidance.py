"""Classifier-free guidance, ε = ε_u + g (ε_c − ε_u), with both predictions from one batch.

The paper's and the release's "scale s" adds to the conditional prediction, ε = ε_c + s (ε_c − ε_u): g = 1 + s.

What "unconditional" means (`uncond_mode`; each backbone has its own `uncond_modes`):
- "true_uncond" (the release's default): text replaced by Gaussian noise and declared to be so (t_text = 1000), no face;
- "empty_token" (the release's other choice): the empty prompt, or a negative one, no face;
- "paper": the empty prompt, or a negative one, and the zero face vector, which still passes through the control blocks.

B samples are 2 B rows under guidance: the conditional half, then the unconditional one. Nothing here knows a backbone
or a method; `backbones/base.py` and `methods/base.py` say what they must offer.
"""

import torch
from torch import Tensor

from feedface.diffusion.protocols import NoisePredictor, Personalisation, Rows
from feedface.diffusion.state import State, expand, join, length


class GuidedModel:
    """Callable `(state, t) -> noise in it`, float32, under guidance.

    All that stays the same over the steps (both halves' conditions, the faces' keys and values) is prepared once here.
    Savings at single steps, see `plan.Evaluation`: `guided=False` evaluates the conditional half alone,
    `controlled=False` leaves the face out, `reused=True` goes on with the deep blocks' output of the call before, which
    must have been guided and controlled alike.

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
    ):
        mode = uncond_mode or backbone.uncond_modes[0]
        if mode not in backbone.uncond_modes:
            raise ValueError(f"uncond_mode must be one of {', '.join(backbone.uncond_modes)}, not {mode!r}")
        self.backbone, self.guidance, self.rescale = backbone, guidance, rescale
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
        self._memory: dict[str, Tensor] = {}  # of the deep blocks

    def __call__(
        self,
        state: State,
        t: float,
        *,
        guided: bool = True,
        controlled: bool = True,
        reused: bool = False,
        guidance: float | None = None,
    ) -> State:
        batch = length(state)
        guided = guided and self.guided
        conditions, control = self.conditions, self.control if controlled else None
        if guided:
            state = join(state, state)
        elif self.guided:
            conditions = conditions[:batch]
            control = control and control.first(batch)
        if not reused:
            self._memory = {}
        times = torch.full((length(state),), t, dtype=torch.float32, device=next(iter(state.values())).device)
        noise = self.backbone(state, times, conditions, control, memory=self._memory)
        scale = self.guidance if guidance is None else guidance
        return {name: self._guide(value.float(), guided, scale) for name, value in noise.items()}

    def _guide(self, noise: Tensor, guided: bool, scale: float) -> Tensor:
        if not guided:
            return noise
        conditional, unconditional = noise.chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return rescaled(guided, conditional, self.rescale) if self.rescale else guided


def rescaled(guided: Tensor, conditional: Tensor, share: float) -> Tensor:
    """`guided` with `share` of the way to the standard deviation of `conditional`, row by row."""
    dims = tuple(range(1, guided.dim()))
    ratio = conditional.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
    return guided * (share * ratio + 1 - share)

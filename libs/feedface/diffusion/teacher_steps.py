"""Distillation along a teacher's own denoising: several steps from one picture, the student told to predict the same.

A network is `(x, t, condition) -> noise in x`; times are 0 … 999, as AdaFace counts them (`schedule` has 1 … 1000).
Shapes: B batch, C h w latent; n steps.
Source: AdaFace (Feng et al. 2024), first training stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from feedface.diffusion.schedule import NUM_TIMESTEPS, add_noise, alphas_cumprod

# Number of steps -> how often it is drawn.
STEP_SHARES = {1: 0.4, 2: 0.3, 3: 0.2, 5: 0.1, 7: 0.1}
EPS = 1e-6

Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(slots=True)
class TeacherStep:
    """What the teacher was given, `x` [B,C,h,w] at `t` [B] with this `noise` in it, and made of it: the `predicted`
    noise, and `x0`, the picture that this means."""

    x: Tensor
    t: Tensor
    noise: Tensor
    predicted: Tensor
    x0: Tensor


def shifted(t: Tensor, steps: int) -> Tensor:
    """Times that leave room for `steps` of denoising: later ones for more steps, (4 t + (n − 1) 1000) // (3 + n)."""
    return (4 * t + (steps - 1) * NUM_TIMESTEPS) // (3 + steps)


def next_times(t: Tensor, steps: int, share: Tensor) -> Tensor:
    """Earlier times [B], between t 0.5^g and t 0.7^g with g = (n − 1)^−0.3; `share` [B] in 0 … 1 says where."""
    power = (steps - 1) ** -0.3
    low, high = t * 0.5**power, t * 0.7**power
    return ((high - low) * share + low).long()


def estimated_x0(x: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """The picture, where `noise` is what is in `x` at times `t`."""
    signal = alphas_cumprod().to(x.device)[t].reshape(-1, *[1] * (x.dim() - 1))
    return ((x - (1 - signal).sqrt().to(x) * noise) / signal.sqrt().to(x)).to(x)


@torch.no_grad()
def teacher_steps(
    teacher: Network, x0: Tensor, t: Tensor, noises: Sequence[Tensor], shares: Sequence[Tensor]
) -> list[TeacherStep]:
    """Denoise `x0` noised at `t` [B]; each estimate is noised again, with fresh noise, at an earlier time.

    `noises`: n of them, [B,C,h,w]; `shares`: n − 1, see `next_times`.
    """
    steps: list[TeacherStep] = []
    for index, noise in enumerate(noises):
        if index:
            t = next_times(t, len(noises), shares[index - 1])
        x = add_noise(x0, noise, t + 1)
        predicted = teacher(x, t)
        x0 = estimated_x0(x, t, predicted)
        steps.append(TeacherStep(x, t, noise, predicted, x0))
    return steps


def student_inputs(steps: Sequence[TeacherStep], original_bugs: bool = False) -> list[Tensor]:
    """What the student sees at each step: what the teacher saw.

    In the authors' program the first step shows it the teacher's last estimate noised in place of the picture.
    """
    inputs = [step.x for step in steps]
    if original_bugs:
        inputs[0] = add_noise(steps[-1].x0, steps[0].noise, steps[0].t + 1)
    return inputs


def weighted_mean_square(difference: Tensor, weight: Tensor) -> Tensor:
    """Over all elements together: Σ w d² / (Σ w + ε), for `difference` [B,C,h,w] and `weight` [B,1,h,w]."""
    weight = weight.expand_as(difference)
    return (weight * difference.square()).sum() / (weight.sum() + EPS)


def face_weight(valid: Tensor, face: Tensor, background: float = 0.0) -> Tensor:
    """1 on the face, `background` off it, 0 where the picture is not `valid`; all [B,1,h,w] in 0 … 1."""
    return valid * (face + (1 - face) * background)


def step_losses(
    predicted: Tensor, teacher: Tensor, face: Tensor | None = None, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The student's error on the face, and that of how rows differ from the first one, on the whole picture.

    `predicted`, `teacher` [B,C,h,w]; `face`, `valid` [B,1,h,w]: None: everywhere. The second counts where rows are the
    same picture with somewhat different faces; of one row it is 0.
    """
    ones = torch.ones_like(predicted[:, :1])
    valid = ones if valid is None else valid
    same = weighted_mean_square(predicted - teacher, face_weight(valid, ones if face is None else face))
    if len(predicted) == 1:
        return same, predicted.new_zeros(())
    differences = (predicted[1:] - predicted[:1]) - (teacher[1:] - teacher[:1])
    return same, weighted_mean_square(differences, valid[1:])


def perturbed(states: Tensor, noise: Tensor, spread: float, keep_norm: bool = True) -> Tensor:
    """`states` [B,N,D] with `noise` of `spread` times the mean standard deviation of a row's vectors.

    With `keep_norm` each vector keeps its length.
    """
    changed = states + noise * spread * states.std(dim=-1).mean()
    if keep_norm:
        changed = changed * (states.norm(dim=-1, keepdim=True) / (changed.norm(dim=-1, keepdim=True) + EPS))
    return changed

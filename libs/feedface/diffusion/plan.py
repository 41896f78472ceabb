"""Which parts of the model each step of a generation evaluates: savings that a user may choose, spelt out beforehand.

An interval is (lowest, highest) timestep, both included, 0 clean to 1000 noise; None is everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from feedface.diffusion.schedule import NUM_TIMESTEPS

Interval = tuple[float, float]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the model at timestep `t`.

    `guided`: both halves of guidance, not the conditional one alone. `controlled`: with the face. `perturbed`: with
    perturbed-attention guidance, where there is any. `reused`: the deep blocks' last output stands in for them (see
    `UViT.forward`). `guidance`: g of this step, where it is not all steps'.
    """

    t: float
    guided: bool = True
    controlled: bool = True
    perturbed: bool = True
    reused: bool = False
    guidance: float | None = None


def falling(first: float, last: float, steps: int) -> list[float]:
    """g of each step, evenly from `first` to `last`."""
    return [first + (last - first) * index / max(1, steps - 1) for index in range(steps)]


def plan_evaluations(
    times: Sequence[float],
    guidance_interval: Interval | None = None,
    face_interval: Interval | None = None,
    pag_interval: Interval | None = None,
    reuse: int = 1,
) -> list[Evaluation]:
    """The evaluations at timesteps `times`, in order.

    Args:
        guidance_interval: guidance only there (Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval
            Improves Sample and Distribution Quality in Diffusion Models").
        face_interval: control only there.
        pag_interval: perturbed-attention guidance only there.
        reuse: the deep blocks are evaluated at the first of every `reuse` steps, at the last step, and wherever one of
            these begins or ends (Ma et al. 2024, "Learning-to-Cache": U-ViT tolerates it).

    Raises `ValueError` for an interval that is empty or leaves 0 … 1000, and a `reuse` below 1.
    """
    check_interval("guidance_interval", guidance_interval)
    check_interval("face_interval", face_interval)
    check_interval("pag_interval", pag_interval)
    if reuse < 1:
        raise ValueError(f"reuse must be 1 or more, not {reuse}")
    plan: list[Evaluation] = []
    last = len(times) - 1
    since = 0  # steps since the deep blocks were evaluated
    for index, t in enumerate(times):
        parts = tuple(_within(t, interval) for interval in (guidance_interval, face_interval, pag_interval))
        changed = not plan or parts != (plan[-1].guided, plan[-1].controlled, plan[-1].perturbed)
        since = 0 if changed or index == last or since == reuse - 1 else since + 1
        plan.append(Evaluation(t, *parts, reused=since > 0))
    return plan


def check_interval(name: str, interval: Interval | None) -> None:
    """Raise `ValueError` unless 0 <= lowest <= highest <= 1000."""
    if interval is not None and not 0 <= interval[0] <= interval[1] <= NUM_TIMESTEPS:
        raise ValueError(f"{name} must be two timesteps, 0 to {NUM_TIMESTEPS}, the lower first, not {tuple(interval)}")


def _within(t: float, interval: Interval | None) -> bool:
    # Noise levels are float32: a solver's timestep of 500 may come back as 499.999.
    return interval is None or interval[0] <= round(t, 1) <= interval[1]

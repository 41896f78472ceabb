"""The ways of drawing that are compared, what is drawn, and what single evaluations consist of."""

from dataclasses import dataclass

from feedface.settings import PLAIN, PRESETS, Settings


@dataclass(frozen=True)
class Variant:
    """A way to draw."""

    title: str
    settings: Settings
    release: bool = False  # one half of guidance after the other, attention in float32, nothing kept between steps
    int8: bool = False
    compiled: bool = False
    cuda_graphs: bool = False
    low_memory: bool = False  # shows in memory alone, and in the time of a picture from the first file on


def _plain(scheduler: str, steps: int, **knobs) -> Settings:
    return Settings(scheduler=scheduler, steps=steps, pag_scale=0, **knobs).over(PLAIN)


# Where guidance and face are at work is a matter of quality; what they cost is how many of the evaluations lie there.
GUIDANCE_INTERVAL = PRESETS["balanced"].guidance_interval
FACE_INTERVAL = (75, 1000)
VARIANTS = {
    "release": Variant("the release's way", _plain("dpmsolver++singlestep", 40), release=True),
    "same": Variant("ours, the same solver and evaluations", _plain("dpmsolver++singlestep", 40)),
    "2m_20": Variant("2M solver, 20 evaluations", _plain("dpmsolver++", 20)),
    "2m_10": Variant("2M solver, 10 evaluations", _plain("dpmsolver++", 10)),
    "guidance_interval": Variant(
        f"2M solver, 20, guidance at t = {GUIDANCE_INTERVAL[0]:g} to {GUIDANCE_INTERVAL[1]:g}",
        _plain("dpmsolver++", 20, guidance_interval=GUIDANCE_INTERVAL),
    ),
    "face_interval": Variant(
        f"2M solver, 20, face at t = {FACE_INTERVAL[0]:g} to {FACE_INTERVAL[1]:g}",
        _plain("dpmsolver++", 20, face_interval=FACE_INTERVAL),
    ),
    "reuse": Variant("2M solver, 20, deep blocks at every 2nd", _plain("dpmsolver++", 20, reuse=2)),
    "int8": Variant("2M solver, 20, int8", _plain("dpmsolver++", 20), int8=True),
    "compiled": Variant("2M solver, 20, compiled blocks", _plain("dpmsolver++", 20), compiled=True),
    "cuda_graphs": Variant("2M solver, 20, CUDA graphs", _plain("dpmsolver++", 20), cuda_graphs=True),
    "few_step": Variant("few-step adapter", Settings(few_step=True)),
    **{name: Variant(f"preset {name}", Settings(preset=name)) for name in PRESETS},
    "low_memory": Variant("preset balanced, low memory", Settings(preset="balanced"), low_memory=True),
}


@dataclass(frozen=True)
class Work:
    """What is drawn at a time: `pictures` B of `people` (1: one identity serves all) with `references` each."""

    pictures: int = 1
    references: int = 1
    people: int = 1
    size_px: int | None = None  # None: the model's own


@dataclass(frozen=True, order=True)
class Kind:
    """What one evaluation consists of; see `plan.Evaluation`.

    In order, one whose deep blocks are reused comes right after the same kind with all blocks.
    """

    release: bool = False
    guided: bool = True
    controlled: bool = True
    perturbed: bool = False
    reused: bool = False

    def __str__(self) -> str:
        words = ["release's way"] * self.release + ["both halves" if self.guided else "conditional half"]
        words += ["with face" if self.controlled else "no face"] + ["perturbed beside"] * self.perturbed
        words += ["deep blocks reused"] * self.reused
        return ", ".join(words)

"""The settings of `sampling_quality.py`, as words: "dpmsolver++:uniform 10, guidance 100-1000, reuse 2".

First a solver of `diffusion.sampling` and how many evaluations it takes ("unipc:karras 8"), or "preset balanced", or
"few-step". Guidance and face act at every time and every block is evaluated at every step, unless there follow
- "guidance LOW-HIGH", "face LOW-HIGH": only at timesteps t from LOW to HIGH (0 clean, 1000 noise);
- "reuse K": deep blocks at every K-th step;
- "int8", "bf16", "fp16": the arithmetic, which is float32 otherwise.
"""

import re
from dataclasses import dataclass

from feedface.common.errors import UserError
from feedface.diffusion.names import SCHEDULERS
from feedface.settings import PLAIN, Settings

RELEASE = "dpmsolver++singlestep 40"  # how the release samples
FEW_STEP = "few-step"
NUMBERS = ("int8", "bf16", "fp16")  # arithmetic other than float32
EXAMPLE = "dpmsolver++ 10, guidance 100-1000, face 0-800, reuse 2, int8"

# In the order in which they are worth most, so that a run that is stopped has something to say: one of each kind, then
# the ends and middles of the curves, then what lies between. Intervals are cut between the times of
# dpmsolver++:uniform 10: 1000, 900, … 100.
ONE_OF_EACH = (
    RELEASE,
    "dpmsolver++:uniform 10",
    "preset balanced",
    FEW_STEP,
    "dpmsolver++:uniform 6",
    "dpmsolver++:uniform 10, guidance 150-1000",
    "dpmsolver++:uniform 10, guidance 0-850",
    "dpmsolver++:uniform 10, face 150-1000",
    "dpmsolver++:uniform 10, face 0-850",
    "dpmsolver++:uniform 10, reuse 2",
    "dpmsolver++:uniform 10, int8",
    "dpmsolver++:uniform 8",
    "dpmsolver++ 10",
    "unipc:karras 15",
    "preset quality",
    "preset fast",
)
ENDS = (
    "dpmsolver++:uniform 5",
    "dpmsolver++:uniform 8, guidance 150-850",
    "dpmsolver++:uniform 10, guidance 350-1000",
    "dpmsolver++:uniform 10, guidance 0-650",
    "dpmsolver++:uniform 8, reuse 2",
    "dpmsolver++3m:uniform 8",
    "unipc:uniform 8",
    "unipc:karras 8",
    "dpmsolver++singlestep 10",
    "dpmsolver++ 20",
    "dpmsolver++:uniform 4",
    "dpmsolver++:uniform 20",
    "ddim 10",
)
BETWEEN = (
    "dpmsolver++:uniform 10, face 350-1000",
    "dpmsolver++:uniform 10, face 0-650",
    "dpmsolver++:uniform 20, reuse 2",
    "dpmsolver++:uniform 20, reuse 3",
    "dpmsolver++:uniform 15",
    "dpmsolver++singlestep 6",
    "dpmsolver++singlestep 20",
    "dpmsolver++:karras 10",
    "dpmsolver++:karras 6",
    "dpmsolver++ 6",
    "dpmsolver++ 8",
    "dpmsolver++ 15",
    "dpmsolver++ 40",
    "unipc:karras 6",
    "unipc:karras 10",
    "unipc:karras 20",
    "unipc:uniform 6",
    "unipc:uniform 10",
    "dpmsolver++3m:uniform 6",
    "dpmsolver++3m:uniform 10",
    "ddim 20",
)
PRIORITY = ONE_OF_EACH + ENDS + BETWEEN
QUICK = 10  # of these


@dataclass(frozen=True)
class Setting:
    """One point of the curves. Exactly one of `scheduler` (with `steps`), `preset` and `few_step` says what solves."""

    scheduler: str | None = None
    steps: int | None = None
    preset: str | None = None
    few_step: bool = False
    guidance_interval: tuple[int, int] | None = None
    face_interval: tuple[int, int] | None = None
    reuse: int | None = None
    numbers: str | None = None  # one of NUMBERS; None: float32

    @property
    def name(self) -> str:
        """The words that `parse` reads."""
        words = [FEW_STEP if self.few_step else f"preset {self.preset}" if self.preset else self.solver]
        for what, interval in (("guidance", self.guidance_interval), ("face", self.face_interval)):
            if interval is not None:
                words.append("{} {}-{}".format(what, *interval))
        words += [f"reuse {self.reuse}"] * (self.reuse is not None) + [self.numbers] * (self.numbers is not None)
        return ", ".join(words)

    @property
    def solver(self) -> str:
        return f"{self.scheduler} {self.steps}"

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9.+-]+", "_", self.name) + ".json"

    def settings(self) -> Settings:
        """As a user would ask for it; what it says nothing of is the model's own."""
        if self.few_step:
            return Settings(few_step=True)
        knobs = ("preset", "scheduler", "steps", "guidance_interval", "face_interval", "reuse")
        asked = Settings(**{knob: getattr(self, knob) for knob in knobs})
        return asked if self.preset else asked.over(PLAIN)  # what is not said is not approximated


def parse(text: str) -> Setting:
    """Words -> setting; `UserError` for what is none."""
    first, *rest = [word.strip() for word in text.split(",")]
    found: dict = {}
    if first == FEW_STEP:
        found["few_step"] = True
    elif match := re.fullmatch(r"preset (\w+)", first):
        found["preset"] = match[1]
    elif (match := re.fullmatch(r"(\S+) (\d+)", first)) and match[1] in SCHEDULERS:
        found |= {"scheduler": match[1], "steps": int(match[2])}
    else:
        raise _no_setting(text, f"{first!r} is no solver and number of evaluations ({', '.join(SCHEDULERS)})")
    for word in rest:
        if match := re.fullmatch(r"(guidance|face) (\d+)-(\d+)", word):
            key, value = f"{match[1]}_interval", (int(match[2]), int(match[3]))
        elif match := re.fullmatch(r"reuse (\d+)", word):
            key, value = "reuse", int(match[1])
        elif word in NUMBERS:
            key, value = "numbers", word
        else:
            raise _no_setting(text, f"{word!r} is unknown")
        if key in found:
            raise _no_setting(text, f"{key} is said twice")
        found[key] = value
    setting = Setting(**found)
    if setting.few_step and len(set(found) - {"few_step", "numbers"}):
        raise _no_setting(text, "the adapter fixes all but the arithmetic")
    setting.settings()  # checks the ranges
    return setting


def _no_setting(text: str, why: str) -> UserError:
    return UserError(f'--settings "{text}": {why}; they look like "{EXAMPLE}", "preset fast" or "{FEW_STEP}"')

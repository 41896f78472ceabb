"""The settings that are compared, as words: "dpmsolver++:uniform 10, guidance 100-1000, reuse 2".

First a solver of `diffusion.sampling` and how many evaluations it takes ("unipc:karras 8"), or "preset balanced", or
"few-step". Guidance and face act at every time and every block is evaluated at every step, unless there follow, in this
order,
- "guidance LOW-HIGH", "face LOW-HIGH": only at timesteps t from LOW to HIGH (0 clean, 1000 noise);
- "reuse K": deep blocks at every K-th step;
- "int8", "bf16", "fp16": the arithmetic, which is float32 otherwise.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from feedface.common.errors import UserError
from feedface.diffusion.names import SCHEDULERS
from feedface.settings import PLAIN, Settings

RELEASE = "dpmsolver++singlestep 40"  # how the release samples
FEW_STEP = "few-step"
EXAMPLE = "dpmsolver++ 10, guidance 100-1000, face 0-800, reuse 2, int8"
WORDS = re.compile(
    rf"(?P<first>(?P<few_step>{FEW_STEP})|preset (?P<preset>\w+)|(?P<scheduler>\S+) (?P<steps>\d+))"
    r"(, guidance (?P<guidance>\d+-\d+))?(, face (?P<face>\d+-\d+))?(, reuse (?P<reuse>\d+))?"
    r"(, (?P<numbers>int8|bf16|fp16))?"
)

# In the order in which they are worth most, so that a run that is stopped has something to say: one of each kind, then
# the ends and middles of the curves, then what lies between. Intervals are cut between the times of
# dpmsolver++:uniform 10: 1000, 900, … 100. A line is a list with semicolons.
PRIORITY_LINES = (
    f"{RELEASE}; dpmsolver++:uniform 10; preset balanced; {FEW_STEP}; dpmsolver++:uniform 6",
    "dpmsolver++:uniform 10, guidance 150-1000; dpmsolver++:uniform 10, guidance 0-850",
    "dpmsolver++:uniform 10, face 150-1000; dpmsolver++:uniform 10, face 0-850",
    "dpmsolver++:uniform 10, reuse 2; dpmsolver++:uniform 10, int8",
    "dpmsolver++:uniform 8; dpmsolver++ 10; unipc:karras 15; preset quality; preset fast",
    "dpmsolver++:uniform 5; dpmsolver++:uniform 8, guidance 150-850",
    "dpmsolver++:uniform 10, guidance 350-1000; dpmsolver++:uniform 10, guidance 0-650",
    "dpmsolver++:uniform 8, reuse 2; dpmsolver++3m:uniform 8; unipc:uniform 8; unipc:karras 8",
    "dpmsolver++singlestep 10; dpmsolver++ 20; dpmsolver++:uniform 4; dpmsolver++:uniform 20; ddim 10",
    "dpmsolver++:uniform 10, face 350-1000; dpmsolver++:uniform 10, face 0-650",
    "dpmsolver++:uniform 20, reuse 2; dpmsolver++:uniform 20, reuse 3; dpmsolver++:uniform 15",
    "dpmsolver++singlestep 6; dpmsolver++singlestep 20; dpmsolver++:karras 10; dpmsolver++:karras 6",
    "dpmsolver++ 6; dpmsolver++ 8; dpmsolver++ 15; dpmsolver++ 40",
    "unipc:karras 6; unipc:karras 10; unipc:karras 20; unipc:uniform 6; unipc:uniform 10",
    "dpmsolver++3m:uniform 6; dpmsolver++3m:uniform 10; ddim 20",
)
PRIORITY = tuple(words for line in PRIORITY_LINES for words in line.split("; "))
QUICK = 10  # of these
ABOUT = "about.json"  # beside the results: which model and cases they are of


@dataclass(frozen=True)
class Setting:
    """One point of the curves. `said`: its words by the groups of `WORDS`, None where it does not say."""

    name: str
    settings: Settings
    said: Mapping[str, str | None] = field(hash=False)

    @property
    def numbers(self) -> str | None:
        """Its arithmetic; None is float32."""
        return self.said["numbers"]

    @property
    def file_name(self) -> str:
        return re.sub(r"[^a-z0-9.+-]+", "_", self.name) + ".json"


def parse(text: str) -> Setting:
    """Words -> setting, as a user would ask for it: what it says nothing of is the model's own; or `UserError`."""
    name = ", ".join(word.strip() for word in text.split(","))
    match = WORDS.fullmatch(name)
    if match is None:
        raise _no_setting(text, f"not a solver with a number of evaluations ({', '.join(SCHEDULERS)}) and savings")
    said = match.groupdict()
    intervals = {
        f"{what}_interval": tuple(map(int, said[what].split("-"))) for what in ("guidance", "face") if said[what]
    }
    numbers = {what: int(said[what]) for what in ("steps", "reuse") if said[what]}
    asked = Settings(scheduler=said["scheduler"], preset=said["preset"], pag_scale=0, **numbers, **intervals)
    if said["few_step"]:
        if asked != Settings(pag_scale=0):
            raise _no_setting(text, "the adapter fixes all but the arithmetic")
        asked = Settings(few_step=True)
    elif not said["preset"]:
        asked = asked.over(PLAIN)  # what is not said is not approximated
    return Setting(name, asked, said)


def _no_setting(text: str, why: str) -> UserError:
    return UserError(f'--settings "{text}": {why}; they look like "{EXAMPLE}", "preset fast" or "{FEW_STEP}"')

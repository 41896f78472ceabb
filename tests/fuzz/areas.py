"""All areas by name. An area has a `share` of the inputs, and `case(rng, place)`, which makes one in the empty folder
`place` and hands it to what reads it; it returns an exit code, if there is one."""

from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.drawing import Flags, Jobs, Pictures
from tests.fuzz.files import Evaluations, Prepared, Records, Tables
from tests.fuzz.models import Bundles, Checkpoints, Weights

AREAS = {
    "pictures": Pictures,
    "jobs": Jobs,
    "flags": Flags,
    "records": Records,
    "tables": Tables,
    "prepared": Prepared,
    "evaluations": Evaluations,
    "bundles": Bundles,
    "weights": Weights,
    "checkpoints": Checkpoints,
}


def make_areas(folder: Path, names: Sequence[str] | None = None, large: bool = False) -> dict:
    """Areas of these names (default: all), with what they need in `folder`; `large`: also what takes gigabytes."""
    return {name: AREAS[name](folder, large) for name in names or AREAS}

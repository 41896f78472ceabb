"""Everything that is measured for the claims, in the order in which it is worth most."""

from pathlib import Path

import ml_collections

from research.reproduction.measure import Measurement
from research.reproduction.runs import FEWER_PEOPLE, LOSSES, SITES, checkpoint_folder

BASE, DEFAULT = "no-face", "one-reference"
DEFAULTS = {"face_scale": 1.0, "guidance": 4.0, "uncond": "true_uncond"}  # of the committed model; the sweeps' centre
COUNTS = (1, 2, 3, 4, 5)
FACE_SCALES = (0.5, 0.8, 1.0, 1.25, 1.5, 2.0)
GUIDANCES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
UNCONDS = ("true_uncond", "empty_token", "paper")


def committed() -> list[Measurement]:
    """Claims 2 and 3: of the committed face-controlnet, no training needed."""
    wanted = [Measurement(BASE, references=0)]
    wanted += [Measurement(pooled(count, "concat"), references=count) for count in COUNTS]
    wanted += [Measurement(pooled(count, "mean"), references=count, pool="mean") for count in COUNTS[1:]]
    wanted += [Measurement(scaled(scale), face_scale=scale) for scale in FACE_SCALES]
    wanted += [Measurement(guided(guidance), guidance=guidance) for guidance in GUIDANCES]
    wanted += [Measurement(unconditional(mode), uncond=mode) for mode in UNCONDS]
    # One of each sweep is the default setting, measured already.
    return list({one.name: one for one in reversed(wanted)}.values())[::-1]


def trained(config: ml_collections.ConfigDict) -> list[Measurement]:
    """Claims 1, 4 and 5: of the runs, at their checkpoints."""
    *early, last = config.train.measured_at
    first, *more = config.train.seeds
    wanted = [(f"{loss}-seed{first}", last) for loss in LOSSES]
    wanted += [(name, last) for name in [*(f"sites-{sites.replace(' ', '-')}" for sites in list(SITES)[1:])]]
    wanted += [("control-input", last), *((f"people-{count}", last) for count in FEWER_PEOPLE)]
    wanted += [(f"{loss}-seed{seed}", last) for seed in more for loss in LOSSES]
    half = last // 2
    wanted += [(f"{loss}-seed{seed}", half) for seed in config.train.seeds for loss in LOSSES]
    wanted += [
        (f"regularization-seed{seed}", samples) for seed in config.train.seeds for samples in early if samples != half
    ]
    return [Measurement(at(run, samples), run=run, samples=samples) for run, samples in wanted]


def folder_of(one: Measurement, config: ml_collections.ConfigDict, workdir: Path) -> Path | None:
    """Where the measured face-controlnet is; None: the committed one."""
    return None if one.run is None else checkpoint_folder(workdir, one.run, one.samples, config)


def at(run: str, samples: int) -> str:
    return f"{run}@{samples}"


def pooled(count: int, pool: str) -> str:
    return DEFAULT if count == 1 else f"references-{count}-{pool}"


def scaled(scale: float) -> str:
    return DEFAULT if scale == DEFAULTS["face_scale"] else f"face-scale-{scale:g}"


def guided(guidance: float) -> str:
    return DEFAULT if guidance == DEFAULTS["guidance"] else f"guidance-{guidance:g}"


def unconditional(mode: str) -> str:
    return DEFAULT if mode == DEFAULTS["uncond"] else f"uncond-{mode}"

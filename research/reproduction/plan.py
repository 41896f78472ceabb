"""What is trained and measured for the claims, in the order in which it is worth most."""

from dataclasses import dataclass
from pathlib import Path

import ml_collections

from feedface.settings import Settings

BASE, DEFAULT = "no-face", "one-reference"
DEFAULTS = {"face_scale": 1.25, "guidance": 4.0, "uncond": "true_uncond"}  # of the committed model; the sweeps' centre
COUNTS = (1, 2, 3, 4, 5)
FACE_SCALES = (0.5, 0.8, 1.0, 1.25, 1.5, 2.0)
GUIDANCES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0)
UNCONDS = ("true_uncond", "empty_token", "paper")
LOSSES = ("regularization", "mask", "standard")
ALIKE = "timesteps-alike"
FEWER_PEOPLE = (30, 120, 400)
# The miniature's U-ViT has three in-blocks, one in the middle, three out-blocks.
SITES = {
    "default": ("in_blocks.0", "in_blocks.2", "out_blocks.0", "out_blocks.1", "out_blocks.2"),
    "every other": ("in_blocks.0", "in_blocks.2", "out_blocks.0", "out_blocks.2"),
    "all": ("in_blocks.0", "in_blocks.1", "in_blocks.2", "mid_block", "out_blocks.0", "out_blocks.1", "out_blocks.2"),
    "in only": ("in_blocks.0", "in_blocks.1", "in_blocks.2"),
    "out only": ("out_blocks.0", "out_blocks.1", "out_blocks.2"),
}


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        people: only the first so many of the world; None: all of them.
        alike: all timesteps weigh alike, as in the paper, and not as `config.train.min_snr` says.
    """

    name: str
    seed: int = 0
    loss: str = "regularization"
    sites: str = "default"
    control_input: str = "output"
    people: int | None = None
    alike: bool = False


@dataclass(frozen=True)
class Measurement:
    """What is drawn. Settings that are None are the model's own; those of cost approximate nothing by default."""

    name: str  # also the result file's
    run: str | None = None  # of `all_runs`; None: the committed method
    samples: int | None = None  # the run's checkpoint after so many samples
    references: int = 1
    pool: str = "concat"
    settings: Settings = Settings()  # noqa: RUF009 (frozen)


def all_runs(config: ml_collections.ConfigDict) -> list[Run]:
    """The trainings of claims 1, 4 and 5, differing in one thing each."""
    first, *more = config.train.seeds
    runs = [Run(of_loss(loss, first), first, loss) for loss in LOSSES]
    runs += [Run(of_sites(name), first, sites=name) for name in list(SITES)[1:]]
    runs += [Run("control-input", first, control_input="input")]
    runs += [Run(of_people(count), first, people=count) for count in FEWER_PEOPLE]
    runs += [Run(of_loss(loss, seed), seed, loss) for seed in more for loss in LOSSES]
    return [*runs, Run(ALIKE, first, alike=True)]


def committed() -> list[Measurement]:
    """Claims 2 and 3: of the committed method, no training needed."""
    wanted = [Measurement(BASE, references=0)]
    wanted += [Measurement(pooled(n, pool), references=n, pool=pool) for pool in ("concat", "mean") for n in COUNTS]
    sweeps = {"face_scale": FACE_SCALES, "guidance": GUIDANCES, "uncond": UNCONDS}
    for knob, values in sweeps.items():
        wanted += [Measurement(swept(knob, value), settings=Settings(**{knob: value})) for value in values]
    # One of each sweep is the default setting: it is measured once, as the model's own settings have it.
    return list({one.name: one for one in [*wanted, Measurement(DEFAULT)]}.values())


def trained(config: ml_collections.ConfigDict) -> list[Measurement]:
    """Claims 1, 4 and 5: of the runs, at their checkpoints."""
    *early, last = config.train.measured_at
    half, seeds = last // 2, config.train.seeds
    wanted = [(run.name, last) for run in all_runs(config)]
    wanted += [(of_loss(loss, seed), half) for seed in seeds for loss in LOSSES]
    wanted += [(of_loss(LOSSES[0], seed), samples) for seed in seeds for samples in early if samples != half]
    return [Measurement(at(run, samples), run, samples) for run, samples in wanted]


def checkpoint_folder(workdir: Path, run: str, samples: int, config: ml_collections.ConfigDict) -> Path:
    """Where `train.py` keeps the model that `run` had after so many samples."""
    return workdir / "runs" / run / "checkpoints" / f"{samples // config.train.batch_size:08d}"


def folder_of(one: Measurement, config: ml_collections.ConfigDict, workdir: Path) -> Path | None:
    """Where the measured method is; None: the committed one."""
    return None if one.run is None else checkpoint_folder(workdir, one.run, one.samples, config)


# -------------------------------------------------------------------------------------- names of runs and measurements


def of_loss(loss: str, seed: int) -> str:
    return f"{loss}-seed{seed}"


def of_sites(name: str) -> str:
    return f"sites-{name.replace(' ', '-')}"


def of_people(count: int) -> str:
    return f"people-{count}"


def at(run: str, samples: int) -> str:
    return f"{run}@{samples}"


def pooled(count: int, pool: str) -> str:
    return DEFAULT if count == 1 else f"references-{count}-{pool}"


def swept(knob: str, value: float | str) -> str:
    """Of the setting that differs from the default in one knob."""
    shown = value if isinstance(value, str) else f"{value:g}"
    return DEFAULT if value == DEFAULTS[knob] else f"{knob.replace('_', '-')}-{shown}"

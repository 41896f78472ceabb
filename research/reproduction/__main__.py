"""Make the paper's claims again in the miniature, from nothing but this repository.

    python -m research.reproduction                     all of it: hours on two cores; run it again to go on
    python -m research.reproduction --quick             minutes: what needs no training is measured anew, with fewer
                                                        people; the rest is taken from docs/reproduction/results
    python -m research.reproduction --stage train --share 0/2     every second training only: two shells, two cores;
                                                                  likewise --stage measure
    python -m research.reproduction --config.measure.people=50    a setting changed (configs/reproduction.py)

Everything is kept in --workdir. The page is written to --out: reproduction.md, and figures and results beside it.
"""

import os
import subprocess
import sys
from pathlib import Path

import ml_collections

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, path_flag, run_cli
from feedface.common.shards import parse_shard

STAGES = ("world", "train", "measure", "dreambooth", "limits", "page")
QUICK_STAGES = ("measure", "page")


def main() -> None:
    parser = Parser(prog="python -m research.reproduction", description=__doc__, allow_abbrev=False)
    parser.add_argument("--stage", default="all", choices=("all", *STAGES))
    parser.add_argument("--quick", action="store_true", help="measure what needs no training, and write a page of it")
    parser.add_argument("--share", default="0/1", help="k/n: only every n-th training or measurement (default: all)")
    parser.add_argument(
        "--workdir", type=path_flag("--workdir"), help="default: .cache/reproduction, with --quick …-quick"
    )
    parser.add_argument("--out", type=path_flag("--out"), help="default: docs, with --quick outputs/reproduction")
    arguments, overrides = parser.parse_known_args()
    share = parse_shard(arguments.share)
    if arguments.quick and arguments.stage not in ("all", *QUICK_STAGES):
        raise UserError(f"--quick has no stage {arguments.stage}; it has {' and '.join(QUICK_STAGES)}")
    stages = (QUICK_STAGES if arguments.quick else STAGES) if arguments.stage == "all" else (arguments.stage,)

    from feedface.synthetic.train.common import ROOT, config_from_flags

    config = config_from_flags("reproduction", "quick" if arguments.quick else "", overrides)
    workdir = arguments.workdir or ROOT / ".cache" / ("reproduction-quick" if arguments.quick else "reproduction")
    out = arguments.out or ROOT / ("outputs/reproduction" if arguments.quick else "docs")
    for stage in stages:
        run_stage(stage, config, workdir.resolve(), out.resolve(), arguments.quick, share)


def run_stage(
    stage: str, config: ml_collections.ConfigDict, workdir: Path, out: Path, quick: bool, share: tuple[int, int]
) -> None:
    """Do what is left of one stage."""
    from feedface.checkpoints.bundle import read_index
    from feedface.synthetic.train.common import ROOT
    from research.reproduction import page, plan, runs
    from research.reproduction.measure import measure_all
    from research.results import ResultStore

    results = workdir / "results"
    first, shares = share
    if stage == "world":
        runs.make_world(config, workdir, read_index(config.model).image_size)
    elif stage == "train":
        for run in plan.all_runs(config)[first::shares]:
            runs.train(run, config, workdir)
    elif stage == "measure":
        wanted = plan.committed() + ([] if quick else plan.trained(config))
        measure_all([(one, plan.folder_of(one, config, workdir)) for one in wanted[first::shares]], config, workdir)
    elif stage == "dreambooth":
        people, pictures = config.dreambooth.people, config.dreambooth.pictures
        _call("baselines.dreambooth", config, results / "dreambooth.json", people=people, references=pictures)
    elif stage == "limits":
        _call("reproduction.limits", config, results / "limits.json", people=config.measure.people)
    elif quick:
        kept = ROOT / "docs" / "reproduction"  # contact sheets lie beside the figures
        note = (
            f"**Quick run**: sections 2 and 3 were measured now, on {config.measure.people} people; the others show "
            "the results kept in docs/reproduction/results."
        )
        page.write_page(ResultStore([results, kept / "results", kept]), config, out, [note])
    else:
        runs.write_cost(config, workdir)
        page.keep_results(workdir, out)
        page.write_page(ResultStore([results]), config, out, [])


def _call(module: str, config: ml_collections.ConfigDict, out: Path, **options) -> None:
    """`python -m research.MODULE` unless its file is there."""
    if out.is_file():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"research.{module}", "--model", config.model, "--out", os.path.relpath(out)]
    command += [f"--{key}={value}" for key, value in options.items()]
    code = subprocess.run(command).returncode
    if code:
        raise UserError(f"{module} ended with exit code {code}; the same command goes on from there")


if __name__ == "__main__":
    sys.exit(run_cli(main))

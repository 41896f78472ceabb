"""Distil a model to a few evaluations without guidance: an adapter beside its weights (docs/few_steps.md).

The miniature, on one CPU core:
    python distill.py trajectories --workdir .cache/few_step      the teacher draws; --share 0/2 and 1/2: two processes
    python distill.py train --workdir .cache/few_step             the student learns; leaves .cache/few_step/model
    python distill.py average --workdir .cache/mean --of .cache/few_step .cache/another       of runs of one model
    python distill.py add --workdir .cache/few_step --model models/mini
Draw with it: python inference.py --model .cache/few_step/model --preset fast …

Any config value can be given by flag: --config.train.minutes=5. The same command goes on from where it was stopped, by
Ctrl-C too. Exit codes: 0 done, 2 wrong input (one line says what), 130 after Ctrl-C.
"""

from collections.abc import Sequence
from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import UserError, path_flag, run_cli
from feedface.common.shards import parse_shard


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="distill.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("stage", choices=("trajectories", "train", "average", "add"))
    parser.add_argument("--config", default="mini_few_step", help="a file of configs/, without .py (%(default)s)")
    parser.add_argument("--workdir", required=True, type=path_flag("--workdir"), help="folder of this run")
    parser.add_argument("--share", default="0/1", help="trajectories: k/n, only every n-th shard (default: all)")
    parser.add_argument(
        "--of", type=path_flag("--of"), nargs="+", help="average: the workdirs whose adapters' mean is taken"
    )
    parser.add_argument("--model", type=Path, help="add: the model folder that gets the adapter")
    arguments, overrides = parser.parse_known_args(argv)

    if arguments.of is not None and arguments.stage != "average":
        raise UserError("--of is for the stage average")
    if arguments.model is not None and arguments.stage != "add":
        raise UserError("--model is for the stage add; elsewhere it is --config.model=…")
    if arguments.stage == "add":
        from feedface.checkpoints.bundle import add_few_step
        from feedface.checkpoints.few_step import COMPONENT

        if arguments.model is None or overrides:
            raise UserError(f"{overrides[0]}: unknown argument" if overrides else "--model is missing; see --help")
        return add_few_step(arguments.model, arguments.workdir / "model" / COMPONENT)

    if arguments.stage == "average":
        from feedface.checkpoints.few_step import COMPONENT, average_few_steps

        if not arguments.of or overrides:
            raise UserError(f"{overrides[0]}: unknown argument" if overrides else "--of is missing; see --help")
        if arguments.workdir.resolve() in [workdir.resolve() for workdir in arguments.of]:
            raise UserError(
                f"--workdir {arguments.workdir}: one of --of, whose adapter would be lost; use another folder"
            )
        made = [workdir / "model" / COMPONENT for workdir in arguments.of]
        return average_few_steps(made, arguments.workdir / "model" / COMPONENT)

    share = parse_shard(arguments.share)
    from feedface.distillation.train import train, trajectories
    from feedface.synthetic.train.common import config_from_flags

    config = config_from_flags(arguments.config, "", overrides)
    workdir = arguments.workdir.resolve()
    if arguments.stage == "trajectories":
        return trajectories(config, workdir, share)
    return train(config, workdir)


def cli() -> None:
    run_cli(main)

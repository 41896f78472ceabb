"""Train the face-controlnet beside a frozen backbone.

The paper's training, on 8 GPUs (another number works too; resuming on another number as well):
    accelerate launch --num_processes 8 --mixed_precision fp16 --multi_gpu train.py \\
        --config=configs/train_config.py --workdir=workdir/feedface
The miniature, on a CPU:
    accelerate launch train.py --config=configs/mini_face.py --workdir=workdir/mini
Check config, weights, records and disk first, and measure what a step takes:
    python train.py --config=configs/train_config.py --workdir=workdir/feedface --dry_run
Encode all pictures once, ahead of training (launched like training, so on as many processes):
    python train.py --config=configs/train_config.py --workdir=workdir/feedface --config.cache.dir=features --cache_only

Any config value can be given by flag, such as --config.train.batch_size=8; --help lists them. The same command goes on
from the last checkpoint; `inference.py --model WORKDIR/checkpoints/last` uses it at once. SIGTERM and Ctrl-C save and
leave.
Exit codes: 0 done, 2 wrong input (one line says what), 130 after Ctrl-C, 143 after SIGTERM. `accelerate launch` turns
every code but 0 into 1.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from feedface.common.command_line import VERSION, Parser, as_called
from feedface.common.config_flags import config_keys, explain
from feedface.common.errors import UserError, run_cli
from feedface.common.places import config_folder, find_config
from feedface.inference.config_file import load_config

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "Config file, such as configs/train_config.py.", lock_config=True)
flags.DEFINE_string("workdir", None, "Folder of this run: checkpoints, logs, the resolved config.")
flags.DEFINE_bool("dry_run", False, "Check config, weights, records and disk, measure, stop before the first step.")
flags.DEFINE_bool("cache_only", False, "Fill the feature cache and stop.")


def main() -> int:
    parse(sys.argv)
    from feedface.training.dry_run import dry_run
    from feedface.training.trainer import fill_cache, train

    run = dry_run if FLAGS.dry_run else fill_cache if FLAGS.cache_only else train
    return run(FLAGS.config, Path(FLAGS.workdir))


def with_config(arguments: Sequence[str]) -> tuple[list[str], str]:
    """The command line with the config file's path for what --config names (see `find_config`), and that path."""
    parser = Parser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("-config", "--config", default="")
    named, rest = parser.parse_known_args(arguments[1:])
    if not named.config:
        return list(arguments), ""
    name, colon, variant = named.config.partition(":")
    path = find_config(name) + colon + variant
    return [arguments[0], f"--config={path}", *rest], path


def parse(arguments: list[str]) -> None:
    """Fill `FLAGS`; `UserError` for an unknown or ill-typed flag or config key."""
    if "--version" in arguments:
        print(VERSION)
        raise SystemExit(0)
    if {"-h", "--help", "-help", "--helpfull"} & set(arguments[1:]):
        print_help(arguments)
        raise SystemExit(0)
    arguments, file = with_config(arguments)
    sys.argv = arguments  # where ml_collections looks for the values of single keys
    if file:
        load_config(*file.split(":", 1))  # what is wrong in the file itself, with its line
    try:
        extra = FLAGS(arguments)[1:]
        missing = [name for name in ("config", "workdir") if FLAGS[name].value is None]
        if not missing:
            FLAGS.config.keys()  # a config file that cannot be loaded is reported at its first use
    # ml_collections reports a wrong key or type of the config in all of these.
    except (flags.Error, KeyError, AttributeError, TypeError, ValueError, OSError) as error:
        raise UserError(f"{explain(error, arguments)}; --help lists flags and config keys") from None
    if extra:
        raise UserError(f"{extra[0]}: unknown argument; see --help")
    if missing:
        raise UserError(f"--{missing[0]} is missing; see --help")
    if not FLAGS.workdir.strip():
        raise UserError("--workdir is empty; name a folder (. is the current one)")


def print_help(arguments: list[str]) -> None:
    """What the script does, its flags, and the config's keys: of --config where it is named, else of the paper's."""
    print(as_called(__doc__))
    for name in ("config", "workdir", "dry_run", "cache_only"):
        print(f"  --{name:12} {FLAGS[name].help}")
    print("  --version      Print the version.")
    paper = config_folder() / "train_config.py"
    file, _, variant = (with_config(arguments)[1] or str(paper)).partition(":")
    config = load_config(file, *[variant] if variant else [])
    print(f"\nConfig keys, with the values of {Path(file).name}; configs/{paper.name} says what they mean:")
    for line in config_keys(config):
        print(f"  {line}")


def cli() -> None:
    run_cli(main)

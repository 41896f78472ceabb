"""What a user calls: `feedface COMMAND`, or the script of that name at the root of a checkout.

Each module has its usage as its docstring, `main(argv)` that returns the exit code, and `cli()` that ends the process.
"""

import sys
from importlib import import_module
from importlib.util import find_spec

from feedface.common.command_line import VERSION
from feedface.common.errors import UserError, run_cli

if find_spec("torch") is None:  # mostly a shell in which the environment was not activated
    environment = "`make demo` sets one up in .venv, `source .venv/bin/activate` makes this shell use it"
    print(f"error: {sys.executable} has no PyTorch: {environment}", file=sys.stderr)
    sys.exit(2)

COMMANDS = {
    "inference": "put a given person into pictures that a text describes",
    "app": "the same in a browser: a web page",
    "train": "train the face-controlnet beside a frozen backbone",
    "make-data": "turn a folder of photos into training records",
    "evaluate": "measure how well models keep the person and follow the prompt",
    "distill": "distil a model to a few evaluations without guidance",
}
USAGE = "\n".join(
    [
        "FeedFace: one prompt, one to five photos of a person, pictures of that person.\n",
        "usage: feedface COMMAND ...      feedface COMMAND --help says more; --version\n",
        *(f"  {name:10} {what}" for name, what in COMMANDS.items()),
        "\nTrain on several GPUs: accelerate launch ... -m feedface train ...",
    ]
)


def cli() -> None:
    """`feedface`: hand the rest of the command line to the command."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in COMMANDS:
        sys.argv = [f"feedface {command}", *arguments]
        import_module(f"feedface.commands.{command.replace('-', '_')}").cli()
    run_cli(lambda: _explain(command))


def _explain(command: str) -> None:
    if command not in ("-h", "--help", "--version"):
        raise UserError(f"{command!r:.60}: no command of feedface; use {', '.join(COMMANDS)} (feedface --help)")
    print(VERSION if command == "--version" else USAGE)

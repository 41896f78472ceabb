"""Distil a model to a few evaluations without guidance.

python distill.py --help      commands to copy, and all options (from libs/feedface/commands/distill.py)
"""

import sys
from pathlib import Path

# The package is used as it lies here, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "libs"))

from feedface.commands.distill import cli

if __name__ == "__main__":
    cli()

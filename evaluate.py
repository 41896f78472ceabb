"""Measure how well models keep the person and follow the prompt.

python evaluate.py --help      commands to copy, and all options (from libs/feedface/commands/evaluate.py)
"""

import sys
from pathlib import Path

# The package is used as it lies here, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "libs"))

from feedface.commands.evaluate import cli

if __name__ == "__main__":
    cli()

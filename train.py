"""Train the face-controlnet beside a frozen backbone.

python train.py --help      commands to copy, and all options (from libs/feedface/commands/train.py)
"""

import sys
from pathlib import Path

# The package is used as it lies here, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "libs"))

from feedface.commands.train import cli

if __name__ == "__main__":
    cli()

"""Put a given person into pictures that a text describes.

python inference.py --help      commands to copy, and all options (from libs/feedface/commands/inference.py)
"""

import sys
from pathlib import Path

# The package is used as it lies here, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "libs"))

from feedface.commands.inference import cli

if __name__ == "__main__":
    cli()

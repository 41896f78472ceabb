"""Turn a folder of photos into training records.

python make_data.py --help      commands to copy, and all options (from libs/feedface/commands/make_data.py)
"""

import sys
from pathlib import Path

# The package is used as it lies here, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "libs"))

from feedface.commands.make_data import cli

if __name__ == "__main__":
    cli()

"""The web page: people put into pictures in a browser.

python app.py --help      commands to copy, and all options (from libs/feedface/commands/app.py)
"""

import sys
from pathlib import Path

# The package is used as it lies here, also where it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent / "libs"))

from feedface.commands.app import cli

if __name__ == "__main__":
    cli()

"""What the command lines of all scripts share."""

import argparse
import re
import sys

from feedface import __version__
from feedface.common.errors import UserError

VERSION = f"FeedFace {__version__}"
SCRIPTS = r"(inference|app|train|make_data|evaluate|distill)\.py"


class Parser(argparse.ArgumentParser):
    """argparse with --version and help as it is written; what is wrong with an argument is a `UserError`."""

    def __init__(self, prog: str, description: str | None = None, **options):
        options = {"formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        command = _called()
        super().__init__(command or prog, description=description and as_called(description), **options)
        self.add_argument("--version", action="version", version=VERSION)

    def error(self, message: str):
        command = self.prog if self.prog.startswith(("python", "feedface")) else f"python {self.prog}"
        raise UserError(f"{message} ({command} --help lists all options)")


def as_called(text: str) -> str:
    """Usage of the scripts as the user meets them: of `feedface inference`, where that is what was called."""
    if not _called():
        return text
    text = re.sub(rf"((?:accelerate launch|torchrun)\b.*?){SCRIPTS}", r"\1-m feedface \2", text)
    return re.sub(rf"(?:python )?\b{SCRIPTS}", r"feedface \1", text).replace("feedface make_data", "feedface make-data")


def _called() -> str:
    """`feedface COMMAND` where `feedface.commands.cli` has handed the command line on, else nothing."""
    return sys.argv[0] if sys.argv[0].startswith("feedface ") else ""

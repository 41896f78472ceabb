"""What the command lines of all scripts share."""

import argparse

from feedface import __version__
from feedface.common.errors import UserError

VERSION = f"FeedFace {__version__}"


class Parser(argparse.ArgumentParser):
    """argparse with --version and help as it is written; what is wrong with an argument is a `UserError`."""

    def __init__(self, prog: str, **options):
        super().__init__(prog, **{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})
        self.add_argument("--version", action="version", version=VERSION)

    def error(self, message: str):
        command = self.prog if self.prog.startswith("python") else f"python {self.prog}"
        raise UserError(f"{message} ({command} --help lists all options)")

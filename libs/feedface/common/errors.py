"""One exception for everything a user can put right, and the wrapper that turns it into one line and exit code 2."""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
LONGEST = 1000  # characters of a message


class UserError(Exception):
    """A mistake in the input: the message is one line that names the file, line or value and what to do."""


def path_flag(name: str) -> Callable[[str], Path]:
    """`type` of the argparse option `name`: a path. `UserError` for "", which would mean the current folder."""

    def path(text: str) -> Path:
        if not text.strip():
            raise UserError(f"{name}: is empty; name a file or folder (. is the current one)")
        return Path(text)

    return path


def one_line(message: object) -> str:
    """A message without its line breaks; of one that repeats an endless value, the beginning and the end."""
    text = " ".join(str(message).split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST * 3 // 4]} … {text[-LONGEST // 4 :]}"


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a script's `main` and leave the process with its exit code.

    `UserError` and a full or unwritable disk become one line on stderr and exit code 2; Ctrl-C becomes one line and
    exit code 130. Anything else is a defect of ours and keeps its traceback. Warnings, which libraries have for
    developers, are shown by `python -W default`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names and prompts may hold what a terminal cannot show
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            code = main() or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except OSError as error:
        message = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        print(f"error: {one_line(message)}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = EXIT_INTERRUPTED
    sys.exit(code)

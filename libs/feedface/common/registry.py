"""Tables of names: what a name stands for is imported when it is used."""

from importlib import import_module
from typing import Any


def imported(place: str) -> Any:
    """What "package.module:name" stands for."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)

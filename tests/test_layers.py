"""Imports point downwards: solvers know no backbone and no method, backbones no method, methods no caller."""

import ast
from pathlib import Path

import pytest

import feedface

ROOT = Path(feedface.__file__).parent
# What a room may import of this package when it is loaded, beside itself.
ALLOWED = {
    "common": set(),
    "diffusion": {"common"},
    "backbones": {"diffusion", "common"},
    "encoders.py": {"common"},
    "methods": {"diffusion", "backbones", "common", "encoders"},
}


def imported(file: Path) -> set[str]:
    """Rooms that a file imports at its top level: not what is under `if TYPE_CHECKING`, nor inside functions."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        found |= {name.split(".")[1] for name in names if name.startswith("feedface.")}
    return found


@pytest.mark.parametrize("room", ALLOWED)
def test_imports_point_downwards(room: str):
    files = list((ROOT / room).glob("*.py"))
    assert files
    for file in files:
        assert imported(file) <= ALLOWED[room] | {room}, file.name


def test_one_backbone_and_one_method_stand_apart_from_the_others():
    # nothing shared names a kind: else a new one would touch more than its own file
    for room in ("backbones", "methods"):
        kinds = {file.stem for file in (ROOT / room).glob("*.py")} - {"__init__", "base", "control", "site"}
        for file in [ROOT / room / name for name in ("base.py", "control.py", "site.py")] + list(
            (ROOT / "diffusion").glob("*.py")
        ):
            if file.is_file():
                modules = {
                    node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
                }
                assert not modules & {f"feedface.{room}.{kind}" for kind in kinds}, file.name

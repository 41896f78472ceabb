"""Imports point downwards: solvers know no backbone and no method, backbones no method, methods no caller."""

import ast
from pathlib import Path

import pytest

import feedface

ROOT = Path(feedface.__file__).parent
# From the ground up: a room imports from those before it, whenever it does so (at the top, when needed, for types).
FLOORS = [
    ["common"],
    ["diffusion", "encoders", "text_tower", "dense_heads", "head_pose", "pose_branch"],
    ["backbones"],
    ["shared_attention"],
    ["methods"],
    ["settings"],
    ["checkpoints"],
    ["faces"],
    ["data"],
    ["inference", "pipeline", "synthetic.world"],
    ["training", "preparation"],
    ["distillation", "evaluation"],
    ["synthetic.train"],
    ["app"],
    ["commands"],
]
SEAM = ("base", "control", "perturbed_attention", "site")  # of backbones and methods: what knows no kind of them
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module: str) -> str:
    """`feedface.synthetic.train.fit` -> synthetic.train; `feedface.data.cache` -> data."""
    parts = module.split(".")[1:]
    return ".".join(parts[:2] if parts[0] == "synthetic" else parts[:1])


def modules() -> dict[str, Path]:
    files = [file for file in ROOT.rglob("*.py") if file.stem != "__main__" and file.parent != ROOT / "configs"]
    return {".".join(("feedface", *file.relative_to(ROOT).with_suffix("").parts)): file for file in files}


def imported(file: Path, known: dict[str, Path]) -> set[str]:
    """Modules of this package that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & known.keys()
            found |= inner or {node.module}
    return found & known.keys()


GRAPH = {name: imported(file, modules()) for name, file in modules().items() if file.stem != "__init__"}


@pytest.mark.parametrize("room", LEVEL)
def test_imports_point_downwards(room: str):
    rows = {name: found for name, found in GRAPH.items() if room_of(name) == room}
    assert rows
    for name, found in rows.items():
        above = {other for other in found if room_of(other) != room and LEVEL[room_of(other)] >= LEVEL[room]}
        if LEVEL[room] == LEVEL["pipeline"]:  # pipeline.py is the face of inference/
            above = {other for other in above if {room, room_of(other)} != {"pipeline", "inference"}}
        assert not above, name


def test_no_circle_among_files():
    """Each file can be read after those that it imports."""
    waiting = {name: set(found) for name, found in GRAPH.items()}
    while ready := [name for name, found in waiting.items() if not found & waiting.keys()]:
        for name in ready:
            del waiting[name]
    assert not waiting


def test_one_backbone_and_one_method_stand_apart_from_the_others():
    # nothing shared names a kind: else a new one would touch more than its own file
    for room in ("backbones", "methods"):
        kinds = {file.stem for file in (ROOT / room).glob("*.py")} - {"__init__", *SEAM}
        for file in [*(ROOT / room / f"{name}.py" for name in SEAM), *(ROOT / "diffusion").glob("*.py")]:
            if file.is_file():
                modules = {
                    node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
                }
                assert not modules & {f"feedface.{room}.{kind}" for kind in kinds}, file.name

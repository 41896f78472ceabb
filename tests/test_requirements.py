"""What is installed: one OpenCV, the one without windows, and all that insightface needs beside it."""

import tomllib
from importlib.metadata import requires
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def listed(name: str) -> dict[str, Requirement]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    return {requirement.name.lower(): requirement for requirement in found}


def test_one_opencv_and_every_need_of_insightface():
    ours = listed("requirements.txt")
    assert [name for name in ours if name.startswith("opencv")] == ["opencv-python-headless"]
    assert not {"insightface", *listed("requirements-insightface.txt")} & set(ours)
    needs = [Requirement(text) for text in requires("insightface")]
    needs = [need for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    for need in needs:
        if need.name != "opencv-python":
            pin = next(iter(ours[need.name.lower()].specifier)).version
            assert need.specifier.contains(pin), need


def test_everything_is_pinned_and_make_installs_it_all():
    make = (ROOT / "Makefile").read_text()
    for name in ("requirements.txt", "requirements-web.txt", "requirements-dev.txt", "requirements-insightface.txt"):
        assert name in make
        assert all(str(one.specifier).startswith("==") for one in listed(name).values())
    for text in (make, (ROOT / "README.md").read_text()):
        assert "--no-deps -r requirements-insightface.txt" in text


def test_a_wheel_asks_for_ranges_that_hold_what_is_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: list(map(Requirement, texts)) for name, texts in project["optional-dependencies"].items()}
    assert set(extras) == {"web", "heic", "eval", "gpu", "dev", "comfyui"}
    core, pinned = list(map(Requirement, project["dependencies"])), listed("requirements.txt")
    assert {need.name.lower() for need in core} == set(pinned)
    pinned |= listed("requirements-web.txt") | listed("requirements-dev.txt")
    for need in [*core, *chain.from_iterable(extras.values())]:
        assert any(part.operator == ">=" for part in need.specifier), need
        assert not any(part.operator in ("==", "===", "~=") for part in need.specifier), need
        if need.name.lower() in pinned:
            assert need.specifier.contains(next(iter(pinned[need.name.lower()].specifier)).version), need

"""What is installed: one OpenCV, the one without windows, and all that insightface needs beside it."""

from importlib.metadata import requires
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
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-insightface.txt"):
        assert name in make
        assert all(str(one.specifier).startswith("==") for one in listed(name).values())
    for text in (make, (ROOT / "README.md").read_text()):
        assert "--no-deps -r requirements-insightface.txt" in text

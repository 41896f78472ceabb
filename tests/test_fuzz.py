"""A few hundred inputs of `fuzz/run.py`, which runs thousands: none ends in a traceback, runs code or leaves files."""

import os
import pickle

import pytest
from tests.fuzz.areas import AREAS, make_areas
from tests.fuzz.mutations import Payload
from tests.fuzz.run import Fuzzer

COUNTS = {"records": 60, "tables": 60, "prepared": 12, "evaluations": 40, "pictures": 40, "jobs": 20, "flags": 100,
          "bundles": 25, "weights": 40, "checkpoints": 30}  # fmt: skip


@pytest.fixture
def fuzzer(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # the driver sets it
    return lambda areas: Fuzzer(tmp_path, 0, areas)


@pytest.mark.parametrize("area", AREAS)
def test_nothing_but_results_and_messages(area, fuzzer, tmp_path):
    runner = fuzzer(make_areas(tmp_path, [area]))
    for number in range(COUNTS[area]):
        runner.run(area, number)
    totals = runner.totals
    assert not totals.faults, totals.report()
    assert totals.taken.total() + totals.refused.total() == COUNTS[area]
    assert totals.taken[area] and totals.refused[area], "some inputs are sound, some are not"


def test_the_driver_sees_what_it_looks_for(fuzzer, tmp_path, monkeypatch):
    """Each kind of fault, made on purpose."""

    class Faulty:
        def case(self, rng, place):
            if place.name != "case":
                return 0
            kind = next(kinds)
            if kind == "traceback":
                return 1 / 0
            if kind == "exit code":
                return 3
            if kind == "hang":
                os.read(ends[0], 1)
            if kind == "code":
                pickle.loads(pickle.dumps(Payload(place.parent / "canary")))
            if kind == "left":
                (place / ".tmp-12345678-a").touch()
                (place.parent / "tmp" / "b").touch()
            return 0

    kinds, ends = iter(["traceback", "exit code", "hang", "code", "left", "nothing"]), os.pipe()
    monkeypatch.setattr("tests.fuzz.run.HANG_S", 0.2)
    runner = fuzzer({"faulty": Faulty()})
    for number in range(6):
        runner.run("faulty", number)
    totals = runner.totals
    assert [len(found) for found in (totals.tracebacks, totals.hangs, totals.ran, totals.left)] == [2, 1, 1, 2]
    assert "ZeroDivisionError" in totals.tracebacks[0] and totals.taken["faulty"] == 3
    assert not list((tmp_path / "canary").iterdir()) and not list((tmp_path / "tmp").iterdir())

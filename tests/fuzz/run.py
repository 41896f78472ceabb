"""Hand thousands of broken inputs to the functions that read them, in this process, and count what must not happen.

    python tests/fuzz/run.py --count 5000 --seed 0          all areas, about 20 minutes on one core
    python tests/fuzz/run.py --only weights --count 500     one area
    python tests/fuzz/run.py --case weights/37 --seed 0     one input again, with its traceback; its files are kept

Every input is a function of seed, area and number. Counted: tracebacks (anything but a result or a message in one line
with exit code 2), hangs over 60 s, code that ran out of an input, files left over in the working and temporary folders,
and the peak memory of the process. Exit code 1 if any of them is not what it should be.
"""

import argparse
import contextlib
import io
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "libs")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

HANG_S = 60
PEAK_GIB = 4
LONGEST_LINE = 1100
LEFTOVERS = (".tmp-", ".old-")  # as `files` names what is not done yet
# What would take more is a memory error here, not the end of the machine.
ADDRESS_SPACE = 24 << 30


class Hang(BaseException):
    """An input took longer than `HANG_S`."""


@dataclass
class Totals:
    """What became of the inputs; the faults are lines that name the input."""

    taken: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    ran: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    @property
    def faults(self) -> list[str]:
        return [*self.tracebacks, *self.hangs, *self.ran, *self.left]

    def report(self) -> str:
        names = sorted(self.taken.keys() | self.refused.keys())
        lines = [f"{name}: {self.taken[name]} taken, {self.refused[name]} refused" for name in names]
        count = self.taken.total() + self.refused.total() + len(self.tracebacks) + len(self.hangs)
        lines += self.faults
        lines.append(
            f"{count} inputs: {len(self.tracebacks)} tracebacks, {len(self.hangs)} hangs over {HANG_S} s, "
            f"{len(self.ran)} code executions, {len(self.left)} left-over files, peak {peak_gib():.2f} GiB; "
            f"the slowest took {self.slowest[0]:.1f} s ({self.slowest[1]})"
        )
        return "\n".join(lines)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Fuzzer:
    """Runs cases in a folder of its own; `areas` as `areas.make_areas` gives them."""

    def __init__(self, folder: Path, seed: int, areas: dict):
        self.folder, self.seed, self.areas = folder, seed, areas
        self.canary, self.temporary = folder / "canary", folder / "tmp"
        for made in (self.canary, self.temporary):
            made.mkdir(exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)  # torch makes it wherever temporary files go
        self.totals = Totals()

    def run(self, area: str, number: int, keep: bool = False) -> str:
        """One input; returns what was printed."""
        name = f"{area}/{number}"
        place = self.folder / "case"
        place.mkdir()
        rng = random.Random(f"{self.seed}/{name}")
        printed = io.StringIO()
        begun, here, tempdir = time.monotonic(), os.getcwd(), tempfile.tempdir
        os.chdir(place)
        tempfile.tempdir = str(self.temporary)
        before = signal.signal(signal.SIGALRM, _alarm)
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                code = _exit_code(lambda: self.areas[area].case(rng, place))
            message = printed.getvalue().strip().rpartition("\n")[2]
            if code not in (0, 2):
                self.totals.tracebacks.append(f"TRACEBACK {name}: exit code {code}")
            elif code and ("error: " not in printed.getvalue() or len(message) > LONGEST_LINE):
                self.totals.tracebacks.append(f"TRACEBACK {name}: no message in one line: {message[:200]}")
            else:
                (self.totals.refused if code else self.totals.taken)[area] += 1
        except Hang:
            self.totals.hangs.append(f"HANG {name}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            frame = traceback.extract_tb(error.__traceback__)[-1]
            own = [one for one in traceback.extract_tb(error.__traceback__) if "/feedface/" in one.filename][-1:]
            where = " in ".join(f"{Path(one.filename).name}:{one.lineno}" for one in (frame, *own))
            self.totals.tracebacks.append(f"TRACEBACK {name}: {type(error).__name__}: {str(error)[:150]} ({where})")
            printed.write(traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            os.chdir(here)
            tempfile.tempdir = tempdir
        self.totals.slowest = max(self.totals.slowest, (time.monotonic() - begun, name))
        self._look_round(place, name)
        if not keep:
            _remove(place)
        return printed.getvalue()

    def _look_round(self, place: Path, name: str) -> None:
        for found in self.canary.iterdir():
            self.totals.ran.append(f"RAN CODE {name}: {found.name}")
            _remove(found)
        left = [found for found in place.rglob("*") if found.name.startswith(LEFTOVERS)] + list(
            self.temporary.iterdir()
        )
        for found in left:
            self.totals.left.append(f"LEFT {name}: {found.name}")
            _remove(found)


def _exit_code(main) -> int:
    """As a script ends: see `errors.run_cli`."""
    from feedface.common.errors import run_cli

    try:
        run_cli(main)
    except SystemExit as stop:
        return stop.code
    raise AssertionError("run_cli came back")


def _alarm(*_) -> None:
    raise Hang


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def main() -> int:
    from tests.fuzz.areas import make_areas

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000, help="inputs in all (default: 5000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="AREA", help="inputs of one area alone")
    parser.add_argument("--case", metavar="AREA/NUMBER", help="one input again")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        begun = time.monotonic()
        wanted = args.case.partition("/")[0] if args.case else args.only
        fuzzer = Fuzzer(folder, args.seed, make_areas(folder, [wanted] if wanted else None, large=True))
        if args.case:
            print(fuzzer.run(wanted, int(args.case.partition("/")[2]), keep=True))
            print(f"its files: {folder / 'case'}")
        else:
            shares = {name: area.share for name, area in fuzzer.areas.items()}
            for name, share in shares.items():
                for number in range(-(-args.count * share // sum(shares.values()))):
                    fuzzer.run(name, number)
                print(f"{name} done, {time.monotonic() - begun:.0f} s, peak {peak_gib():.2f} GiB", flush=True)
        print(fuzzer.totals.report())
    finally:
        if not args.case:
            shutil.rmtree(folder)
    return 1 if fuzzer.totals.faults or peak_gib() > PEAK_GIB else 0


if __name__ == "__main__":
    sys.exit(main())

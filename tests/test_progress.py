"""Progress: a bar on a terminal only, else lines now and then; what is said never stands inside a bar."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from feedface.common import progress as module
from feedface.common.progress import progress, say

ROOT = Path(__file__).parents[1]


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only where a test says so."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_every_some_seconds(clock, capsys):
    with progress(total=40, desc="drawing") as bar:
        for _ in range(10):
            bar.update(4)
            clock[0] += 4
    captured = capsys.readouterr()
    assert captured.err.splitlines() == [
        "drawing: 16 of 40 steps, 00:12, 00:18 left",
        "drawing: 28 of 40 steps, 00:24, 00:10 left",
        "drawing: 40 of 40 steps, 00:36, 00:00 left",
    ]
    assert "\r" not in captured.err and not captured.out


def test_short_work_says_nothing(clock, capsys):
    assert list(progress(range(5), desc="short")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr() == ("", "")


def test_totals_that_grow_or_are_unknown_and_work_half_done(clock, capsys):
    with progress(unit="picture", every_s=1) as bar:
        clock[0] = 2
        bar.update()
    bar = progress(total=10, initial=6, unit="sample", every_s=1)
    bar.total = 20
    bar.set_postfix(loss="0.5")
    clock[0] = 4
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err.splitlines() == [
        "1 pictures, 00:02",
        "8 of 20 samples, 00:02, 00:12 left, loss=0.5",
    ]


def test_disabled(clock, capsys):
    with progress(total=10, disable=True) as bar:
        clock[0] = 100
        bar.update()
    assert capsys.readouterr() == ("", "")


TALKING = """
from feedface.common.progress import progress, say
with progress(total=2, desc="work") as bar:
    bar.update()
    say("half of it")
    bar.update()
say("done")
"""


def on_a_terminal(code):
    """What a program writes to a terminal that is its stdout and stderr."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "libs")}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=follower, stderr=follower, env=environment)
    os.close(follower)
    written = b""
    while True:
        try:
            chunk = os.read(leader, 4096)
        except OSError:  # its end
            break
        if not chunk:
            break
        written += chunk
    os.close(leader)
    assert process.wait() == 0
    return written.decode()


def test_a_bar_on_a_terminal_and_lines_outside_it():
    written = on_a_terminal(TALKING)
    assert "work: " in written and "2/2" in written
    for line in ("half of it", "done"):
        before = written[: written.index(line)]
        last = before.rpartition("\n")[2].rpartition("\r")[2]  # what stands in the line already
        assert not last.strip()


def test_nothing_but_lines_in_a_pipe():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "libs")}
    done = subprocess.run([sys.executable, "-c", TALKING], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("half of it\ndone\n", "")


def test_say_goes_out_at_once(capsys):
    say("one")
    print("two", file=sys.stderr)
    say("three", sys.stderr)
    assert capsys.readouterr() == ("one\n", "two\nthree\n")


def test_nobody_draws_a_bar_by_himself():
    users = [path for path in (ROOT / "libs").rglob("*.py") if "import tqdm" in path.read_text()]
    assert users == [ROOT / "libs" / "feedface" / "common" / "progress.py"]

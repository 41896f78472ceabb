"""make_data.py as a program: its options, exit codes and messages; several processes; kills at random moments."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from preparation_tools import nobody, save, tree, two_people, write_model, write_people

from feedface.commands import make_data
from feedface.common.errors import EXIT_USER_ERROR, run_cli
from feedface.data.records import read_records

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
SLOWEST_START_S = 120


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, and 19 pictures: 16 portraits, a pair, a wall, a broken one."""
    folder = tmp_path_factory.mktemp("world")
    write_model(folder / "model")
    write_people(folder / "photos", people=8)
    save(two_people(), folder / "photos" / "pair.png")
    save(nobody(), folder / "photos" / "wall.png")
    (folder / "photos" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


@pytest.fixture
def command(world, tmp_path):
    """Options of a sound command line."""
    return [
        *("--data_folder", world / "photos", "--out_folder", tmp_path / "out", "--model", world / "model"),
        *("--device", "cpu", "--identity", "folder", "--format", "feedface", "flashface", "adaface"),
    ]


def start(arguments, launcher=()):
    command = [str(part) for part in (sys.executable, *launcher, ROOT / "make_data.py", *arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=ENVIRONMENT, **pipes)


def finish(process):
    out = process.communicate(timeout=300)[0]
    return process.returncode, out


def refused(capsys, options):
    """Run as a script does; returns the one line on stderr."""
    with pytest.raises(SystemExit) as exited:
        run_cli(lambda: make_data.main([str(option) for option in options]))
    assert exited.value.code == EXIT_USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def changed(command, **options):
    """The command line with options changed; None leaves one out."""
    command = list(command)
    for name, value in options.items():
        flag = f"--{name}"
        if flag in command:
            place = command.index(flag)
            del command[place : place + 2]
        if value is not None:
            command += [flag, *(value if isinstance(value, list) else [value])]
    return command


def test_it_makes_records_that_check_out(command, tmp_path, capsys):
    assert make_data.main([str(option) for option in command]) == 0
    assert len(read_records(tmp_path / "out" / "records.jsonl")) == 16
    assert make_data.main(["--check", str(tmp_path / "out")]) == 0
    assert "16 record(s) checked, 0 problem(s)" in capsys.readouterr().out
    (tmp_path / "out/single/person_00/0.png.png").unlink()
    assert make_data.main(["--check", str(tmp_path / "out")]) == EXIT_USER_ERROR
    assert "records.jsonl:1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, message",
    [
        ({"data_folder": None}, "--data_folder is missing"),
        ({"out_folder": None}, "--out_folder is missing"),
        ({"data_folder": "nowhere"}, "nowhere: no such folder"),
        ({"data_folder": ROOT / "make_data.py"}, "make_data.py: not a folder"),
        ({"data_folder": ROOT / "configs"}, "holds no pictures"),
        ({"detector": "../x"}, "not the name of a detector"),
        ({"detector": "buffalo_none"}, "no face model pack 'buffalo_none'"),
        ({"parser": "other"}, "not the name of a face parser"),
        ({"device": "cuda:77"}, "--device cuda:77"),
        ({"device": "abacus"}, "not a device"),
        ({"det_threshold": 2}, "--det_threshold 2.0: must be between 0 and 1"),
        ({"duplicate_iou": "nan"}, "--duplicate_iou nan"),
        ({"workers": -1}, "--workers -1: must be between 0 and 256"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"batch_size": "x"}, "argument --batch_size: invalid int value"),
        ({"min_face_px": -3}, "--min_face_px -3"),
        ({"max_yaw": "inf"}, "--max_yaw inf"),
        ({"detector": "opencv", "max_yaw": 30}, "opencv"),
        ({"identity": "none"}, "--format adaface"),
        ({"format": "paper"}, "invalid choice"),
        ({"caption": "file"}, "--caption_file"),
        ({"caption_file": "nowhere.csv", "caption": "file"}, "nowhere.csv"),
        ({"caption_text": " "}, "--caption_text"),
        ({"identity": "list"}, "--identity_list"),
        ({"check": "nowhere"}, "--check nowhere: no such folder"),
        ({"check": ROOT / "configs"}, "records.jsonl: no such file"),
        ({"nonsense": 3}, "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_options_are_one_line(command, capsys, monkeypatch, tmp_path, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, changed(command, **options))
    assert not list(tmp_path.glob("out/*"))


def test_an_output_folder_among_the_photos_is_refused(world, command, capsys):
    before = tree(world / "photos")
    assert "lies inside --data_folder" in refused(capsys, changed(command, out_folder=world / "photos" / "out"))
    assert "lies inside --data_folder" in refused(capsys, changed(command, out_folder=world / "photos"))
    assert tree(world / "photos") == before


def test_an_output_folder_that_is_a_file_is_refused(command, capsys, tmp_path):
    (tmp_path / "out").touch()
    assert "a file, not a folder" in refused(capsys, command)


def test_as_a_program(tmp_path):
    """Help and wrong options need no torch; one line on stderr, no traceback."""
    code = (
        "import sys, runpy; sys.argv = ['make_data.py', '--data_folder', 'x']\n"
        f"try: runpy.run_path({str(ROOT / 'make_data.py')!r}, run_name='__main__')\n"
        "finally: assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: --out_folder is missing") and done.stderr.count("\n") == 1
    done = subprocess.run([sys.executable, str(ROOT / "make_data.py"), "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--square" in done.stdout


@pytest.mark.slow
def test_two_processes_write_what_one_writes(command, tmp_path):
    make_data.main([str(option) for option in command])
    code, out = finish(start(changed(command, out_folder=tmp_path / "two"), TWO))
    assert code == 0, out
    assert out.count("19 made now") == out.count("16 record(s) of 8 people") == 1
    assert tree(tmp_path / "two") == tree(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_say_an_error_once(command):
    code, out = finish(start(changed(command, detector="buffalo_none"), TWO))
    assert code != 0 and out.count("error: no face model pack") == 1


def wait_for(found, process):
    deadline = time.monotonic() + SLOWEST_START_S
    while not found() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_between_pictures(command, tmp_path, number):
    out = tmp_path / "out"
    slow = changed(command, workers=0, batch_size=1)
    process = start(slow)
    wait_for(lambda: any(out.glob("single/*/*.json")), process)
    process.send_signal(number)
    code, said = finish(process)
    assert code == 128 + number, said
    assert "the same command goes on" in said and "Traceback" not in said
    assert not list(out.rglob(".tmp-*")) and not (out / "records.jsonl").exists()
    make_data.main([str(option) for option in slow])
    make_data.main([str(option) for option in changed(command, out_folder=tmp_path / "once")])
    assert tree(out) == tree(tmp_path / "once")


def kill_all(process):
    """SIGKILL, also to those that a launcher has started: they have sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.kill()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_ten_times_at_random_moments(world, command, tmp_path, processes):
    photos = tmp_path / "photos"
    write_people(photos, people=120)
    for name in ("pair.png", "wall.png", "broken.png"):
        shutil.copy(world / "photos" / name, photos / name)
    out, rng = tmp_path / "out", random.Random(processes)
    command = changed(command, data_folder=photos, workers=1, batch_size=2)
    launcher = TWO if processes == 2 else []
    for kill in range(10):
        made = set(out.rglob("*.json"))
        process = start(command, launcher)
        if kill < 7:  # among the pictures
            wait_for(lambda: set(out.rglob("*.json")) - made, process)  # noqa: B023
        else:  # while faces are cut out and records and report are written
            wait_for(lambda: list(out.glob("crops/*/*")), process)
        time.sleep(rng.uniform(0, 0.3))
        running = process.poll() is None
        kill_all(process)
        said = process.communicate()[0]
        assert running or kill >= 7, said
    code, said = finish(start(command, launcher))
    assert code == 0, said
    assert finish(start(changed(command, out_folder=tmp_path / "once")))[0] == 0
    assert tree(out) == tree(tmp_path / "once")
    assert len(read_records(out / "records.jsonl")) > 90

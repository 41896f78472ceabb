"""Files that others made: what is no file is refused before it is opened, and what libraries raise becomes one line."""

import ast
import os
import socket
from pathlib import Path

import pytest

from feedface.common.errors import LONGEST, UserError, one_line
from feedface.common.reading import check_file, check_folder, foreign, read_text

ROOT = Path(__file__).parents[1]


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """name -> what a message about it says."""
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("socket")
    Path("zero").symlink_to("/dev/zero")
    Path("loop").symlink_to("loop")
    Path("nowhere").symlink_to("gone")
    Path("folder").mkdir()
    return {
        "pipe": "not a regular file",
        "socket": "not a regular file",
        "zero": "not a regular file",
        "loop": "cannot be read",
        "nowhere": "no such picture",
        "none": "no such picture",
        "folder": "a directory, not a picture",
        "a\0b": "cannot be read",
        "x" * 300: "cannot be read",
    }


def test_what_is_no_file_is_named(no_files):
    for name, words in no_files.items():
        with pytest.raises(UserError, match=words):
            check_file(name, "picture")
    Path("file").write_bytes(b"abc")
    Path("link").symlink_to("file")
    assert check_file("link").st_size == 3


@pytest.mark.parametrize("name", ["pipe", "socket", "zero", "loop", "nowhere"])
def test_a_folder_that_a_library_is_to_read_holds_files_alone(no_files, name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").touch()
    (folder / "below").mkdir()
    check_folder(folder)
    (tmp_path / name).rename(folder / name)
    with pytest.raises(UserError, match=name):
        check_folder(folder)
    with pytest.raises(UserError, match="no such folder"):
        check_folder(tmp_path / "none")


def test_text(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfzwei\r\nZeilen \xe2\x80\xa8")
    assert read_text(file) == "zwei\r\nZeilen \u2028"
    with pytest.raises(UserError, match="1 MiB are the limit"):
        os.truncate(file, 1 << 40)  # takes no room on the disk
        read_text(file, most_bytes=1 << 20)
    with pytest.raises(UserError, match="1024 MiB are the limit"):
        read_text(file)
    file.write_bytes(b"a\nb\xff")
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8"):
        read_text(file)


def test_whatever_a_library_raises():
    class Panic(BaseException):  # as those that are written in Rust
        pass

    for error, words in ((KeyError("a"), "x: 'a'"), (RecursionError(), "x: RecursionError"), (Panic("b"), "x: b")):
        with pytest.raises(UserError, match=words), foreign("x"):
            raise error
    for error in (KeyboardInterrupt, SystemExit):
        with pytest.raises(error), foreign("x"):
            raise error
    with pytest.raises(UserError, match=r"^mine$"), foreign("x"):
        raise UserError("mine")


def test_a_message_is_one_line_of_bounded_length():
    assert one_line("a\n  b\tc ") == "a b c"
    long = one_line("begin " + "9" * 10_000 + " end")
    assert len(long) <= LONGEST + 3 and long.startswith("begin 99") and long.endswith("9 end")


# --------------------------------------------------------------------------------------------------- pickles


def calls():
    """(file, call, its keywords) of all of the project's code."""
    files = [*(ROOT / "libs").rglob("*.py"), *(ROOT / "research").rglob("*.py"), *ROOT.glob("*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                keywords = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
                yield file.relative_to(ROOT), ast.unparse(node.func), keywords


def test_nothing_unpickles():
    """Tensors alone are taken out of PyTorch's files, arrays alone out of NumPy's, and nothing else holds pickles."""
    found = list(calls())
    loads = {(str(file), name) for file, name, words in found if name == "torch.load" and words.get("weights_only")}
    assert loads and all(words.get("weights_only") is True for _, name, words in found if name == "torch.load")
    assert not [file for file, name, words in found if name.endswith("np.load") and words.get("allow_pickle")]
    banned = ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "yaml.load", "dill.load", "dill.loads",
              "eval", "exec", "torch.jit.load", "torch.hub.load", "pd.read_pickle", "shelve.open")  # fmt: skip
    assert not [(file, name) for file, name, _ in found if name in banned]
    foreign_weights = [
        file for file, name, _ in found if name == "torch.load" and file.name not in ("fit.py", "recogniser.py")
    ]  # of runs of our own
    assert sorted(file.name for file in foreign_weights) == ["foreign.py", "state.py"], "one place each"

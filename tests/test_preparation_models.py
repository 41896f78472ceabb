"""Which detector and parser "auto" means, how their weights are told apart, where they run."""

import shutil
from pathlib import Path

import pytest
import torch
from preparation_tools import write_model

from feedface.common import device
from feedface.common.device import limit_threads, pick_devices
from feedface.common.errors import UserError
from feedface.faces import detect
from feedface.preparation import models
from feedface.preparation.models import Choice, check_models, choose, digests, load_models


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "mini")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty ~/.insightface, and no YuNet."""
    monkeypatch.setattr(detect, "find_weights", lambda weights: None)
    monkeypatch.setattr(detect, "INSIGHTFACE_ROOT", tmp_path / "home")
    return tmp_path / "home"


def names(*arguments):
    choice = choose(*arguments, 0.5)
    return choice.detector, choice.parser


def test_auto_takes_what_a_model_brings_else_what_photos_need(model, home, tmp_path):
    assert names("auto", "auto", model) == ("mini", "mini")
    assert names("auto", "auto", None) == ("opencv", "facer")
    shutil.copytree(model / "faces/models/mini", home / "models/buffalo_l")
    assert names("auto", "auto", None) == ("buffalo_l", "facer")
    assert names("auto", "auto", tmp_path) == ("buffalo_l", "facer")
    assert names("auto", "auto", model) == ("mini", "mini")
    assert names("opencv", "facer", model) == ("opencv", "facer")


def test_weights_have_digests(model, home, tmp_path):
    first = digests(choose("mini", "mini", model, 0.5))
    assert set(first) == {"detector", "parser"}
    other = write_model(tmp_path / "other", seed=1)
    second = digests(choose("mini", "mini", other, 0.5))
    assert first["detector"] == second["detector"] and first["parser"] != second["parser"]
    assert digests(choose("opencv", "facer", None, 0.5)).get("detector") is None


def test_what_is_not_there_is_said_before_loading(home, tmp_path, model):
    with pytest.raises(UserError, match="no such folder"):
        check_models(choose("mini", "mini", tmp_path / "none", 0.5), "cpu")
    with pytest.raises(UserError, match=r"no face model pack 'buffalo_l'.*buffalo_l\.zip"):
        check_models(choose("buffalo_l", "mini", model, 0.5), "cpu")
    with pytest.raises(UserError, match="not the name of a detector"):
        choose("a/b", "mini", model, 0.5)
    check_models(choose("opencv", "facer", None, 0.5), "cpu")


def test_loading(model, home):
    detector, parser = load_models(choose("mini", "mini", model, 0.5), "cpu", 0, 1)
    assert (detector.name, parser.name, detector.has_recogniser) == ("mini", "mini", True)
    sessions = [part.session for part in detector._analysis.models.values()]
    assert all(session.get_session_options().intra_op_num_threads == 1 for session in sessions)


class Gpus:
    """A machine with two GPUs, as far as choosing a device is concerned."""

    def __init__(self, patch, onnx):
        import onnxruntime

        providers = ["CUDAExecutionProvider"] * onnx + ["CPUExecutionProvider"]
        patch.setattr(onnxruntime, "get_available_providers", lambda: providers)
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.parametrize(
    "name, onnx, local, expected",
    [
        ("auto", True, 0, ("cuda:0", "cuda:0")),
        ("auto", True, 3, ("cuda:1", "cuda:1")),
        ("auto", False, 1, ("cpu", "cuda:1")),
        ("cuda", False, 1, ("cuda:1", "cuda:1")),  # asked for: an error when the detector is loaded
        ("cuda:1", True, 0, ("cuda:1", "cuda:1")),
        ("cpu", True, 1, ("cpu", "cpu")),
    ],
)
def test_processes_are_spread_over_gpus(monkeypatch, name, onnx, local, expected):
    Gpus(monkeypatch, onnx)
    assert pick_devices(name, local) == expected


def test_a_gpu_that_is_asked_for_and_not_used_is_an_error(monkeypatch, model, home):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a GPU")
    monkeypatch.setattr(models, "pick_devices", lambda *_: ("cuda:0", "cpu"))
    with pytest.raises(UserError, match="onnxruntime-gpu"):
        load_models(Choice("mini", "mini", model, 0.5), "cuda", 0, 1)


def test_auto_goes_back_to_the_cpu_with_a_note(monkeypatch, model, home, capsys):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has a GPU")
    monkeypatch.setattr(models, "pick_devices", lambda *_: ("cuda:0", "cpu"))
    detector, _ = load_models(Choice("mini", "mini", model, 0.5), "auto", 0, 1)
    assert detector.name == "mini" and "note: faces are detected on the CPU" in capsys.readouterr().err


def test_threads_are_shared(monkeypatch):
    before = torch.get_num_threads()
    try:
        monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        assert [limit_threads(count) for count in (1, 2, 3, 20)] == [8, 4, 2, 1]
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert limit_threads(2) == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_default_model_is_where_mini_comes_from():
    from feedface.common.places import default_model

    assert Path(default_model(), "model_index.json").is_file()

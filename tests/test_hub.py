"""Models of the hub, without one: its cache as a folder, an API that keeps what it is given."""

import json
import os
import shutil

import numpy as np
import pytest
from toy import make_toy_bundle

from feedface.checkpoints.hub import is_hub_name
from feedface.common.errors import UserError
from feedface.pipeline import FeedFacePipeline

SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; `cache(name, folder)` puts a model into it, as a download leaves it."""
    root = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(root))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def put(name, folder):
        place = root / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / SHA)
        (place / "refs").mkdir()
        (place / "refs/main").write_text(SHA)
        return place / "snapshots" / SHA

    root.mkdir()
    return put


def draw(pipe):
    pipe.set_faces([np.full((40, 40, 3), 90, np.uint8)])
    return np.asarray(pipe.generate("a man", seed=3, steps=2, progress=False)[0])


def test_what_is_saved_is_one_folder_and_the_same_model(toy, tmp_path, cache):
    pipe = FeedFacePipeline.from_pretrained(toy, device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved/README.md").read_text()
    assert "library_name: feedface" in card and "method: feedface" in card
    cache("anna/toy", tmp_path / "saved")
    again = FeedFacePipeline.from_pretrained("anna/toy", device="cpu")
    assert again.bundle.name == pipe.bundle.name and (draw(again) == draw(pipe)).all()


def test_parts_that_lie_elsewhere_are_brought_together(toy, tmp_path):
    from feedface.checkpoints.bundle import write_derived_index

    (tmp_path / "own").mkdir()
    shutil.copytree(next(toy.rglob("face_controlnet")), tmp_path / "own/feedface")
    write_derived_index(tmp_path / "own", toy, {"method": "feedface"}, "own")
    pipe = FeedFacePipeline.from_pretrained(tmp_path / "own", device="cpu")
    pipe.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved/model_index.json").read_text())
    assert ".." not in json.dumps(index)
    os.rename(tmp_path / "own", tmp_path / "gone")
    assert (draw(FeedFacePipeline.from_pretrained(tmp_path / "saved", device="cpu")) == draw(pipe)).all()


def test_a_model_that_points_outside_is_not_loaded(toy, tmp_path, cache):
    place = cache("eve/bad", toy)
    index = (place / "model_index.json").read_text()
    (place.parent / "secret").mkdir()
    shutil.copytree(next(toy.rglob("vae")), place.parent / "secret/vae")
    changed = index.replace('"vae"', '"../secret/vae"', 2).replace('"../secret/vae":', '"vae":')
    (place / "model_index.json").write_text(changed)
    with pytest.raises(UserError, match=r"eve/bad: model_index.json names a part outside the model \(vae\)"):
        FeedFacePipeline.from_pretrained("eve/bad", device="cpu")


def test_a_name_that_is_nowhere(cache):
    with pytest.raises(UserError, match="nobody/nothing: no such folder, and cannot be had from the hub"):
        FeedFacePipeline.from_pretrained("nobody/nothing")
    assert not is_hub_name("models") and not is_hub_name("a/b/c") and not is_hub_name("/models/mini")
    assert is_hub_name("user/name-1.5")


def test_pushing_uploads_the_folder(toy, monkeypatch):
    calls = []

    class Api:
        def create_repo(self, name, private, exist_ok):
            calls.append((name, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            calls.append(sorted(path.name for path in folder_path.iterdir()))
            return f"https://huggingface.co/{repo_id}/commit/1"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    pipe = FeedFacePipeline.from_pretrained(toy, device="cpu")
    assert pipe.push_to_hub("anna/toy").endswith("anna/toy/commit/1")
    assert calls[0] == ("anna/toy", True, True) and {"README.md", "model_index.json", "vae"} < set(calls[1])
    with pytest.raises(UserError, match="is called user/name"):
        pipe.push_to_hub("toy")

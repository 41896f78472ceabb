"""What `--dry_run` finds wrong, what it measures, and that it changes and writes nothing."""

import re
from dataclasses import replace

import pytest
import torch
from configs import mini_face
from PIL import Image
from tests.toy import make_toy_bundle
from tests.toy_records import make_records

from feedface.checkpoints.bundle import load_bundle
from feedface.common.errors import UserError
from feedface.data.cache import FeatureCache
from feedface.data.cache_shards import Items
from feedface.data.dataset import PictureStore
from feedface.data.records import RecordReference, read_records, write_records
from feedface.training import dry_run as module
from feedface.training import run_record
from feedface.training.data import build_store
from feedface.training.dry_run import cache_bytes, check_records, dry_run, duration, time_lines
from feedface.training.profile_step import PeakMemory, StepProfile, profile_step
from feedface.training.run_record import check_disk
from feedface.training.setup import build_models, make_accelerator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("bundle") / "toy")


@pytest.fixture
def records(tmp_path):
    return make_records(tmp_path / "records")


@pytest.fixture(autouse=True)
def fresh_accelerate():
    """accelerate keeps what it was made with for the whole process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def make_config(bundle, records, **changes):
    config = mini_face.get_config()
    config.model, config.face_encoder = str(bundle), ""
    config.data.records = (str(records),)
    config.cache.enabled = False
    config.train.batch_size, config.log.trackers = 4, ()
    config.update_from_flattened_dict(changes)
    return config.lock()


def test_nothing_is_written_and_no_weight_changes(bundle, records, tmp_path, capsys, monkeypatch):
    made = []
    original = module.build_models
    monkeypatch.setattr(module, "build_models", lambda *args: made.append(original(*args)) or made[-1])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    config = make_config(bundle, records, **{"cache.dir": str(tmp_path / "features")})
    assert dry_run(config, tmp_path / "run") == 0
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "run").exists() and not (tmp_path / "features").exists()
    model = load_bundle(bundle, components=["backbone", "method"])
    own = dict(model.method.trained_parameters(model.backbone))
    net = made[0].trained.method
    assert all(torch.equal(own[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    out = capsys.readouterr().out
    for words in (
        "records: 12, of which 12 list other pictures; broken files: 0",
        "memory: ", "weights", "gradients", "optimizer", "(measured)", "KiB for the feature cache in",
        "to encode 12 pictures once, on 1 process", "a step of 4 samples", "2700 steps on 1 process",
    ):  # fmt: skip
        assert words in out, out


def test_everything_broken_is_named(bundle, records, tmp_path, capsys):
    images, masks = records.parent / "images", records.parent / "masks"
    (images / "0_0.png").write_bytes((images / "0_0.png").read_bytes()[:200])
    Image.new("RGB", (32, 32)).save(images / "1_0.png")
    Image.new("L", (60, 64)).save(masks / "1_0.png")  # of the same record
    (masks / "2_0.png").unlink()
    rows = read_records(records)
    elsewhere = RecordReference(tmp_path / "gone.png", (0.0, 0.0, 9.0, 9.0))
    write_records(records, [replace(rows[0], ref=(elsewhere, *rows[0].ref)), *rows[1:]])

    broken = check_records(PictureStore(read_records(records), 64, 8, 32, in_memory=False))
    names = {path.removeprefix(str(tmp_path)) for path in broken}
    wanted = {"/records/images/0_0.png", "/records/images/1_0.png", "/records/masks/1_0.png", "/records/masks/2_0.png"}
    assert names == {*wanted, "/gone.png"}
    reasons = " ".join(broken.values())
    for words in ("truncated", "32 x 32 px, but its record says 64 x 64", "mask of 60 x 64 px", "no such"):
        assert words in reasons

    assert dry_run(make_config(bundle, records, **{"data.max_broken": 5}), tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert "broken files: 5" in out and all(path in out for path in broken)
    fewer = make_config(bundle, records, **{"data.max_broken": 2, "train.precision": "no"})
    with pytest.raises(UserError, match=r"5 files cannot be used, more than data\.max_broken=2"):
        dry_run(fewer, tmp_path / "run")


@pytest.mark.parametrize("part", ["vae", "text_encoder", "uvit", "face_controlnet"])
def test_every_weight_is_read(records, tmp_path, part):
    bundle = make_toy_bundle(tmp_path / "toy")
    (file,) = (path for path in (bundle / part).glob("*.safetensors") if "prefix" not in path.name)
    file.write_bytes(file.read_bytes()[:-8])
    with pytest.raises(UserError, match=part):
        dry_run(make_config(bundle, records), tmp_path / "run")


def test_a_full_disk_stops_it(bundle, records, tmp_path, monkeypatch):
    monkeypatch.setattr(run_record.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000}))
    with pytest.raises(UserError, match="what this run still writes"):
        dry_run(make_config(bundle, records), tmp_path / "run")
    check_disk(tmp_path, 9_000)
    with pytest.raises(UserError, match="one checkpoint"):
        check_disk(tmp_path / "not" / "there", 9_500)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_caches_size_is_its_size(bundle, records, tmp_path, mirrored):
    config = make_config(bundle, records)
    models = build_models(config, CPU, "no")
    store = build_store(config, models)
    accelerator = make_accelerator(config, tmp_path)
    profile = profile_step(config, models, store, accelerator, cached=True)
    assert min(profile.read_s, profile.encode_s, profile.step_s) > 0
    estimate = cache_bytes(Items(store.records), profile, mirrored)
    FeatureCache.open(tmp_path / "features", store, models.sources, mirrored, CPU)
    files = [path for path in (tmp_path / "features").glob("*.safetensors") if path.name != "fixed.safetensors"]
    overhead = 2000 * len(files)  # headers
    assert estimate < sum(path.stat().st_size for path in files) < estimate + overhead


def test_kept_predictions_take_their_place_on_the_disk(bundle, records, tmp_path, capsys):
    config = make_config(bundle, records, **{"cache.enabled": True, "cache.draws_per_picture": 1000})
    assert dry_run(config, tmp_path / "run") == 0
    # Of 12 pictures, 528 bytes each; the features themselves are some KiB.
    assert re.search(r"disk: 6\.\d MiB for the feature cache", capsys.readouterr().out)


def test_peak_memory_counts_what_is_freed_again():
    with PeakMemory(CPU) as idle:
        pass
    with PeakMemory(CPU) as busy:
        torch.ones(100 * 2**20, dtype=torch.uint8).sum().item()
    assert busy.peak > idle.peak + 80 * 2**20


def test_time(bundle, records):
    profile = StepProfile(read_s=4.0, encode_s=0.5, step_s=1.5, peak=0, item_bytes={})
    changes = {"train.steps": 1800, "train.batch_size": 10, "log.samples_every": 0, "data.workers": 4}

    def lines(processes=1, to_cache=0, **more):
        return time_lines(make_config(bundle, records, **{**changes, **more}), profile, processes, to_cache)

    assert lines() == [
        "time: a step of 10 samples: 0.5 s encoding (once for each picture with a cache) + 1.5 s, beside 1 s reading "
        "by 4 workers; 1800 steps on 1 process: 60 min"
    ]
    # Reading is what takes longest with one worker, and it is not hidden without any.
    assert lines(**{"data.workers": 1})[0].endswith("2 h")
    assert lines(**{"data.workers": 0})[0].endswith("3 h")
    assert lines(2, **{"train.accumulation": 3})[0].endswith("on 2 processes: 3 h")
    ahead, run = lines(2, to_cache=1440)
    assert ahead == "time: 72 s to encode 1440 pictures once, on 2 processes" and run.endswith("45 min")
    changes["log.samples_every"] = 6000
    assert lines(2)[-1] == "time: besides, 6 times a grid of 16 pictures, and the checkpoints"


def test_durations():
    assert [duration(s) for s in (0.0123, 89, 300, 7200, 26 * 3600, 5 * 86400)] == [
        "0.012 s", "89 s", "5 min", "2 h", "26 h", "5 days",
    ]  # fmt: skip

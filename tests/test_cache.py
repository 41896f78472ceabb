"""The feature cache: changes nothing, encodes nothing twice, goes on where it stopped, refuses what does not fit."""

import json
import os
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.toy import make_toy_bundle
from tests.toy_records import make_records

from feedface.common.errors import UserError
from feedface.data import cache_build
from feedface.data.cache import CachedDataset, FeatureCache
from feedface.data.dataset import PictureDataset, PictureStore
from feedface.data.draws import DrawSettings
from feedface.data.features import EncoderSources, FrozenEncoders
from feedface.data.records import read_records, write_records
from feedface.methods.base import ReferenceSpec
from feedface.training.setup import described_method

SHAPES = {"img": (4, 8, 8), "clip_img": (1, 16)}
SETTINGS = DrawSettings(seed=5, state_shapes=SHAPES)
CPU = torch.device("cpu")
ITEMS = [(sample, 2) for sample in range(30)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_toy_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def records_file(tmp_path):
    """12 pictures of 4 people, 3 captions."""
    return make_records(tmp_path / "records")


def make_sources(bundle, precision="fp32"):
    folder = bundle / "face_controlnet"
    return EncoderSources(bundle, described_method(folder), folder, precision, tuple(SHAPES))


def make_store(records_file, in_memory=False, **sizes):
    sizes = {"image_size": 64, "latent_size": 8, "reference": ReferenceSpec("crop", 32), **sizes}
    return PictureStore(read_records(records_file), in_memory=in_memory, **sizes)


def open_cache(folder, records_file, bundle, mirrored=True, shard_size=4, **options):
    store = make_store(records_file)
    return FeatureCache.open(folder, store, make_sources(bundle), mirrored, CPU, shard_size=shard_size, **options)


def refs(records_file):
    return [len(record.ref) for record in read_records(records_file)]


def features(cache, records_file, settings=SETTINGS):
    return CachedDataset(cache, refs(records_file), settings).__getitems__(ITEMS)


def assert_same(a, b, atol=0.0):
    parts = [{"mean": e.mean, "std": e.std, **e.others, "text": e.text, **e.features, "mask": e.mask} for e in (a, b)]
    assert list(parts[0]) == list(parts[1]) == ["mean", "std", "clip_img", "text", "faces", "mask"]
    for name, x in parts[0].items():
        y = parts[1][name]
        assert x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, rtol=0, atol=atol), name


def write_times(folder):
    return {file.name: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}


def rewritten(folder, before):
    return {name for name, when in write_times(folder).items() if before.get(name) != when}


@pytest.fixture
def encoded(monkeypatch):
    """Counts items that pass the encoders, but for the one blank of each kind that every build starts with."""
    counts = Counter()

    def count(kind):
        original = getattr(FrozenEncoders, kind)

        def counted(self, batch):
            blank = len(batch) == 1 and (batch[0] == "" if kind == "text" else not batch.any())
            if not blank:
                counts[kind] += len(batch)
            return original(self, batch)

        monkeypatch.setattr(FrozenEncoders, kind, counted)

    for kind in ("images", "references", "text"):
        count(kind)
    return counts


@pytest.fixture
def no_encoders(monkeypatch):
    def load(self, device):
        raise AssertionError("encoders were loaded")

    def forbid():
        monkeypatch.setattr(EncoderSources, "load", load)

    return forbid


# ---------------------------------------------------------------------------------------------------------- features


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("flip", "flip_reference", "shard_size"),
    [(0.0, 0.0, 5), (0.5, 0.5, 1), (0.5, 0.5, 5), (0.5, 0.5, 100), (0.0, 0.5, 5), (0.5, 0.0, 5)],
)
def test_same_features_as_without(tmp_path, records_file, bundle, flip, flip_reference, shard_size, in_memory):
    settings = replace(SETTINGS, flip=flip, flip_reference=flip_reference)
    mirrored = [kind for kind, chance in (("pictures", flip), ("faces", flip_reference)) if chance]
    store, sources = make_store(records_file, in_memory), make_sources(bundle)
    plain = PictureDataset(store, settings).__getitems__(ITEMS)
    expected = sources.load(CPU)(plain.content)
    for _ in range(2):  # written, and read again
        cache = FeatureCache.open(
            tmp_path / "cache", store, sources, mirrored, CPU, batch_size=3, shard_size=shard_size
        )
        cached = features(cache, records_file, settings)
        assert_same(cached.content, expected, atol=2e-5)
        assert all((getattr(cached.draws, n) == getattr(plain.draws, n)).all() for n in ("rows", "flip", "t"))
        assert all(torch.equal(cached.draws.noise[n], plain.draws.noise[n]) for n in SHAPES)
    assert plain.draws.flip.any() == (flip > 0)
    assert {kind: shards.tensors[0][name].shape[1] - 1 for kind, name, shards in (
        ("pictures", "mean", cache.pictures), ("faces", "faces", cache.faces)
    )} == {"pictures": flip > 0, "faces": flip_reference > 0}  # fmt: skip


def test_fixed_features(tmp_path, records_file, bundle):
    cache = open_cache(tmp_path / "cache", records_file, bundle)
    encoders = make_sources(bundle).load(CPU)
    assert torch.equal(cache.empty_text, encoders.text([""]))
    zeros = encoders.references(torch.zeros(1, 3, 32, 32))
    assert cache.zero_reference.keys() == zeros.keys() == {"faces"}
    assert torch.equal(cache.zero_reference["faces"], zeros["faces"][0])


def test_every_picture_crop_and_caption_once(tmp_path, records_file, bundle, encoded, no_encoders):
    records = read_records(records_file)
    write_records(records_file, [*records, *(replace(r, caption="the same picture again") for r in records[:2])])
    open_cache(tmp_path / "cache", records_file, bundle)
    captions = len({record.caption for record in records}) + 1
    assert encoded == {"images": 2 * 12, "references": 2 * 12, "text": captions}  # two views
    no_encoders()
    open_cache(tmp_path / "cache", records_file, bundle)


def test_features_in_half_precision_stay_so(tmp_path, records_file, bundle):
    sources = make_sources(bundle, "bf16")
    cache = FeatureCache.open(tmp_path / "cache", make_store(records_file), sources, True, CPU, shard_size=4)
    content = features(cache, records_file).content
    others = (content.text, content.features["faces"], content.others["clip_img"])
    assert {value.dtype for value in others} == {torch.bfloat16}
    assert content.mean.dtype == content.mask.dtype == torch.float32


def test_a_cache_of_before_there_were_several_methods_still_serves(tmp_path, records_file, bundle, no_encoders):
    """Its manifest names neither method nor reference, and the features of a face of zeros have another name."""
    folder, records = tmp_path / "cache", read_records(records_file)
    cache = open_cache(folder, records_file, bundle)
    expected, zeros = features(cache, records_file).content, cache.zero_reference["faces"].clone()
    manifest = json.loads((folder / "cache.json").read_text())
    earlier = {key: value for key, value in manifest.items() if key not in ("method", "reference")}
    assert len(earlier) == len(manifest) - 2
    (folder / "cache.json").write_text(json.dumps(earlier))
    for shard in cache_build.plan(folder, earlier, cache_build.Items(records), records):
        tensors = load_file(shard.path)
        if shard.kind == "fixed":
            tensors["zero_image_face"] = tensors.pop("faces")
        save_file(tensors, shard.path, {"digest": shard.digest, "broken": "{}"})
    no_encoders()
    again = open_cache(folder, records_file, bundle)
    assert_same(features(again, records_file).content, expected)
    assert torch.equal(again.zero_reference["faces"], zeros)
    assert json.loads((folder / "cache.json").read_text()) == earlier


def test_a_cache_in_use_outlives_its_files(tmp_path, records_file, bundle):
    folder = tmp_path / "cache"
    cache = open_cache(folder, records_file, bundle)
    before = features(cache, records_file).content
    for file in folder.iterdir():
        file.unlink()
    open_cache(folder, records_file, make_toy_bundle(tmp_path / "other", seed=1))
    assert_same(features(cache, records_file).content, before)


# ------------------------------------------------------------------------------------------------------- going on


@pytest.mark.parametrize("damage", ["deleted", "truncated", "empty", "of other items", "a pipe", "metadata"])
def test_a_damaged_shard_is_encoded_again_alone(tmp_path, records_file, bundle, encoded, damage):
    folder = tmp_path / "cache"
    expected = features(open_cache(folder, records_file, bundle), records_file).content
    before = write_times(folder)
    for name in ("pictures-00001.safetensors", "fixed.safetensors"):
        file = folder / name
        if damage == "deleted":
            file.unlink()
        elif damage == "a pipe":
            file.unlink()
            os.mkfifo(file)
        elif damage == "metadata":
            with safe_open(file, framework="pt") as opened:
                digest, tensors = opened.metadata()["digest"], {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            save_file(tensors, file, {"digest": digest, "broken": "[5]"})
        elif damage == "of other items":
            file.write_bytes((folder / "pictures-00000.safetensors").read_bytes())
        else:
            file.write_bytes(file.read_bytes()[: -10 if damage == "truncated" else 0])
    encoded.clear()
    cache = open_cache(folder, records_file, bundle)
    assert encoded["images"] == 2 * 4 and not encoded["references"] and not encoded["text"]
    assert rewritten(folder, before) == {"pictures-00001.safetensors", "fixed.safetensors"}
    assert_same(features(cache, records_file).content, expected)


def test_goes_on_after_an_error(tmp_path, records_file, bundle, encoded, monkeypatch):
    folder = tmp_path / "cache"
    counted = FrozenEncoders.images
    calls = []

    def breaks(self, pixels):
        calls.append(pixels)
        if len(calls) == 1 + 4 + 2:  # the blank, the first shard, half of the second
            raise RuntimeError("out of memory")
        return counted(self, pixels)

    monkeypatch.setattr(FrozenEncoders, "images", breaks)
    with pytest.raises(RuntimeError):
        open_cache(folder, records_file, bundle, mirrored=False, batch_size=1)
    done = write_times(folder)
    assert "pictures-00000.safetensors" in done and "pictures-00001.safetensors" not in done
    assert not list(folder.glob(".tmp-*"))
    monkeypatch.setattr(FrozenEncoders, "images", counted)
    encoded.clear()
    cache = open_cache(folder, records_file, bundle, mirrored=False)
    assert encoded == {"images": 2 * 4}
    assert not set(done) & rewritten(folder, done)
    whole = open_cache(tmp_path / "whole", records_file, bundle, mirrored=False)
    settings = replace(SETTINGS, flip=0.0)
    assert_same(features(cache, records_file, settings).content, features(whole, records_file, settings).content, 2e-5)


def test_leftovers_of_a_killed_process_go_but_not_those_of_a_live_one(tmp_path, records_file, bundle):
    folder = tmp_path / "cache"
    folder.mkdir()
    old, new = folder / ".tmp-0badcafe-pictures-00000.safetensors", folder / ".tmp-0badcaff-faces-00000.safetensors"
    for file in (old, new):
        file.write_bytes(b"part")
    os.utime(old, (time.time() - 2 * cache_build.LEFTOVER_S,) * 2)
    open_cache(folder, records_file, bundle)
    assert not old.exists() and new.exists()


def test_changed_picture(tmp_path, records_file, bundle):
    folder = tmp_path / "cache"
    first = features(open_cache(folder, records_file, bundle), records_file)
    before = write_times(folder)
    picture = records_file.parent / "images" / "1_2.png"  # record 5 of 12, also a reference of 3 and 4
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(picture)
    second = features(open_cache(folder, records_file, bundle), records_file)
    assert rewritten(folder, before) == {"pictures-00001.safetensors", "faces-00001.safetensors"}
    for row, a, b in zip(first.draws.rows, first.content.mean, second.content.mean, strict=True):
        assert torch.equal(a, b) == (row != 5)
    assert 5 in first.draws.rows


def test_appended_and_removed_records(tmp_path, records_file, bundle, encoded):
    folder = tmp_path / "cache"
    records = read_records(records_file)
    write_records(records_file, records[:10])
    open_cache(folder, records_file, bundle)  # the references of person 3 are of all its pictures
    before = write_times(folder)
    encoded.clear()
    write_records(records_file, records)
    cache = open_cache(folder, records_file, bundle)
    assert rewritten(folder, before) == {"pictures-00002.safetensors"}
    assert encoded["images"] == 2 * 4 and not encoded["references"]
    fresh = open_cache(tmp_path / "fresh", records_file, bundle)
    assert_same(features(cache, records_file).content, features(fresh, records_file).content, atol=2e-5)
    write_records(records_file, records[1:])
    shorter = open_cache(folder, records_file, bundle)
    fresh = open_cache(tmp_path / "fresh2", records_file, bundle)
    assert_same(features(shorter, records_file).content, features(fresh, records_file).content, atol=2e-5)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_the_work(tmp_path, records_file, bundle, encoded, count):
    folder = tmp_path / "cache"
    caches = {}

    def enter(rank):
        """Process `rank` waits until those after it, which run within its `wait`, have written their share too."""
        caches[rank] = open_cache(
            folder, records_file, bundle, process=(rank, count), wait=lambda: rank + 1 < count and enter(rank + 1)
        )

    enter(0)
    assert len(caches) == count
    assert encoded == {"images": 2 * 12, "references": 2 * 12, "text": 3}
    alone = features(open_cache(tmp_path / "alone", records_file, bundle), records_file).content
    for cache in caches.values():
        assert_same(features(cache, records_file).content, alone)


def test_a_process_that_failed_is_told_of(tmp_path, records_file, bundle):
    with pytest.raises(UserError, match=r"safetensors: is not complete; run again"):
        open_cache(tmp_path / "cache", records_file, bundle, process=(0, 2))


# ------------------------------------------------------------------------------------------------------- refusals


def retouch(file, name):
    """Change one tensor of a safetensors file."""
    tensors = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors[name] = tensors[name] + 1
    save_file(tensors, file, metadata)


def tensor_named(file, prefix):
    return next(name for name in sorted(load_file(file)) if name.startswith(prefix))


@pytest.mark.parametrize(
    ("part", "prefix", "word"),
    [
        ("vae", "encoder.", "vae"),
        ("image_encoder", "", "image_encoder"),
        ("text_encoder", "", "text_encoder"),
        ("face_controlnet", "face_encoder.", "face_encoder"),
        ("tokenizer", None, "tokenizer"),
    ],
)
def test_other_encoders_are_refused(tmp_path, records_file, part, prefix, word):
    bundle, folder = make_toy_bundle(tmp_path / "bundle"), tmp_path / "cache"
    open_cache(folder, records_file, bundle)
    if part == "tokenizer":
        path = bundle / part / "tokenizer.json"
        path.write_text(path.read_text() + "\n")
    else:
        file = next(file for file in (bundle / part).glob("*.safetensors") if tensor_named(file, prefix))
        retouch(file, tensor_named(file, prefix))
    before = write_times(folder)
    with pytest.raises(UserError, match=rf"cache: was made with another {word}; name another config\.cache\.dir"):
        open_cache(folder, records_file, bundle)
    assert write_times(folder) == before


def test_what_does_not_encode_may_change(tmp_path, records_file, no_encoders):
    bundle, folder = make_toy_bundle(tmp_path / "bundle"), tmp_path / "cache"
    open_cache(folder, records_file, bundle)
    for part, prefix in (("vae", "decoder."), ("face_controlnet", "projector.")):
        file = next((bundle / part).glob("*.safetensors"))
        retouch(file, tensor_named(file, prefix))
    no_encoders()
    open_cache(folder, records_file, bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "bf16"}, "with precision bf16, not fp32"),
        ({"image_size": 128}, "with image_size 128, not 64"),
        ({"face_size": 48}, "with face_size 48, not 32"),
        ({"mirrored": False}, r"without mirrored views, which config\.data\.flip needs"),
        ({"mirrored": ["faces"]}, r"without mirrored views, which config\.data\.flip needs"),
        ({"mirrored": ["pictures"]}, r"without mirrored faces, which config\.data\.flip_reference needs"),
        ({"mirrored": 7}, "by another version"),
        ({"mirrored": ["captions"]}, "by another version"),
        ({"shard_size": "many"}, "by another version"),
        ({"shard_size": 0}, "by another version"),
        ({"format": 1}, "by another version"),
        ({"more": 1}, "by another version"),
        ({"method": "other"}, "with another method"),
        ({"draft": True}, r"with config\.data\.draft"),
        ({"reference": ["aligned", [0.5] * 3, [0.5] * 3]}, r"with reference \['aligned', .*, not \['crop'"),
    ],
)
def test_other_settings_are_refused(tmp_path, records_file, bundle, change, message):
    folder = tmp_path / "cache"
    open_cache(folder, records_file, bundle)
    manifest = json.loads((folder / "cache.json").read_text())
    (folder / "cache.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=f"cache: was made {message}"):
        open_cache(folder, records_file, bundle)


def test_other_settings_that_the_cache_serves(tmp_path, records_file, bundle, no_encoders):
    folder, settings = tmp_path / "cache", replace(SETTINGS, flip=0.0)
    open_cache(folder, records_file, bundle, mirrored=True, shard_size=4)
    plain = PictureDataset(make_store(records_file), settings).__getitems__(ITEMS).content
    expected = make_sources(bundle).load(CPU)(plain)
    no_encoders()
    cache = open_cache(folder, records_file, bundle, mirrored=False, shard_size=7)
    assert_same(features(cache, records_file, settings).content, expected, atol=2e-5)


def test_shards_without_their_manifest_are_not_trusted(tmp_path, records_file, bundle):
    folder = tmp_path / "cache"
    open_cache(folder, records_file, bundle)
    before = write_times(folder)
    (folder / "cache.json").unlink()
    open_cache(folder, records_file, make_toy_bundle(tmp_path / "other", seed=1))
    assert rewritten(folder, before) == set(before)


def test_a_start_that_failed_binds_nothing(tmp_path, records_file, bundle, monkeypatch):
    folder = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr(cache_build.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
        with pytest.raises(UserError, match=r"cache: the features need 0\.0 GB more, but the disk has 0\.0 GB free"):
            open_cache(folder, records_file, bundle)
    assert not list(folder.glob("*.safetensors"))
    open_cache(folder, records_file, make_toy_bundle(tmp_path / "other", seed=1))


def test_a_file_is_no_folder(tmp_path, records_file, bundle):
    with pytest.raises(UserError, match=r"records\.jsonl: is a file"):
        open_cache(records_file, records_file, bundle)


# -------------------------------------------------------------------------------------------------------- broken files


def test_broken_files(tmp_path, records_file, bundle, no_encoders):
    data = records_file.parent
    (data / "images" / "0_0.png").write_bytes(b"not a picture")
    (data / "masks" / "1_1.png").unlink()
    Image.new("L", (32, 32)).save(data / "masks" / "2_2.png")
    dataset = PictureDataset(make_store(records_file), SETTINGS)
    plain = dataset.__getitems__([(sample, 2) for sample in range(60)])
    cache = open_cache(tmp_path / "cache", records_file, bundle)
    assert cache.broken == plain.broken and len(cache.broken) == 3
    assert np.flatnonzero(~cache.usable).tolist() == [0, 4, 8]
    cached = CachedDataset(cache, dataset.refs, SETTINGS).__getitems__([(sample, 2) for sample in range(60)])
    assert (cached.draws.rows == plain.draws.rows).all() and (cached.draws.t == plain.draws.t).all()
    assert_same(cached.content, make_sources(bundle).load(CPU)(plain.content), atol=2e-5)
    no_encoders()
    assert open_cache(tmp_path / "cache", records_file, bundle).broken == cache.broken


def test_repaired_files(tmp_path, records_file, bundle):
    data, folder = records_file.parent, tmp_path / "cache"
    whole = (data / "images" / "0_0.png").read_bytes(), (data / "masks" / "1_1.png").read_bytes()
    (data / "images" / "0_0.png").write_bytes(b"not a picture")
    (data / "masks" / "1_1.png").unlink()
    open_cache(folder, records_file, bundle)
    before = write_times(folder)
    (data / "images" / "0_0.png").write_bytes(whole[0])
    (data / "masks" / "1_1.png").write_bytes(whole[1])
    cache = open_cache(folder, records_file, bundle)
    assert not cache.broken and cache.usable.all() and (cache.crops >= 0).all()
    names = {"pictures-00000.safetensors", "pictures-00001.safetensors", "faces-00000.safetensors"}
    assert rewritten(folder, before) == names


def test_a_corrected_record_heals_its_crops(tmp_path, records_file, bundle):
    """A picture that is not as large as its record says gives no face either; both come back with the record."""
    folder, records = tmp_path / "cache", read_records(records_file)
    write_records(records_file, [replace(records[0], width=65), *records[1:]])
    cache = open_cache(folder, records_file, bundle)
    assert np.flatnonzero(~cache.usable).tolist() == [0] and (cache.crops < 0).sum() == 3
    write_records(records_file, records)
    cache = open_cache(folder, records_file, bundle)
    assert cache.usable.all() and (cache.crops >= 0).all() and not cache.broken


def test_nothing_usable(tmp_path, records_file, bundle):
    for file in (records_file.parent / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="none of the 12 pictures"):
        open_cache(tmp_path / "cache", records_file, bundle)


def test_a_cache_of_more_encoders_serves_a_backbone_that_needs_fewer(tmp_path, records_file, bundle):
    more, store = make_sources(bundle), make_store(records_file)
    fewer = EncoderSources(bundle, more.method, more.face_encoder, more.precision, ("img",))
    settings = replace(SETTINGS, state_shapes={"img": SHAPES["img"]})
    open_cache(tmp_path / "more", records_file, bundle)
    caches = [FeatureCache.open(tmp_path / name, store, fewer, True, CPU, shard_size=4) for name in ("more", "fewer")]
    refs = [len(record.ref) for record in store.records]
    one, other = (CachedDataset(cache, refs, settings).__getitems__(ITEMS).content for cache in caches)
    assert not one.others and torch.equal(one.mean, other.mean) and torch.equal(one.text, other.text)

    (tmp_path / "more" / "pictures-00001.safetensors").unlink()
    with pytest.raises(UserError, match="not complete, and is also for a backbone with an image_encoder"):
        FeatureCache.open(tmp_path / "more", store, fewer, True, CPU)
    open_cache(tmp_path / "more", records_file, bundle)  # is mended
    with pytest.raises(UserError, match="for another backbone"):
        open_cache(tmp_path / "fewer", records_file, bundle)

"""Training samples: what is drawn, in which order, and how pictures become tensors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.toy_records import make_records
from torch.utils.data import DataLoader

from feedface.common.errors import UserError
from feedface.common.images import read_reduced
from feedface.data.dataset import BrokenPicture, PictureDataset, PictureStore, SampleOrder, check_broken
from feedface.data.draws import DrawSettings, draw
from feedface.data.records import Record, read_records
from feedface.data.transforms import HAIR_VALUE, centre_crop, face_masks
from feedface.methods.base import ReferenceSpec

SETTINGS = DrawSettings(seed=5, state_shapes={"img": (4, 8, 8), "clip_img": (1, 16)})
REFERENCE = ReferenceSpec("crop", 32)


@pytest.fixture(scope="module")
def records_file(tmp_path_factory):
    return make_records(tmp_path_factory.mktemp("records"))


def make_store(records_file):
    return PictureStore(read_records(records_file), image_size=64, latent_size=8, reference=REFERENCE, in_memory=False)


# ---------------------------------------------------------------------------------------------------------- pictures


def test_centre_crop_takes_the_middle_and_keeps_the_aspect():
    image = np.zeros((40, 100, 3), np.uint8)
    image[:, 30:70] = 200
    middle = centre_crop(image, 20)
    assert middle.shape == (20, 20, 3) and (middle[:, 2:-2] == 200).all() and (middle > 150).all()
    square = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    assert (centre_crop(square, 20) == square).all()


def test_face_masks_are_area_shares_with_and_without_hair():
    mask = np.zeros((16, 32), np.uint8)  # the centre square is columns 8…23
    mask[0:4, 8:12] = HAIR_VALUE
    mask[4:8, 8:16] = 23
    mask[15, 23] = 231 - 23
    mask[:, :8] = 23  # outside the square
    without, with_hair = face_masks(mask, 4)
    expected = np.zeros((4, 4), np.float32)
    expected[1, 0:2] = 1
    expected[3, 3] = 1 / 16
    assert np.allclose(without, expected, atol=1e-6)
    expected[0, 0] = 1
    assert np.allclose(with_hair, expected, atol=1e-6)


@pytest.mark.parametrize(("suffix", "times"), [("jpg", 2), ("png", 1)])
def test_drafts_are_decoded_as_finely_as_needed(tmp_path, suffix, times):
    across, down = np.meshgrid(np.linspace(0, 255, 597), np.linspace(0, 255, 402))
    picture = Image.fromarray(np.stack([across, down, 255 - across], axis=-1).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    picture.save(tmp_path / f"a.{suffix}", quality=95, exif=exif)
    record = Record(
        path=tmp_path / f"a.{suffix}", caption="", width=402, height=597, bbox=(10, 10, 300, 300),
        square_bbox=(10, 10, 300, 300), mask_path=tmp_path / "a.png",
    )  # fmt: skip
    whole, draft = (PictureStore([record], 64, 8, REFERENCE, False, draft=draft) for draft in (False, True))
    assert read_reduced(record.path, 64 / 402)[1] == times and read_reduced(record.path, 1.0)[1] == 1
    for made, expected in (
        (draft.image(0), whole.image(0)),
        (draft.face(*draft.crop_of(0, 0)) * 127, whole.face(*whole.crop_of(0, 0)) * 127),
    ):
        difference = np.abs(np.asarray(made, float) - np.asarray(expected, float))
        assert difference.max() <= 2 if times > 1 else not difference.any()  # less than a pixel aside
    wrong = PictureStore([replace(record, width=400)], 64, 8, REFERENCE, False, draft=True)
    with pytest.raises(BrokenPicture):
        wrong.image(0)
    assert "px, but its record says 400 x 597" in wrong.broken[str(record.path)]


# ------------------------------------------------------------------------------------------------------------- draws


def noises(drawn):
    return [drawn.vae_noise, *drawn.noise.values()]


def test_draws_depend_on_seed_and_sample_alone():
    refs = [2] * 10
    first = [draw(SETTINGS, s, 1, refs) for s in (3, 4, 25)]
    again = [draw(SETTINGS, s, 1, refs) for s in (25, 4, 3)][::-1]
    for a, b in zip(first, again, strict=True):
        assert (a.row, a.flip, a.t, a.faces) == (b.row, b.flip, b.t, b.faces)
        assert all((x == y).all() for x, y in zip(noises(a), noises(b), strict=True))
    other = draw(replace(SETTINGS, seed=6), 3, 1, refs)
    pairs = zip(noises(other), noises(first[0]), strict=True)
    assert not any((x == y).all() for x, y in pairs) and not (first[0].noise["img"] == first[0].vae_noise).all()


def test_probabilities_and_timesteps():
    draws = [draw(replace(SETTINGS, text_dropout=0.2), s, 1, [3] * 50) for s in range(4000)]

    def share(name):
        return np.mean([getattr(d, name) for d in draws])

    for name, wanted in [("flip", 0.5), ("hair", 0.5), ("standard", 0.1), ("drop_face", 0.1), ("drop_text", 0.2)]:
        assert abs(share(name) - wanted) < 0.03, name
    both = np.mean([d.standard and d.drop_face for d in draws])
    assert abs(both - 0.01) < 0.006  # drawn apart from each other, per sample
    t = np.array([d.t for d in draws])
    assert t.min() >= 1 and t.max() <= 1000 and abs(t.mean() - 500.5) < 15 and t.min() < 10 and t.max() > 990
    assert abs(np.mean([d.faces == (0,) for d in draws]) - 0.5) < 0.03
    noise = np.concatenate([d.noise["img"].ravel() for d in draws[:200]])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_each_reference_has_a_flip_of_its_own():
    """Without one, all else is drawn as it was; with it, half of them are mirrored, whatever the target is."""
    before = [draw(SETTINGS, s, 3, [3] * 50) for s in range(1000)]
    draws = [draw(replace(SETTINGS, flip_reference=0.5), s, 3, [3] * 50) for s in range(1000)]
    assert not any(flip for d in before for flip in d.flips)
    for a, b in zip(before, draws, strict=True):
        assert (a.row, a.flip, a.hair, a.t, a.faces) == (b.row, b.flip, b.hair, b.t, b.faces)
        assert all((x == y).all() for x, y in zip(noises(a), noises(b), strict=True))
    flips = np.array([d.flips for d in draws])
    target = np.array([d.flip for d in draws])
    assert abs(flips.mean() - 0.5) < 0.03
    assert abs((flips == target[:, None]).mean() - 0.5) < 0.03 and abs((flips[:, 0] == flips[:, 1]).mean() - 0.5) < 0.05


def test_references():
    no_others = draw(SETTINGS, 0, 3, [0] * 5)
    assert no_others.faces == (0, 0, 0)
    for sample in range(50):
        faces = draw(SETTINGS, sample, 3, [3] * 5).faces
        assert len(set(faces)) == 3 and max(faces) <= 3  # three different pictures of the person
        assert 0 not in faces or faces[0] == 0
        alone = draw(replace(SETTINGS, other_picture=1.0), sample, 5, [2] * 5).faces
        assert 0 not in alone and len(alone) == 5


def test_every_epoch_sees_every_picture_once_in_another_order():
    epochs = [[draw(SETTINGS, s, 1, [0] * 17).row for s in range(17 * e, 17 * (e + 1))] for e in range(3)]
    assert all(sorted(epoch) == list(range(17)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(("processes", "accumulation", "batch"), [(1, 1, 8), (2, 1, 4), (2, 2, 2), (1, 4, 2)])
def test_processes_share_the_same_steps(processes, accumulation, batch):
    def samples(first, steps):
        orders = [
            list(SampleOrder(5, first, steps, batch, accumulation, processes, rank, max_faces=3))
            for rank in range(processes)
        ]
        by_step = [
            sorted(s for order in orders for micro in order[i * accumulation : (i + 1) * accumulation] for s in micro)
            for i in range(steps)
        ]
        assert all(len({faces for _, faces in step}) == 1 for step in by_step)
        return by_step

    whole = samples(0, 6)
    assert [[s for s, _ in step] for step in whole] == [list(range(8 * i, 8 * i + 8)) for i in range(6)]
    assert whole == list(SampleOrder(5, 0, 6, 8, max_faces=3))
    assert samples(16, 4) == whole[2:]
    assert {faces for step in whole for _, faces in step} > {1}


# ----------------------------------------------------------------------------------------------------------- datasets


def items(count, faces=2, start=0):
    return [(sample, faces) for sample in range(start, start + count)]


@pytest.mark.parametrize(("flip", "flip_reference"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_flips_mirror_picture_and_mask_or_the_references(records_file, flip, flip_reference):
    store, chances = make_store(records_file), {"flip": flip, "flip_reference": flip_reference}
    straight = PictureDataset(store, replace(SETTINGS, flip=0.0)).__getitems__(items(4)).content
    mirrored = PictureDataset(store, replace(SETTINGS, **chances)).__getitems__(items(4)).content
    for name, chance in (("image", flip), ("mask", flip), ("references", flip_reference)):
        one, other = getattr(straight, name), getattr(mirrored, name)
        assert torch.equal(other, one.flip(-1) if chance else one) and not torch.equal(one, one.flip(-1))
    assert (mirrored.mask == straight.mask).all() != bool(flip)
    assert straight.image.shape == (4, 3, 64, 64) and straight.references.shape == (4, 2, 3, 32, 32)
    assert straight.mask.shape == (4, 1, 8, 8)


def test_workers_give_the_same_batches(records_file):
    dataset = PictureDataset(make_store(records_file), SETTINGS)
    order = SampleOrder(SETTINGS.seed, 0, 3, 4)
    plain = [dataset.__getitems__(batch) for batch in order]
    worked = list(DataLoader(dataset, batch_sampler=order, num_workers=2, collate_fn=lambda batch: batch))
    for a, b in zip(plain, worked, strict=True):
        assert (a.content.image == b.content.image).all() and (a.draws.noise["img"] == b.draws.noise["img"]).all()


def test_in_memory_is_the_same_and_read_once_for_all_workers(tmp_path, monkeypatch):
    """Kept as training sees it, not as large as the file; what one worker read, the others and this process have."""
    records_file = make_records(tmp_path, size=200)
    settings = replace(SETTINGS, flip_reference=0.5)
    records = read_records(records_file)
    sizes = {"image_size": 64, "latent_size": 8, "reference": REFERENCE}
    order = SampleOrder(SETTINGS.seed, 0, 12, 4, max_faces=3)
    expected = [
        PictureDataset(PictureStore(records, **sizes, in_memory=False), settings).__getitems__(b) for b in order
    ]

    store = PictureStore(records, **sizes, in_memory=True)
    dataset = PictureDataset(store, settings)
    loader = DataLoader(
        dataset, batch_sampler=order, num_workers=2, collate_fn=lambda batch: batch, multiprocessing_context="fork"
    )
    worked = list(loader)
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    again = [dataset.__getitems__(batch) for batch in order]
    for batches in (worked, again):
        for a, b in zip(expected, batches, strict=True):
            for name in ("image", "references", "mask"):
                assert torch.equal(getattr(a.content, name), getattr(b.content, name)), name
            assert not b.broken
    kept = sum(part._values.nbytes for part in store._kept.values())
    assert kept == 12 * (64 * 64 * 3 + 2 * 8 * 8 * 4 + 3 * 32 * 32 * 4)


def test_more_pictures_than_memory_holds_are_refused(records_file):
    records = read_records(records_file)
    with pytest.raises(UserError, match=r"config\.data\.in_memory: the pictures take 39582\.4 GB, but the machine has"):
        PictureStore(records, image_size=2**20, latent_size=8, reference=REFERENCE, in_memory=True)


def test_broken_files_are_passed_over_counted_and_capped(tmp_path):
    records_file = make_records(tmp_path)
    (tmp_path / "images" / "0_0.png").write_bytes(b"not a picture")
    (tmp_path / "masks" / "1_1.png").unlink()
    Image.new("L", (32, 32)).save(tmp_path / "masks" / "2_2.png")
    store = make_store(records_file)
    dataset = PictureDataset(store, SETTINGS)
    batch = dataset.__getitems__(items(60))
    bad = {str(tmp_path / name) for name in ("images/0_0.png", "masks/1_1.png", "masks/2_2.png")}
    assert set(batch.broken) == bad
    assert "32 x 32" in batch.broken[str(tmp_path / "masks/2_2.png")]
    assert not {0, 4, 8} & set(batch.draws.rows.tolist())

    check_broken(batch.broken, most=3)
    with pytest.raises(UserError, match=r"3 files cannot be used.*max_broken=2.*0_0\.png"):
        check_broken(batch.broken, most=2)


def test_nothing_usable(tmp_path):
    records_file = make_records(tmp_path, people=1, per_person=2)
    for file in (tmp_path / "images").iterdir():
        file.write_bytes(b"")
    with pytest.raises(UserError, match="pictures in a row"):
        PictureDataset(make_store(records_file), SETTINGS).__getitems__(items(1))

"""Pictures of several aspect ratios: how they are dealt to steps and processes, and how they are cut."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.data.buckets import Buckets, bucket_of, bucket_sizes, covering, covering_box, covering_crop, offset_of
from feedface.data.dataset import PictureDataset, PictureStore, SampleOrder
from feedface.data.draws import DrawSettings
from feedface.data.records import read_records
from feedface.data.transforms import LAPA_VALUES, face_masks_in
from feedface.encoders import ReferenceSpec

WIDE, TALL, SQUARE = (96, 48), (48, 96), (64, 64)


def sizes(count: int = 230) -> list[tuple[int, int]]:
    """Of pictures, some of which are in no bucket."""
    rng = np.random.default_rng(0)
    return [(int(w), int(h)) for w, h in rng.integers(200, 1500, (count, 2))]


def test_every_picture_once_an_epoch_and_one_size_a_step():
    pictures, step = sizes(), 8
    buckets = Buckets(0, pictures, step)
    fit = {row for row, size in enumerate(pictures) if max(size) > 256 and bucket_of(size, bucket_sizes())}
    assert 0 < buckets.left_out == len(pictures) - len(fit)
    orders = []
    for epoch in range(2):
        dealt = [buckets[sample] for sample in range(epoch * len(buckets), (epoch + 1) * len(buckets))]
        rows = [row for row, _ in dealt]
        assert len(set(rows)) == len(rows) == len(fit) // step * step
        assert set(rows) <= fit
        for start in range(0, len(dealt), step):
            assert len({size for _, size in dealt[start : start + step]}) == 1
        for row, size in dealt:
            assert size in (bucket_of(pictures[row], buckets.sizes), (512, 512))
        orders.append(rows)
    assert orders[0] != orders[1]


def test_processes_take_as_many_batches_of_the_same_sizes():
    """As the authors deal them, one of two processes may run out before the other, which then waits for ever."""
    buckets = Buckets(0, sizes(), step=2 * 2 * 4)
    orders = [
        SampleOrder(0, 0, 2 * len(buckets) // 16, 4, accumulation=2, processes=2, rank=rank, max_faces=2)
        for rank in (0, 1)
    ]
    both = [[[buckets[sample] for sample, _ in batch] for batch in order] for order in orders]
    assert [len(one) for one in both] == [len(order) for order in orders]
    for first, second in zip(*both, strict=True):
        assert len(first) == len(second) == 4
        assert {size for _, size in first} == {size for _, size in second}
        assert not {row for row, _ in first} & {row for row, _ in second}


def test_fewer_pictures_than_a_step():
    with pytest.raises(UserError, match=r"config\.data\.buckets: 3 of 12 pictures .* fewer than the 8 of a step"):
        Buckets(0, [(512, 512)] * 3 + [(4000, 300)] * 9, 8)


def test_sizes_for_smaller_models_are_multiples_too():
    sizes = Buckets(0, [(64, 64)], 1, base=64, multiple=16).sizes
    assert {WIDE[::-1], WIDE, SQUARE} < set(sizes)
    assert all(side % 16 == 0 and 32 <= side <= 96 for size in sizes for side in size)
    assert max(width * height for width, height in sizes) <= 64 * 96


def test_every_offset_is_drawn():
    """The authors' last one never is."""
    whole, size = covering((64, 64), (67, 64)), (64, 64)
    found = {offset_of(whole, size, (share, 0.5)) for share in np.linspace(0, 0.999, 50)}
    assert found == {(x, 0) for x in range(4)}


def picture_rows(folder: Path) -> Path:
    """Eight pictures of each of three shapes, 4 px of a grid of their own colour; with masks of their left half."""
    rng = np.random.default_rng(0)
    rows = []
    for number, (width, height) in enumerate([(200, 100), (100, 200), (100, 100)] * 8):
        coarse = rng.integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST).save(folder / f"{number}.png")
        rows.append({"path": f"{number}.png", "size": [width, height], "caption": "x", "ref": [f"{number}.png"]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


def test_samples_of_a_step_have_their_buckets_size(tmp_path: Path):
    records = read_records(picture_rows(tmp_path), faceless=True)
    store = PictureStore(records, 64, 8, ReferenceSpec("latent", 32), in_memory=False)
    buckets = Buckets(0, [(r.width, r.height) for r in records], 4, base=64, multiple=8)
    settings = DrawSettings(0, {"img": (4, 8, 8)}, buckets=buckets, flip=0.0, faceless=[True] * 24)
    data, seen = PictureDataset(store, settings), set()
    for start in range(0, 24, 4):
        batch = data.__getitems__([(sample, 1) for sample in range(start, start + 4)])
        _, (width, height) = buckets[start]
        assert batch.content.image.shape == (4, 3, height, width)
        assert batch.draws.noise["img"].shape == batch.draws.vae_noise.shape == (4, 4, height // 8, width // 8)
        assert batch.content.mask.shape == (4, 1, height // 8, width // 8)
        seen.add((width, height))
    assert seen == {WIDE, TALL, SQUARE}
    # A broken picture is replaced by another at the step's size, so that the batch stays one.
    Path(tmp_path / f"{buckets[0][0]}.png").write_bytes(b"")
    batch = data.__getitems__([(sample, 1) for sample in range(4)])
    assert batch.content.image.shape[2:] == buckets[0][1][::-1]
    assert len(batch.broken) == 1


def test_a_mask_is_cut_as_its_picture():
    """What is face in the picture is face in the mask, wherever it is cut."""
    mask = np.zeros((100, 160), np.uint8)
    mask[30:60, 80:120] = LAPA_VALUES[1]
    picture = np.repeat((mask > 0).astype(np.uint8)[..., None] * 255, 3, axis=2)
    for size, place in ((SQUARE, (0.0, 0.0)), (SQUARE, (0.99, 0.5)), (TALL, (0.6, 0.0)), (WIDE, (0.0, 0.7))):
        offset = offset_of(covering(size, (160, 100)), size, place)
        cut = covering_crop(picture, size, offset)[..., 0] / 255
        shares = face_masks_in(mask, covering_box((160, 100), size, offset), (size[0] // 8, size[1] // 8))[1]
        cells = cut.reshape(size[1] // 8, 8, size[0] // 8, 8).mean((1, 3))
        assert np.abs(cells - shares).max() < 0.06


def test_settings_say_the_shapes():
    buckets = Buckets(0, [(512, 512)], 1)
    settings = DrawSettings(0, {"img": (4, 64, 64), "clip_img": (1, 16)}, buckets=buckets)
    assert settings.shapes((320, 768)) == {"img": (4, 96, 40), "clip_img": (1, 16)}
    assert settings.shapes(None) == settings.state_shapes
    assert settings.shapes((768, 320))["img"] == (4, 40, 96)

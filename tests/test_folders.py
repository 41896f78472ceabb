"""Records out of folders of pictures and masks."""

import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.data.dataset import PictureStore
from feedface.data.folders import MOST, folder_records
from feedface.encoders import ReferenceSpec


def write(folder, name, box=(10, 20, 30, 50), size=(48, 64)):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 100, 50)).save(folder / f"{name}.png")
    mask = Image.new("L", size)
    mask.paste(255, box)
    mask.save(folder / f"{name}_mask.png")


def test_a_folder_a_person_and_a_folder_of_strangers(tmp_path):
    for number in range(MOST + 3):
        write(tmp_path / "people/ann", f"{number:02d}")
    write(tmp_path / "people/bob", "only")
    for number in range(3):
        write(tmp_path / "strangers", str(number))
    people, strangers = (folder_records(tmp_path / name) for name in ("people", "strangers"))
    assert [record.identity for record in people] == ["ann"] * MOST + ["bob"]
    assert len(people[0].ref) == MOST - 1 and people[0].path not in {other.path for other in people[0].ref}
    assert people[-1].ref == () and all(record.ref == () for record in strangers)
    assert len({record.identity for record in strangers}) == 3
    record = people[0]
    assert (record.width, record.height, record.bbox) == (48, 64, (10, 20, 30, 50))
    assert record.square_bbox == pytest.approx((3.5, 18.5, 36.5, 51.5))
    store = PictureStore(people, image_size=48, latent_size=6, reference=ReferenceSpec("crop", 16), in_memory=False)
    bare, whole = store.masks(0)
    assert (bare == whole).all()
    assert whole.max() == 1 and whole.sum() == pytest.approx(20 * 30 / 64, rel=0.05)
    assert store.records[0].caption == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "a_mask.png").unlink(), r"a\.png: has no a_mask\.png beside it"),
        (lambda folder: Image.new("L", (48, 64)).save(folder / "a_mask.png"), r"a_mask\.png: shows nobody"),
        (
            lambda folder: Image.new("L", (18, 18), 255).save(folder / "a_mask.png"),
            "of 18 x 18 px for .* 48",
        ),
        (lambda folder: (folder / "a.png").write_bytes(b"x"), r"a\.png: cannot be read as a picture"),
        (lambda folder: [file.unlink() for file in folder.iterdir()], "has no NAME.png with a NAME_mask.png"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, change, message):
    write(tmp_path, "a")
    change(tmp_path)
    with pytest.raises(UserError, match=message):
        folder_records(tmp_path)

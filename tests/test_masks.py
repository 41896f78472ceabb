"""Masks are read as they are stored; what is none is refused with its file and value."""

import numpy as np
import pytest
from PIL import Image

from feedface.common.errors import UserError
from feedface.data.masks import read_mask
from feedface.data.transforms import LAPA_VALUES

CLASSES = np.random.default_rng(0).integers(0, 11, (40, 32)).astype(np.uint8)
WANTED = np.array(LAPA_VALUES, np.uint8)[CLASSES]
MANY = np.random.default_rng(1).integers(0, 256, (256, 3)).astype(np.uint8)
COLOURS = MANY[:11]


def palette_image(indices, colours):
    image = Image.fromarray(indices, "P")
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image


def shuffled():
    """As programs that save space write it: indices in any order, the palette says which grey they stand for."""
    order = np.random.default_rng(2).permutation(11)
    greys = np.repeat(np.array(LAPA_VALUES, np.uint8)[order][:, None], 3, axis=1)
    return palette_image(np.argsort(order)[CLASSES].astype(np.uint8), greys)


GOOD = {
    "grey": Image.fromarray(WANTED),
    "class numbers": Image.fromarray(CLASSES),
    "palette of classes": palette_image(CLASSES, COLOURS),
    "palette of values": palette_image(WANTED, MANY),
    "palette of greys": shuffled(),
    "16 bit": Image.fromarray(CLASSES.astype(np.uint16)),
    "16 bit values": Image.fromarray(WANTED.astype(np.uint16)),
    "equal channels": Image.fromarray(np.repeat(WANTED[..., None], 3, axis=2)),
    "with alpha": Image.merge("LA", [Image.fromarray(WANTED), Image.new("L", (32, 40), 9)]),
    "colours with alpha": Image.merge("RGBA", [*[Image.fromarray(WANTED)] * 3, Image.new("L", (32, 40), 0)]),
}


@pytest.mark.parametrize("name", GOOD)
def test_masks_of_every_kind(tmp_path, name):
    GOOD[name].save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png")
    assert mask.dtype == np.uint8 and (mask == WANTED).all()


def test_other_formats_without_loss(tmp_path):
    for kind in ("mask.tif", "mask.bmp"):
        Image.fromarray(WANTED).save(tmp_path / kind)
        assert (read_mask(tmp_path / kind) == WANTED).all()
    Image.fromarray(CLASSES > 0).save(tmp_path / "bits.png")
    assert (read_mask(tmp_path / "bits.png") == np.where(CLASSES > 0, LAPA_VALUES[1], 0)).all()
    Image.fromarray(CLASSES.astype(np.float32)).save(tmp_path / "float.tif")
    assert (read_mask(tmp_path / "float.tif") == WANTED).all()


def test_turned_as_its_picture_is(tmp_path):
    image = Image.fromarray(WANTED)
    exif = image.getexif()
    exif[0x0112] = 6  # shown a quarter turn to the right
    image.save(tmp_path / "mask.png", exif=exif)
    assert (read_mask(tmp_path / "mask.png") == np.rot90(WANTED, -1)).all()


def odd(value, mask=WANTED):
    mask = mask.copy()
    mask[7, 3] = value
    return mask


def not_a_number():
    mask = WANTED.astype(np.float32)
    mask[7, 3] = np.nan
    return mask


@pytest.mark.parametrize(
    ("name", "image", "words"),
    [
        (
            "mask.png",
            Image.fromarray(odd(255)),
            r"mask\.png: value 255 \(at x 3, y 7\) is none of a mask's, .* 231, or",
        ),
        ("mask.png", palette_image(odd(12, CLASSES), MANY), r"mask\.png: value 12 \(at x 3, y 7\)"),
        ("mask.png", Image.fromarray(np.where(CLASSES == 1, 11, CLASSES)), r"mask\.png: value"),
        ("mask.png", Image.fromarray(np.where(CLASSES == 1, 23, CLASSES)), r"mask\.png: value"),  # both kinds
        ("mask.jpg", Image.fromarray(WANTED), r"mask\.jpg: value \d+ .*JPEG"),
        ("mask.png", Image.fromarray(COLOURS[CLASSES]), r"mask\.png: a mask in colours"),
        ("mask.tif", Image.fromarray(not_a_number()), r"mask\.tif: value nan \(at x 3, y 7\)"),
        ("mask.png", Image.fromarray(WANTED.astype(np.uint16) * 257), r"mask\.png: value"),
    ],
)
def test_what_is_no_mask(tmp_path, name, image, words):
    image.save(tmp_path / name)
    with pytest.raises(UserError, match=words):
        read_mask(tmp_path / name)


def test_files_that_are_no_pictures(tmp_path):
    (tmp_path / "mask.png").write_bytes(b"not a picture")
    for name, words in (("mask.png", "not a picture"), ("gone.png", "no such"), (".", "a directory")):
        with pytest.raises(UserError, match=words):
            read_mask(tmp_path / name)

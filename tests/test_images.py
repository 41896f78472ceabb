"""Any readable picture becomes upright uint8 RGB; anything else is one clear line."""

import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from feedface.common import reading
from feedface.common.errors import UserError
from feedface.common.images import read_image

RED, BLUE, WHITE = (220, 30, 20), (20, 40, 210), (255, 255, 255)


def two_halves(width=40, height=24):
    """Left half red, right half blue."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2], pixels[:, width // 2 :] = RED, BLUE
    return Image.fromarray(pixels)


def assert_two_halves(pixels, tolerance=4):
    assert pixels.dtype == np.uint8 and pixels.shape == (24, 40, 3)
    np.testing.assert_allclose(pixels[12, 5].astype(int), RED, atol=tolerance)
    np.testing.assert_allclose(pixels[12, 35].astype(int), BLUE, atol=tolerance)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "ppm", "gif"])
def test_formats(tmp_path, suffix):
    two_halves().save(tmp_path / f"a.{suffix}")
    assert_two_halves(read_image(tmp_path / f"a.{suffix}"), tolerance=12)


def test_name_without_a_suffix(tmp_path):
    two_halves().save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "photo")
    assert_two_halves(read_image(tmp_path / "photo"))


def test_palette(tmp_path):
    two_halves().quantize(4).save(tmp_path / "a.png")
    assert_two_halves(read_image(tmp_path / "a.png"), tolerance=6)


def test_cmyk(tmp_path):
    two_halves().convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    assert_two_halves(read_image(tmp_path / "a.jpg"), tolerance=12)


def test_grey_and_one_bit(tmp_path):
    Image.new("L", (20, 20), 77).save(tmp_path / "grey.png")
    Image.new("1", (20, 20), 1).save(tmp_path / "bit.png")
    assert (read_image(tmp_path / "grey.png") == 77).all()
    assert (read_image(tmp_path / "bit.png") == 255).all()


def test_16_bit_grey_keeps_its_tones(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 256).astype(np.uint16), (20, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    np.testing.assert_allclose(pixels[10, :, 0].astype(int), np.arange(256), atol=1)


def test_16_bit_colour(tmp_path):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + np.repeat([RED, BLUE], 20, axis=0).astype(">u2").__mul__(257).astype(">u2").tobytes()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 24, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 24)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(data)
    assert_two_halves(read_image(tmp_path / "a.png"))


def test_float_tiff(tmp_path):
    Image.fromarray(np.full((20, 20), 0.5, np.float32)).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif").mean() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "palette"])
def test_transparency_lies_over_white(tmp_path, mode):
    if mode == "palette":
        image = Image.new("P", (20, 20), 0)
        image.putpalette([0, 0, 0, 10, 20, 30])
        image.save(tmp_path / "a.png", transparency=0)
    else:
        Image.new(mode, (20, 20), 0).save(tmp_path / "a.png")
    assert (read_image(tmp_path / "a.png") == 255).all()


def test_first_frame_of_an_animation(tmp_path):
    other = Image.new("RGB", (40, 24), WHITE)
    two_halves().save(tmp_path / "a.gif", save_all=True, append_images=[other, other])
    assert_two_halves(read_image(tmp_path / "a.gif"), tolerance=12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_undone(tmp_path, orientation):
    # How a camera held this way stores the scene: the inverse of what a viewer has to do.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose
    stored = two_halves()
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert_two_halves(read_image(tmp_path / "a.png"))


def test_damaged_exif_is_no_obstacle(tmp_path):
    two_halves().save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", quality=95)
    assert_two_halves(read_image(tmp_path / "a.jpg"), tolerance=12)


def refused(path, *words):
    with pytest.raises(UserError) as error:
        read_image(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message.strip()
    for word in words:
        assert word in message


def test_refused_files(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture\n" * 20)
    Image.new("RGB", (1, 1)).save(tmp_path / "one.png")
    refused(tmp_path / "none.png", "no such picture")
    refused(tmp_path, "directory")
    refused(tmp_path / "empty.png", "0 bytes")
    refused(tmp_path / "text.png", "not a picture")
    refused(tmp_path / "one.png", "1 x 1", "too small")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")


def test_unreadable(tmp_path, monkeypatch):
    two_halves().save(tmp_path / "a.png")

    def deny(*args, **kwargs):  # chmod would not stop root
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(reading, "open", deny, raising=False)
    refused(tmp_path / "a.png", "Permission denied")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "tif", "bmp"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated(tmp_path, suffix, kept):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.tmp", format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    data = (tmp_path / "whole.tmp").read_bytes()
    (tmp_path / f"a.{suffix}").write_bytes(data[: int(len(data) * kept)])
    refused(tmp_path / f"a.{suffix}")


@pytest.mark.parametrize("size", [(10_001, 10_000), (60_000, 60_000)])
def test_too_large_is_refused_before_decoding(tmp_path, size):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    # Only a header: decoding it would fail with another message.
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    refused(tmp_path / "a.png", "megapixels")


def test_eps_is_not_run(tmp_path):
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")
    refused(tmp_path / "a.eps", "not a picture")

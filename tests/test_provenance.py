"""Every picture says that a model made it, and how: in PNG, JPEG and WebP."""

from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from feedface.inference.outputs import PictureFolder, PictureInfo
from feedface.inference.provenance import SUFFIXES, read_fingerprint, xmp

INFO = PictureInfo("a <b> & \x00 'Zoë' 語", 3, "toy", "0f", {"steps": 2}, ("ab",))
IMAGE = Image.fromarray((np.indices((48, 64)).sum(0)[..., None] * (2, 1, 0)).astype(np.uint8))
NAMES = {"iptc": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/", "own": "urn:feedface"}


@pytest.mark.parametrize("format", SUFFIXES)
def test_a_picture_is_known_again_and_marked(tmp_path, format):
    path = PictureFolder(tmp_path, format).save(IMAGE, INFO)
    assert path.name == f"0000{SUFFIXES[format]}" and read_fingerprint(path) == INFO.fingerprint
    with Image.open(path) as image:
        packet = image.info["xmp"]
        assert image.size == IMAGE.size
        assert np.abs(np.asarray(image.convert("RGB"), int) - np.asarray(IMAGE)).mean() < (1 if format == "png" else 4)
    root = ElementTree.fromstring(packet.decode().partition("?>")[2].rpartition("<?")[0])
    [source] = root.iterfind(".//iptc:DigitalSourceType", NAMES)
    assert source.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
    assert root.find(".//own:prompt", NAMES).text == "a <b> & ? 'Zoë' 語"
    assert root.find(".//own:seed", NAMES).text == "3"
    assert PictureFolder(tmp_path, format).find(INFO) == path
    others = [other for other in SUFFIXES if other != format]
    for other in others:
        folder = PictureFolder(tmp_path, other)
        assert folder.find(INFO) is None  # another format is another file, under a number of its own
    assert folder.save(IMAGE, INFO).stem == "0001"


def test_pictures_of_others_have_no_fingerprint(tmp_path):
    IMAGE.save(tmp_path / "0000.jpg", xmp=b"<feedface:fingerprint>not one</feedface:fingerprint>")
    IMAGE.save(tmp_path / "0001.webp")
    (tmp_path / "0002.jpg").write_bytes(b"damaged")
    assert [read_fingerprint(path) for path in sorted(tmp_path.iterdir())] == [None] * 3
    assert PictureFolder(tmp_path, "jpeg").save(IMAGE, INFO).name == "0003.jpg"


def test_half_of_a_surrogate_pair_can_be_written():
    assert b"a ? b" in xmp({"prompt": "a \ud800 b"})

"""What a picture file says of where it comes from: that a model made it (IPTC), and how.

XMP, in PNG, JPEG and WebP alike: `Iptc4xmpExt:DigitalSourceType` = trainedAlgorithmicMedia, which picture agencies,
search engines and social networks read (https://cv.iptc.org/newscodes/digitalsourcetype/), and in a namespace of our
own prompt, seed, model, settings and fingerprint.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from feedface import __version__
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.images import open_image
from feedface.common.saving import naming

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
OPTIONS = {"jpeg": {"quality": 95, "subsampling": 0}, "webp": {"quality": 95, "method": 4}}
_FINGERPRINT = re.compile(rb"<feedface:fingerprint>([0-9a-f]{32})</")
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")  # in XML


def xmp(said: Mapping[str, str]) -> bytes:
    """An XMP packet with our own values by name."""
    own = "".join(
        f"<feedface:{key}>{escape(_UNWRITABLE.sub('?', value))}</feedface:{key}>" for key, value in said.items()
    )
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:feedface="urn:feedface">'
        f"<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>"
        f"<xmp:CreatorTool>FeedFace {__version__}</xmp:CreatorTool>{own}"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    ).encode()


def png_text(said: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    """The same for PNG: each value as a text of its own, as older pictures have them, and the XMP packet."""
    png = PngImagePlugin.PngInfo()
    for key, value in said.items():
        png.add_itxt(key, value)
    png.add_itxt("Software", f"FeedFace {__version__}")
    png.add_itxt("XML:com.adobe.xmp", xmp(said).decode())
    return png


def save_picture(image: Image.Image, path: Path, said: Mapping[str, str], format: str, new: bool = False) -> None:
    """Write a picture that says how it was made, whole or not at all; `OutputError` names the file.

    `format`: one of `SUFFIXES`; `new`: see `common.files.atomic_file`.
    """
    options = {"pnginfo": png_text(said)} if format == "png" else {"xmp": xmp(said), **OPTIONS[format]}
    with naming(path), atomic_file(path, new) as temporary:
        image.save(temporary, format=format.upper(), **options)


def read_fingerprint(path: Path) -> str | None:
    """The fingerprint of a whole picture of ours, else None."""
    try:
        with open_image(path, ("PNG", "JPEG", "WEBP")) as image:
            image.load()
            if image.format == "PNG":
                return image.text.get("fingerprint")
            found = _FINGERPRINT.search(image.info.get("xmp", b""))
            return found and found[1].decode()
    except UserError:  # Whatever is wrong with the file: it is not a finished picture.
        return None

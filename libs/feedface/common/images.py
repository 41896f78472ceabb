"""Reading any picture a user may hand over: to uint8 RGB [H, W, 3], or one `UserError` that says what is wrong."""

import ctypes
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from feedface.common.errors import UserError
from feedface.common.reading import check_file
from feedface.common.tar_files import read_member

MAX_PIXELS = 100_000_000
MIN_SIDE_PX = 16
STRIP_ROWS = 64
REDUCING_GAP = 2.0  # from which on Pillow calls what is resized in two steps close to fair resampling
# An allow-list: Pillow also knows formats that start other programs (EPS) or are no pictures (PDF, fonts).
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "ICO", "HEIF")
# Of files that are read here.
SUFFIXES = frozenset(
    (
        ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".ppm",
        ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".jpx", ".avif", ".avifs", ".ico",
        ".heic", ".heif", ".hif",
    )
)  # fmt: skip
KNOWN = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, JPEG 2000, AVIF or HEIC"


def read_image(path: str | os.PathLike, convert: Callable[[Image.Image], np.ndarray] | None = None) -> np.ndarray:
    """Read one picture file as uint8 RGB [H, W, 3], upright; or as what `convert` makes of the Pillow image.

    16-bit, CMYK, grey and palette pictures are converted, transparency is laid over white, the first frame of an
    animation is taken and the EXIF orientation applied. `UserError`: missing, a directory, not readable, empty, not a
    picture, damaged, a side below 16 px, or more than 100 megapixels (refused before decoding).
    """
    with open_image(path) as image:
        check_size(image.width, image.height, path)
        image.load()
        return (convert or to_rgb)(image)


def read_reduced(path: str | os.PathLike, factor: float) -> tuple[np.ndarray, int]:
    """(uint8 RGB [H/s, W/s, 3], s): as `read_image`, but a JPEG is only decoded as finely as needed.

    `s` is 1, 2, 4 or 8; sides are rounded up, and stay `REDUCING_GAP` times those of `factor` times the picture, or
    whole. Decoding so costs a part of the time.
    """
    factor *= REDUCING_GAP
    with open_image(path) as image:
        check_size(image.width, image.height, path)
        whole = image.width
        if factor < 1:
            image.draft(None, (math.ceil(image.width * factor), math.ceil(image.height * factor)))
        times = round(whole / image.width)
        image.load()
        return to_rgb(image), times


@contextmanager
def open_image(path: str | os.PathLike, formats: Sequence[str] = FORMATS) -> Iterator[Image.Image]:
    """Open a picture file, not decoded yet, for the `with` block; `UserError` as `read_image` for all that fails in it.

    The one place where pictures are opened that others may have put there.
    """
    inside = read_member(path, "picture")
    if (check_file(path, "picture").st_size if inside is None else len(inside)) == 0:
        raise UserError(f"{path}: an empty file (0 bytes), not a picture")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large sizes and odd metadata; the size is checked here.
        try:
            _silence_libtiff()
            _all_plugins()
            source = path if inside is None else BytesIO(inside)
            image = Image.open(source, formats=[name for name in formats if name in Image.OPEN])
        except Image.DecompressionBombError:
            raise UserError(f"{path}: more than {MAX_PIXELS // 10**6} megapixels; make the picture smaller") from None
        except Image.UnidentifiedImageError:
            if "HEIF" in formats and "HEIF" not in Image.OPEN and _is_heif(inside or path):
                raise UserError(f"{path}: a HEIC picture; to read it: pip install pillow-heif") from None
            known = KNOWN if formats is FORMATS else " or ".join(formats)
            raise UserError(f"{path}: not a picture that can be read here; use {known}") from None
        # Any exception: decoders report damage as OSError, ValueError, SyntaxError, struct.error, zlib.error, …
        except Exception as error:
            raise UserError(f"{path}: damaged picture ({error})") from None
        with image:
            try:
                yield image
            except UserError:
                raise
            except Exception as error:
                raise UserError(f"{path}: damaged or truncated picture ({error})") from None


@cache
def _all_plugins() -> None:
    """So that it is known which of the formats this Pillow was built with; HEIC where its package is there."""
    Image.init()
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return
    register_heif_opener()


def _is_heif(path: str | os.PathLike | bytes) -> bool:
    """Whether a file (or what is in it) that Pillow cannot read says that it is HEIC or HEIF."""
    with BytesIO(path) if isinstance(path, bytes) else open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1")


@cache
def _silence_libtiff() -> None:
    """libtiff writes what it finds wrong to stderr by itself; what matters of it Pillow raises."""
    with suppress(OSError, AttributeError):  # a Pillow that has it built in keeps its ways
        library = ctypes.CDLL(Image.core.__file__)  # names are looked up in what it was linked with, too
        for name in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
            setter = getattr(library, name)
            setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
            setter(None)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any Pillow image, 8-bit or deeper, to upright uint8 RGB [H, W, 3]; transparency over white."""
    image = upright(image)
    if image.mode.startswith(("I", "F")):  # 16-bit (I;16, I), 32-bit and float: Pillow's own conversion would clip.
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return np.array(image.convert("RGB"))


def check_size(width: int, height: int, name: str | os.PathLike) -> None:
    """`UserError` for a picture too small to hold a face, or too large to decode safely."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: {width} x {height} is more than {MAX_PIXELS // 10**6} megapixels; make the picture smaller"
        )
    if min(width, height) < MIN_SIDE_PX:
        raise UserError(f"{name}: {width} x {height} px is too small; each side needs at least {MIN_SIDE_PX} px")


def upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation wants it shown."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Damaged EXIF data says nothing about the pixels: the picture is taken as stored.
        return image


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Grey values of unknown depth [H, W] to uint8, by the smallest usual full scale that holds them."""
    full_scales = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (65535.0,)
    # In strips: as float64, all of it would take eight times its memory.
    strips = [slice(top, top + STRIP_ROWS) for top in range(0, len(values), STRIP_ROWS)]
    peak = max(np.nan_to_num(values[rows].astype(np.float64)).max() for rows in strips)
    full = next((scale for scale in full_scales if peak <= scale), peak)
    grey = np.empty(values.shape, np.uint8)
    for rows in strips:
        strip = np.nan_to_num(values[rows].astype(np.float64))
        grey[rows] = np.clip(strip * (255.0 / full) + 0.5, 0, 255).astype(np.uint8)
    return grey

"""Pages from jinja2 templates; HTML ones are complete in one file, with their images inside."""

import base64
import io
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup
from PIL import Image


def environment(folder: Path) -> Environment:
    """The templates of a folder. In HTML values are escaped; one that a template names and that is missing is an error.

    Filter `embed`: `data_uri`.
    """
    found = Environment(
        loader=FileSystemLoader(folder),
        autoescape=select_autoescape(["html", "html.jinja"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        finalize=_visible,
    )
    found.filters["embed"] = data_uri
    return found


def _visible(value: object) -> object:
    """Names may hold control characters and lone surrogates, which a page must not."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", value)


def data_uri(image: Image.Image, kind: str) -> str:
    """The image as an address that holds it; `kind`: "PNG" or "JPEG"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

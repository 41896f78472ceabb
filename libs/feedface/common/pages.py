"""HTML pages that are complete in one file: a jinja2 template, and images inside it."""

import base64
import io
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image


def render(template: Path, **values: object) -> str:
    """The page of a template file. Values are escaped; one that the template names and that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=_visible,
        keep_trailing_newline=True,
    )
    return environment.get_template(template.name).render(values)


def _visible(value: object) -> object:
    """Names of files may hold control characters, which a page must not."""
    return value if isinstance(value, Markup) else re.sub(r"[\x00-\x1f\x7f\x80-\x9f]", "\ufffd", str(value))


def data_uri(image: Image.Image, kind: str) -> str:
    """The image as an address that holds it; `kind`: "PNG" or "JPEG"."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"compress_level": 6}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

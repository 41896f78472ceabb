"""What others wrote, checked against a description of it (a pydantic type); what does not fit becomes one line.

Descriptions stand next to what they describe. They are strict: a number in quotes is no number, true is no 1.
"""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic_core import from_json

from feedface.common.errors import UserError
from feedface.common.json_files import MAX_BYTES, JsonFile, parse_json
from feedface.common.reading import read_text

T = TypeVar("T")
Location = tuple[str | int, ...]
IN_CODE = "an argument that no file gives"

STRICT = ConfigDict(strict=True, extra="ignore")
CLOSED = ConfigDict(strict=True, extra="forbid")
OPEN = ConfigDict(strict=True, extra="allow")  # what is not described comes along

Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]

# What pydantic's errors say of a value; others say it well enough themselves.
WORDS = {
    "missing": "missing",
    "string_type": "must be a string",
    "string_too_short": "must be a string with something in it",
    "string_pattern_mismatch": "must be a string with something in it",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "finite_number": "must be a number that is not too large",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
}


def read_json_as(
    path: str | os.PathLike, kind: TypeAdapter[T], known: Callable[[], list[str]] = list, what: str = ""
) -> T:
    """A JSON file as `kind` describes it. `UserError` with file, line and key for whatever does not fit.

    `known` lists the keys there are, for a message about one that is unknown; `what` stands in front of the message.
    """
    text = read_text(path, most_bytes=MAX_BYTES)
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        file = JsonFile(path)  # says in words where JSON is malformed
        location, problem = explain(error, file.data, known=known())
        line = file.line(*location)
        raise UserError(f"{Path(path)}:{line}: {what and f'{what}: '}{_joined(location, problem)}") from None


def parse_line_as(text: str | bytes, kind: TypeAdapter[T], origin: str, hints: Mapping[str, str] | None = None) -> T:
    """A line of JSON as `kind` describes it; `origin` ("file:line") begins the message. `hints`: see `explain`."""
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            _explain_json(text, origin)
            data = None
        else:
            data = from_json(text)
        raise UserError(f"{origin}: {_joined(*explain(error, data, hints))}") from None


def _explain_json(text: str | bytes, origin: str) -> None:
    """`UserError` in our words, where Python's own reader does not take the text either."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
    except UnicodeDecodeError:
        raise UserError(f"{origin}: not UTF-8 text; save it as UTF-8") from None
    file, _, line = origin.rpartition(":")
    parse_json(text, file, int(line))


def check_as(value: object, kind: TypeAdapter[T], name: object, known: Callable[[], list[str]] = list) -> T:
    """`value` as `kind` describes it; `UserError` that begins with `name` and names the key."""
    try:
        return kind.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{name}: {_joined(*explain(error, value, known=known()))}") from None


def explain(
    error: ValidationError, data: object, hints: Mapping[str, str] | None = None, known: Sequence[str] = ()
) -> tuple[Location, str]:
    """Where the first of the errors is in `data`, and what is wrong there.

    `hints`: key -> what to say of whatever is wrong below it.
    """
    first, *others = error.errors(include_url=False)
    location, key = _in_data(first["loc"], data), first["loc"][-1] if first["loc"] else None
    for depth, name in enumerate(location):
        if hints and name in hints:
            location = location[: depth + 1]
            return location, f"{hints[name]}, not {_at(location, data)!r:.60}"
    if first["type"] == "missing":
        return (*location, key), "missing"
    if first["type"] == "extra_forbidden" or key == "[key]":
        name = location[-1] if location else key
        known = ", ".join(known) if "expected" not in first.get("ctx", {}) else first["ctx"]["expected"]
        listed = f"; known are {known}" if known else ""
        return location[:-1], f"unknown key {name!r:.60}{listed}"
    if first["type"] == "json_invalid":  # such as half a surrogate pair, which Python's own reader takes
        return (), f"not valid JSON: {first['msg'].removeprefix('Invalid JSON: ')} (half of a surrogate pair?)"
    if any(_in_data(other["loc"], data) == location and other["type"] != first["type"] for other in others[:9]):
        return location, f"cannot be {first['input']!r:.60}"  # it might be of several types, and is of none
    if first["type"] in WORDS:
        words = WORDS[first["type"]].format(**first.get("ctx", {}))
    else:
        words = first["msg"].replace("Input should be", "must be")
    return location, f"{words}, not {first['input']!r:.60}"


@cache
def arguments_of(kind: type) -> TypeAdapter[BaseModel]:
    """A description of a class's arguments, out of its constructor's annotations; without those marked `IN_CODE`."""
    hints = get_type_hints(kind.__init__, include_extras=True)
    fields = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(kind).parameters.items()
        if IN_CODE not in getattr(hints[name], "__metadata__", ())
    }
    if isinstance(name := getattr(kind, "kind", None), str):  # a backbone or a method, whose files name it
        fields["kind"] = (Literal[name], name)
    return TypeAdapter(create_model(kind.__name__, __config__=CLOSED, **fields))


def _joined(location: Location, problem: str) -> str:
    path = ""
    for key in location:
        path += f"[{key}]" if isinstance(key, int) else f".{key}"
    return f"{path.removeprefix('.')[:200]}: {problem}" if path else problem


def _in_data(location: Location, data: object) -> Location:
    """pydantic's location without what is not in the data: names of alternatives, and what is missing."""
    found: list[str | int] = []
    for key in location:
        inside = isinstance(data, dict) and key in data
        inside = inside or (isinstance(data, list | tuple) and isinstance(key, int) and key < len(data))
        if inside:
            found.append(key)
            data = data[key]
    return tuple(found)


def _at(location: Location, data: object) -> object:
    for key in location:
        data = data[key]
    return data

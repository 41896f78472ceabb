"""Descriptions of what others write: strict, and what does not fit is one line with its file, line and key."""

from typing import Annotated, Literal

import pytest
from annotated_types import Len
from pydantic import BaseModel, Field, TypeAdapter

from feedface.common.errors import UserError
from feedface.common.validation import (
    CLOSED,
    IN_CODE,
    STRICT,
    Text,
    arguments_of,
    check_as,
    parse_line_as,
    read_json_as,
)


class Inner(BaseModel):
    model_config = CLOSED
    name: Text
    kind: Literal["a", "b"] = "a"


class Outer(BaseModel):
    model_config = STRICT
    count: Annotated[int, Field(ge=1, le=9)]
    share: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    inner: list[Inner] = []
    size: int | Annotated[list[int], Len(2, 2)] = 1


OUTER = TypeAdapter(Outer)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"count":\n 0}', ":2: count: must be at least 1, not 0"),
        ('{"count": "1"}', ":1: count: must be a whole number, not '1'"),
        ('{"count": true}', ":1: count: must be a whole number, not True"),
        ("{\n}", ":1: count: missing"),
        ('{"count": 1,\n"inner": [{"name": "x"},\n{"name": " "}]}', ":3: inner[1].name: must be a string with some"),
        ('{"count": 1, "inner":\n[{"name": "x", "nmae": 2}]}', ":2: inner[0]: unknown key 'nmae'; known are x, y"),
        ('{"count": 1, "inner": [{"name": "x", "kind": "c"}]}', "inner[0].kind: must be 'a' or 'b', not 'c'"),
        ('{"count": 1, "inner": {}}', "inner: must be a list, not {}"),
        ('{"count": 1, "size": "x"}', "size: cannot be 'x'"),
        ('{"count": 1, "size": [1, 2, 3]}', "size: cannot be [1, 2, 3]"),
        ('{"count": 1, "share": NaN}', "NaN: not valid JSON"),
        ('{"count": 1, "share": 1e400}', "1e400: larger than numbers can be"),
        ("[1]", ":1: must be an object, not [1]"),
        ('{"count": 1' + "0" * 5000 + "}", "a number of 5001 digits"),
        ("[" * 5000 + "]" * 5000, "nested too deeply"),
        ('{"count": 1,\n}', ":2: not valid JSON"),
        ('{"count": 1, "inner": [{"name": "\\ud800"}]}', "surrogate"),
    ],
)
def test_files(tmp_path, text, message):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        read_json_as(file, OUTER, known=lambda: ["x", "y"])
    said = str(caught.value)
    assert said.startswith(str(file)) and message in said and len(said) < len(str(file)) + 200


def test_what_fits(tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"count": 2, "share": 1, "size": [3, 4], "inner": [{"name": "x"}], "more": [[]]}')
    found = read_json_as(file, OUTER)
    assert (found.count, found.share, found.size, found.inner[0].kind) == (2, 1.0, [3, 4], "a")
    assert check_as({"count": 3}, OUTER, "x").count == 3
    with pytest.raises(UserError, match=r"^x: count: must be at most 9, not 10$"):
        check_as({"count": 10}, OUTER, "x")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"count": 10}', "f:7: count: many, not 10"),
        (b'{"count": }', "f:7: not valid JSON"),
        (b'{"count": "\xff"}', "f:7: not UTF-8"),
        ('{"count": "\\ud800"}', "f:7: not valid JSON: "),
        ('{"count": NaN}', "f:7: count: many, not nan"),
    ],
)
def test_lines(line, message):
    with pytest.raises(UserError) as caught:
        parse_line_as(line, OUTER, "f:7", {"count": "many"})
    assert str(caught.value).startswith(message)


def test_arguments_of_a_constructor():
    class Network:
        def __init__(
            self, width: Annotated[int, Field(le=9)], names: list[str] = (), own: Annotated[bool, IN_CODE] = True
        ):
            pass

    found = arguments_of(Network).validate_json('{"width": 3}')
    assert dict(found) == {"width": 3, "names": ()}
    for wrong in ('{"width": 10}', '{"width": 3.0}', "{}", '{"width": 3, "own": false}', '{"width": 3, "other": 1}'):
        with pytest.raises(ValueError):
            arguments_of(Network).validate_json(wrong)

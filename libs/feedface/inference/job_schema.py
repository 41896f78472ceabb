"""What a job of a JSON file may hold, and what is said of one that holds something else."""

import json
from dataclasses import fields
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from feedface.common.errors import UserError
from feedface.settings import MAX_SAMPLES, MAX_SEED, Settings, check_prompt, parse_size

EXAMPLE = '{"id": 1, "caption_list": ["a woman on a beach"], "source_group": [{"path": "face.png"}]}'


def _blank(text: str) -> str:
    if not text.strip():
        raise ValueError("empty text")
    return text


def _prompt(text: str) -> str:
    try:
        return check_prompt(text)
    except UserError as error:
        raise ValueError(_writable(str(error))) from None


def _writable(message: str) -> str:
    """Half a character (a lone surrogate), which pydantic cannot carry in a message, as its escape."""
    return message.encode("utf-8", "backslashreplace").decode()


def _setting(name: str) -> AfterValidator:
    """As the option of this name; size is 64, "64x96" or [64, 96]."""

    def check(value: Any) -> Any:
        if value is None:
            return None
        try:
            if name == "size":
                value = tuple(value) if isinstance(value, list) and len(value) == 2 else parse_size(str(value))
            checked = getattr(Settings(**{name: value}), name)
            # As the option: the same picture is known again.
            return float(checked) if name in ("guidance", "face_scale", "rescale", "pag_scale") else checked
        except UserError as error:
            raise ValueError(_writable(str(error).removeprefix(f"--{name}").lstrip(": "))) from None

    return AfterValidator(check)


class Schema(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class PictureSchema(Schema):
    path: Annotated[str, AfterValidator(_blank)]


class PersonSchema(Schema):
    source_group: list[PictureSchema] = Field(default_factory=list)
    person: Annotated[str, AfterValidator(_blank)] | None = None
    class_word: Annotated[str, AfterValidator(_blank)] = "person"
    region: list[float] | Annotated[str, AfterValidator(_blank)] | None = None


class JobSchema(Schema):
    id: Annotated[str, BeforeValidator(lambda id: str(id) if type(id) is int else id), AfterValidator(_blank)]
    caption_list: list[Annotated[str, AfterValidator(_prompt)]] = Field(min_length=1)
    source_group: list[PictureSchema] = Field(min_length=1)
    class_word: str | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    n_samples: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    detect: bool | None = None
    guidance: Annotated[Any, _setting("guidance")] = None
    face_scale: Annotated[Any, _setting("face_scale")] = None
    size: Annotated[Any, _setting("size")] = None
    negative_prompt: Annotated[Any, _setting("negative_prompt")] = None
    preset: Annotated[Any, _setting("preset")] = None
    steps: Annotated[Any, _setting("steps")] = None
    scheduler: Annotated[Any, _setting("scheduler")] = None
    uncond: Annotated[Any, _setting("uncond")] = None
    guidance_interval: Annotated[Any, _setting("guidance_interval")] = None
    face_interval: Annotated[Any, _setting("face_interval")] = None
    reuse: Annotated[Any, _setting("reuse")] = None
    few_step: Annotated[Any, _setting("few_step")] = None
    rescale: Annotated[Any, _setting("rescale")] = None
    pag_scale: Annotated[Any, _setting("pag_scale")] = None
    pag_interval: Annotated[Any, _setting("pag_interval")] = None
    face_box: Annotated[Any, _setting("face_box")] = None
    init: Annotated[str, AfterValidator(_blank)] | None = None
    base: Annotated[str, AfterValidator(_blank)] | None = None
    mask: Annotated[str, AfterValidator(_blank)] | None = None
    strength: float | None = Field(None, gt=0, le=1)


class JobOfPeopleSchema(JobSchema):
    source_group: list[PictureSchema] = Field(default_factory=list, max_length=0)
    people: Annotated[dict[str, PersonSchema], Field(min_length=1)]


OWN = tuple(setting.name for setting in fields(Settings) if setting.name in JobSchema.model_fields)
# What is set for a whole run only.
OPTIONS = ("n_iter",)
BOUNDS = {"greater_than_equal": "at least", "less_than_equal": "at most", "greater_than": "above"}
# What a message says that a value must be, by key, else by the kind of pydantic's error.
WANTED = {
    "id": "the job's name, text or a whole number",
    "caption_list": "a list of prompts, at least one",
    "source_group": 'a list of face pictures, each {"path": …}, at least one',
    "path": "the name of a face picture's file",
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": 'an object {"path": …}',
}


def explain(error: dict[str, Any]) -> str:
    """One of pydantic's errors in words."""
    kind, keys, value = error["type"], error["loc"], error["input"]
    wanted = WANTED.get(keys[-1] if keys else "", WANTED.get(kind))
    if not keys:
        return f"a job is an object such as {EXAMPLE}, not {_kind(value)}"
    if kind == "missing":
        near = get_close_matches(str(keys[-1]), value, 1, 0.8)
        return f"missing{f' (is {near[0]} meant to be it?)' if near else ''}; it holds {wanted}"
    if kind == "too_short":
        return f"empty; it holds {wanted}"
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind in BOUNDS:
        return f"{value}: must be {BOUNDS[kind]} {next(iter(error['ctx'].values()))}"
    return f"must be {wanted}, not {_kind(value)}"


def _kind(value: object) -> str:
    if isinstance(value, str) and not value.strip():
        return "empty text"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    name = next((name for kind, name in names.items() if isinstance(value, kind)), "null")
    return f"{name} ({json.dumps(value)})" if isinstance(value, int | float) else name


def why_not(key: str, schema: type[Schema]) -> str:
    known = list(schema.model_fields)
    if issubclass(schema, JobSchema) and key in OPTIONS:
        return f"--{key} of inference.py sets it for all jobs"
    near = get_close_matches(key.lower(), known, 1, 0.8)
    return f"is {near[0]} meant?" if near else f"known are {', '.join(known)}"

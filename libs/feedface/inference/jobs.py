"""Batch jobs in the FeedFace authors' JSON schema: one person, several pictures of them, several captions.

{"id": 1433, "class_word": "woman", "caption_list": ["a woman on a beach", …], "source_group": [{"path": "0.jpg"}, …]}

A file holds one job, or a list of them. Picture paths are relative to the file, else to the working directory. A job
may also say how it is drawn: seed, n_samples and `OWN` mean what inference.py's options of these names do, and come
before them; "detect": false says that its pictures are face crops. Other keys are not used, and are named.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from feedface.common.errors import UserError
from feedface.common.json_files import JsonFile
from feedface.inference.somebody import Somebody, check_box, somebody
from feedface.settings import MAX_SAMPLES, MAX_SEED, Settings, check_prompt, parse_size

EXAMPLE = '{"id": 1, "caption_list": ["a woman on a beach"], "source_group": [{"path": "face.png"}]}'


@dataclass(frozen=True)
class Job:
    """One person and what to draw.

    Attributes:
        id: name of the job, unique in a batch; None for pictures given on the command line.
        prompts: at least one.
        images: existing files; none for a model that shows nobody.
        class_word: the authors' word for the person ("man", "woman"); kept in the results, not used.
        seed, n_samples: of this job; None: the run's.
        people: with names, instead of `images`.
        detect: whether faces are looked for in this job's pictures; None: as the run says.
        settings: what this job sets of `Settings`.
        notices: one line for each key that is not used.
        source: where the job was written, for messages: "file:line", or "--image".
    """

    id: str | None
    prompts: tuple[str, ...]
    images: tuple[Path, ...]
    class_word: str | None = None
    seed: int | None = None
    n_samples: int | None = None
    people: tuple[Somebody, ...] = ()
    detect: bool | None = None
    settings: Settings = field(default_factory=Settings)
    notices: tuple[str, ...] = ()
    source: str = "--image"

    @property
    def own(self) -> dict[str, object]:
        """What the job says itself about how it is drawn, by key."""
        said = {"seed": self.seed, "n_samples": self.n_samples, "detect": self.detect, **self.settings.as_json()}
        return {key: value for key, value in said.items() if value is not None}


def find_job_files(paths: Sequence[str | Path]) -> list[Path]:
    """The job files among `paths`; a folder stands for the *.json in it, sorted by name. `UserError` if it has none."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found = sorted(path.glob("*.json"))
            if not found:
                raise UserError(f"{path}: no .json files in this folder")
            files.extend(found)
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def find_picture(name: str, folder: Path) -> Path | None:
    """The picture that a job file in `folder` names, beside it or in the working directory; None if there is none."""
    for path in (folder / name, Path(name)):
        try:
            if path.exists():
                return path
        except (OSError, ValueError):  # a name too long, or with a NUL character
            return None
    return None


def read_jobs(
    paths: Sequence[str | Path], find: Callable[[str, Path], Path | None] = find_picture
) -> tuple[list[Job], list[str]]:
    """Read and check job files or folders of them. `find` looks for pictures.

    Returns the sound jobs and, for the others, every problem: one line each, naming file, line and key.
    """
    jobs: list[Job] = []
    problems: list[str] = []
    used: dict[str, str] = {}  # id, as a case-insensitive file system sees it -> where it was used
    for path in find_job_files(paths):
        try:
            file = JsonFile(path)
        except UserError as error:
            problems.append(str(error))
            continue
        entries = file.data if isinstance(file.data, list) else [file.data]
        if not entries:
            problems.append(f"{path}:1: an empty list; a job looks like {EXAMPLE}")
        for index, entry in enumerate(entries):
            place = _Place(file, (index,) if isinstance(file.data, list) else ())
            job, wrong = _read_job(entry, place, find)
            if job is not None and job.id.casefold() in used:
                wrong = [place.say(("id",), f"{job.id!r} was already used at {used[job.id.casefold()]}")]
            problems.extend(wrong)
            if not wrong:
                used[job.id.casefold()] = job.source
                jobs.append(job)
    return jobs, problems


@dataclass(frozen=True)
class _Place:
    """Where a job stands: `keys` lead to it in its file."""

    file: JsonFile
    keys: tuple[int, ...]

    @property
    def line(self) -> str:
        return f"{self.file.path}:{self.file.line(*self.keys)}"

    def say(self, keys: tuple[str | int, ...], text: str) -> str:
        """The text with file, line and name of the value that `keys` lead to from the job."""
        keys = (*self.keys, *keys)
        name = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).lstrip(".")
        return f"{self.file.path}:{self.file.line(*keys)}: {f'{name}: ' if name else ''}{text}"


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
            return float(checked) if name in ("guidance", "face_scale", "rescale") else checked
        except UserError as error:
            raise ValueError(_writable(str(error).removeprefix(f"--{name}").lstrip(": "))) from None

    return AfterValidator(check)


class _Schema(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Picture(_Schema):
    path: Annotated[str, AfterValidator(_blank)]


class _Person(_Schema):
    source_group: list[_Picture] = Field(default_factory=list)
    person: Annotated[str, AfterValidator(_blank)] | None = None
    class_word: Annotated[str, AfterValidator(_blank)] = "person"
    region: list[float] | Annotated[str, AfterValidator(_blank)] | None = None


class _Job(_Schema):
    id: Annotated[str, BeforeValidator(lambda id: str(id) if type(id) is int else id), AfterValidator(_blank)]
    caption_list: list[Annotated[str, AfterValidator(_prompt)]] = Field(min_length=1)
    source_group: list[_Picture] = Field(min_length=1)
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
    face_box: Annotated[Any, _setting("face_box")] = None


class _JobOfPeople(_Job):
    source_group: list[_Picture] = Field(default_factory=list, max_length=0)
    people: Annotated[dict[str, _Person], Field(min_length=1)]


OWN = tuple(setting.name for setting in fields(Settings) if setting.name in _Job.model_fields)
# What is set for a whole run only.
OPTIONS = ("n_iter",)
# What a message says that a value must be, by key, else by the kind of pydantic's error.
WANTED = {
    "id": "the job's name, text or a whole number",
    "caption_list": "a list of prompts, at least one",
    "source_group": 'a list of face pictures, each {"path": …}, at least one',
    "path": "the name of a face picture's file",
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "model_type": 'an object {"path": …}',
}


def _read_job(entry: object, place: _Place, find: Callable[[str, Path], Path | None]) -> tuple[Job | None, list[str]]:
    """The job, or what is wrong with it: one line each."""
    try:
        kind = _JobOfPeople if isinstance(entry, dict) and "people" in entry else _Job
        read = kind.model_validate(entry)
    except ValidationError as errors:
        return None, [place.say(error["loc"], _explain(error)) for error in errors.errors(include_url=False)]
    images, wrong = [], []
    for index, picture in enumerate(read.source_group):
        path = find(picture.path, place.file.path.parent)
        if path is None:
            where = f"(relative to {place.file.path.parent.absolute()} or to {Path.cwd()})"
            wrong.append(place.say(("source_group", index, "path"), f"no such picture: {picture.path} {where}"))
        images.append(path)
    people = []
    for name, person in read.people.items() if isinstance(read, _JobOfPeople) else ():
        try:
            people.append(_somebody(name, person, place.file.path.parent, find))
        except UserError as error:
            wrong.append(place.say(("people", name), str(error)))
    if wrong:
        return None, wrong
    return Job(
        id=read.id,
        prompts=tuple(read.caption_list),
        images=tuple(images),
        class_word=read.class_word,
        seed=read.seed,
        n_samples=read.n_samples,
        people=tuple(people),
        detect=read.detect,
        settings=Settings(**{name: getattr(read, name) for name in OWN}),
        notices=tuple(_unused(read, place)),
        source=place.line,
    ), []


def _somebody(name: str, person: _Person, folder: Path, find: Callable[[str, Path], Path | None]) -> Somebody:
    """One of a job's people; `UserError` for a file or a region that is not to be had."""
    names = [picture.path for picture in person.source_group] + ([person.person] if person.person else [])
    if not names:
        raise UserError('give "source_group" or "person"')
    files = [find(each, folder) or folder / each for each in names]
    region = person.region
    if isinstance(region, str):
        region = find(region, folder) or folder / region
    elif region is not None:
        region = check_box(region, "region")
    return somebody(name, files, person.class_word, region, "people")


def _explain(error: dict[str, Any]) -> str:
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
    if kind in ("greater_than_equal", "less_than_equal"):
        bound, limit = next(iter(error["ctx"].items()))
        return f"{value}: must be at {'least' if bound == 'ge' else 'most'} {limit}"
    return f"must be {wanted}, not {_kind(value)}"


def _kind(value: object) -> str:
    if isinstance(value, str) and not value.strip():
        return "empty text"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    name = next((name for kind, name in names.items() if isinstance(value, kind)), "null")
    return f"{name} ({json.dumps(value)})" if isinstance(value, int | float) else name


def _unused(read: _Job, place: _Place) -> list[str]:
    """A line for each key that nothing is done with."""
    owners: list[tuple[tuple, _Schema]] = [((), read)]
    owners += [(("source_group", index), picture) for index, picture in enumerate(read.source_group)]
    return [
        place.say((*keys, key), f"not used; {_why_not(key, type(owner))}")
        for keys, owner in owners
        for key in owner.model_extra
    ]


def _why_not(key: str, schema: type[_Schema]) -> str:
    known = list(schema.model_fields)
    if schema is _Job and key in OPTIONS:
        return f"--{key} of inference.py sets it for all jobs"
    near = get_close_matches(key.lower(), known, 1, 0.8)
    return f"is {near[0]} meant?" if near else f"known are {', '.join(known)}"

"""Batch jobs in the FeedFace authors' JSON schema: one person, several pictures of them, several captions.

{"id": 1433, "class_word": "woman", "caption_list": ["a woman on a beach", …], "source_group": [{"path": "0.jpg"}, …]}

A file holds one job, or a list of them. Picture paths are relative to the file, else to the working directory. A job
may also say how it is drawn: seed, n_samples and `OWN` mean what inference.py's options of these names do, and come
before them; "detect": false says that its pictures are face crops; init or base, mask and strength name a picture to
begin with. Other keys are not used, and are named.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from feedface.common.errors import UserError
from feedface.common.json_files import JsonFile
from feedface.inference.job_schema import (
    EXAMPLE,
    OWN,
    JobOfPeopleSchema,
    JobSchema,
    PersonSchema,
    Schema,
    explain,
    why_not,
)
from feedface.inference.somebody import Somebody, check_box, somebody
from feedface.settings import Settings

BEGINNINGS = ("init", "base", "mask")  # pictures that a job may begin with


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
        init, base, mask, strength: a picture to begin with, as `beginnings.Beginnings` takes it.
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
    init: Path | None = None
    base: Path | None = None
    mask: Path | None = None
    strength: float | None = None
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


def _read_job(entry: object, place: _Place, find: Callable[[str, Path], Path | None]) -> tuple[Job | None, list[str]]:
    """The job, or what is wrong with it: one line each."""
    try:
        kind = JobOfPeopleSchema if isinstance(entry, dict) and "people" in entry else JobSchema
        read = kind.model_validate(entry)
    except ValidationError as errors:
        return None, [place.say(error["loc"], explain(error)) for error in errors.errors(include_url=False)]
    wrong = []

    def found(name: str, *keys: str | int) -> Path | None:
        path = find(name, place.file.path.parent)
        if path is None:
            where = f"(relative to {place.file.path.parent.absolute()} or to {Path.cwd()})"
            wrong.append(place.say(keys, f"no such picture: {name} {where}"))
        return path

    images = [found(picture.path, "source_group", index, "path") for index, picture in enumerate(read.source_group)]
    begin = {key: found(getattr(read, key), key) for key in BEGINNINGS if getattr(read, key)}
    if "init" in begin and "base" in begin:
        wrong.append(place.say(("base",), "init is a picture to begin with, too; give one of them"))
    for key in ("mask", "strength"):
        if getattr(read, key) is not None and not begin.keys() & {"init", "base"}:
            wrong.append(place.say((key,), "of init or base; give one of them"))
    if "base" in begin and isinstance(read, JobOfPeopleSchema) and len(read.people) > 1:
        wrong.append(place.say(("base",), "its one face is drawn anew; name one person"))
    people = []
    for name, person in read.people.items() if isinstance(read, JobOfPeopleSchema) else ():
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
        **begin,
        strength=read.strength,
        notices=tuple(_unused(read, place)),
        source=place.line,
    ), []


def _somebody(name: str, person: PersonSchema, folder: Path, find: Callable[[str, Path], Path | None]) -> Somebody:
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


def _unused(read: JobSchema, place: _Place) -> list[str]:
    """A line for each key that nothing is done with."""
    owners: list[tuple[tuple, Schema]] = [((), read)]
    owners += [(("source_group", index), picture) for index, picture in enumerate(read.source_group)]
    return [
        place.say((*keys, key), f"not used; {why_not(key, type(owner))}")
        for keys, owner in owners
        for key in owner.model_extra
    ]

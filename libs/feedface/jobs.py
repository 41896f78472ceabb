"""Batch jobs in the FeedFace authors' JSON schema: one person, several pictures of them, several captions.

{"id": 1433, "class_word": "woman", "caption_list": ["a woman on a beach", …], "source_group": [{"path": "0.jpg"}, …]}

A file holds one job, or a list of them. Picture paths are relative to the file, else to the working directory.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from feedface.errors import UserError
from feedface.json_lines import LocatedDict, LocatedList, load_json
from feedface.prompts import check_prompt

EXAMPLE = '{"id": 1, "caption_list": ["a woman on a beach"], "source_group": [{"path": "face.png"}]}'


@dataclass(frozen=True)
class Job:
    """One person and what to draw.

    Attributes:
        id: name of the job, unique in a batch; None for pictures given on the command line.
        prompts: at least one.
        images: existing files, at least one.
        class_word: the authors' word for the person ("man", "woman"); kept in the results, not used.
        source: where the job was written, for messages: "file:line", or "--image".
    """

    id: str | None
    prompts: tuple[str, ...]
    images: tuple[Path, ...]
    class_word: str | None = None
    source: str = "--image"


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


def read_jobs(paths: Sequence[str | Path]) -> tuple[list[Job], list[str]]:
    """Read and check job files or folders of them.

    Returns the sound jobs and, for the others, every problem: one line each, naming file, line and key.
    """
    jobs: list[Job] = []
    problems: list[str] = []
    used: dict[str, str] = {}  # id, as a case-insensitive file system sees it -> where it was used
    for file in find_job_files(paths):
        try:
            data = load_json(file)
        except UserError as error:
            problems.append(str(error))
            continue
        entries = data if isinstance(data, LocatedList) else [data]
        if not entries:
            problems.append(f"{file}:1: an empty list; a job looks like {EXAMPLE}")
        for index, entry in enumerate(entries):
            prefix = f"[{index}]" if isinstance(data, LocatedList) else ""
            line = data.lines[index] if isinstance(data, LocatedList) else 1
            checker = _JobChecker(file, prefix, line)
            job = checker.check(entry)
            if job is not None and job.id.casefold() in used:
                checker.problem(entry, "id", f"{job.id!r} was already used at {used[job.id.casefold()]}")
            problems.extend(checker.problems)
            if job is not None and not checker.problems:
                used[job.id.casefold()] = job.source
                jobs.append(job)
    return jobs, problems


class _JobChecker:
    """Checks one job of one file and collects what is wrong with it."""

    def __init__(self, file: Path, prefix: str, line: int):
        self.file, self.prefix, self.line = file, prefix, line
        self.problems: list[str] = []

    def check(self, entry: object) -> Job | None:
        if not isinstance(entry, LocatedDict):
            self._add(self.line, self.prefix, f"a job is an object such as {EXAMPLE}, not {_kind(entry)}")
            return None
        job = Job(
            id=self._id(entry),
            prompts=self._prompts(entry),
            images=self._images(entry),
            class_word=self._class_word(entry),
            source=f"{self.file}:{entry.line}",
        )
        return None if self.problems else job

    def problem(self, entry: LocatedDict, key: str, text: str) -> None:
        self._add(entry.lines.get(key, entry.line), f"{self.prefix}.{key}".lstrip("."), text)

    def _add(self, line: int, key: str, text: str) -> None:
        self.problems.append(f"{self.file}:{line}: {f'{key}: ' if key else ''}{text}")

    def _required(self, entry: LocatedDict, key: str, what: str) -> bool:
        if key not in entry:
            self.problem(entry, key, f"missing; it holds {what}")
        return key in entry

    def _id(self, entry: LocatedDict) -> str:
        what = "the job's name, text or a whole number"
        if not self._required(entry, "id", what):
            return ""
        value = entry["id"]
        if isinstance(value, bool) or not isinstance(value, int | str) or not str(value).strip():
            self.problem(entry, "id", f"must be {what}, not {_kind(value)}")
        return str(value)

    def _class_word(self, entry: LocatedDict) -> str | None:
        value = entry.get("class_word")
        if value is not None and not isinstance(value, str):
            self.problem(entry, "class_word", f"must be text, not {_kind(value)}")
        return value

    def _list(self, entry: LocatedDict, key: str, what: str) -> LocatedList:
        if not self._required(entry, key, what):
            return LocatedList([], [])
        value = entry[key]
        if not isinstance(value, LocatedList):
            self.problem(entry, key, f"must be a list of {what}, not {_kind(value)}")
            return LocatedList([], [])
        if not value:
            self.problem(entry, key, f"empty; it holds {what}, at least one")
        return value

    def _prompts(self, entry: LocatedDict) -> tuple[str, ...]:
        captions = self._list(entry, "caption_list", "prompts")
        for index, (value, line) in enumerate(zip(captions, captions.lines, strict=True)):
            key = f"{self.prefix}.caption_list[{index}]".lstrip(".")
            if not isinstance(value, str):
                self._add(line, key, f"must be text, not {_kind(value)}")
                continue
            try:
                check_prompt(value)
            except UserError as error:
                self._add(line, key, str(error))
        return tuple(captions)

    def _images(self, entry: LocatedDict) -> tuple[Path, ...]:
        images = []
        group = self._list(entry, "source_group", 'face pictures, each {"path": …}')
        for index, (item, line) in enumerate(zip(group, group.lines, strict=True)):
            key = f"{self.prefix}.source_group[{index}]".lstrip(".")
            if not isinstance(item, LocatedDict):
                self._add(line, key, f'must be an object {{"path": …}}, not {_kind(item)}')
            elif "path" not in item:
                self._add(item.line, f"{key}.path", "missing; it names a face picture")
            elif not isinstance(item["path"], str) or not item["path"].strip():
                self._add(item.lines["path"], f"{key}.path", f"must be the name of a file, not {_kind(item['path'])}")
            else:
                path = self._resolve(item["path"])
                if path is None:
                    folder = self.file.parent.absolute()
                    text = f"no such picture: {item['path']} (relative to {folder} or to {Path.cwd()})"
                    self._add(item.lines["path"], f"{key}.path", text)
                else:
                    images.append(path)
        return tuple(images)

    def _resolve(self, name: str) -> Path | None:
        for path in (self.file.parent / name, Path(name)):
            try:
                if path.exists():
                    return path
            except (OSError, ValueError):  # a name too long, or with a NUL character
                return None
        return None


def _kind(value: object) -> str:
    if isinstance(value, str) and not value.strip():
        return "empty text"
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    name = next((name for kind, name in names.items() if isinstance(value, kind)), "null")
    return f"{name} ({json.dumps(value)})" if isinstance(value, int | float) else name

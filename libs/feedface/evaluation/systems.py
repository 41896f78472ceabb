"""What is compared: models with their settings, as a command line or a JSON file lists them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from feedface.checkpoints.parts import is_stable_diffusion
from feedface.common.errors import UserError
from feedface.common.json_files import JsonFile
from feedface.common.saving import safe_name
from feedface.common.validation import CLOSED, Text, check_as
from feedface.inference.model_files import model_with
from feedface.settings import Settings

POOLS = ("concat", "mean", "first")
SETTINGS_KEYS = tuple(entry.name for entry in fields(Settings))
EXAMPLE = '[{"name": "guidance 4", "model": "models/mini", "settings": {"guidance": 4}}]'


@dataclass(frozen=True)
class System:
    """A model and how it is asked.

    Attributes:
        name: its label everywhere, and its folder's name.
        model, ckpt_path: see `model_files.load_model`.
        together: the method of `ckpt_path` goes with the model's own, not in its place.
        settings: None in it stands for the model's own default.
        pool: how several faces are joined: "concat", "mean" or "first".
        references: at most so many pictures of a person are shown; 0: none, the prompt alone.
    """

    name: str
    model: Path
    ckpt_path: Path | None = None
    settings: Settings = field(default_factory=Settings)
    pool: str = "concat"
    references: int = 4
    together: bool = False


def gather_systems(paths: Sequence[Path], counts: Sequence[int], settings: Settings) -> list[System]:
    """Those of --systems: model folders, and JSON files as `read_systems` takes them."""
    files = [path for path in paths if path.suffix == ".json" or (path.is_file() and not is_stable_diffusion(path))]
    folders = [path for path in paths if path not in files]
    of_folders = name_systems(folders, counts, settings, option="--systems", alone=len(paths) == 1) if folders else []
    systems = []
    for path in paths:
        systems += read_systems(path, counts, settings) if path in files else [s for s in of_folders if s.model == path]
    for place, system in enumerate(systems):
        _check_new(system, systems[:place])
    return systems


def name_systems(
    models: Sequence[Path],
    counts: Sequence[int],
    settings: Settings,
    ckpt_path: Path | None = None,
    option: str = "--model",
    alone: bool | None = None,
) -> list[System]:
    """The systems of a command line: every model with every number of references, named by what differs.

    alone: whether there are no other systems than those of one model.
    """
    if len(set(models)) < len(models):
        raise UserError(
            f"{option}: the same folder twice; use --systems with a JSON file to compare settings of one model"
        )
    if ckpt_path is not None and len(models) > 1:
        raise UserError("--ckpt_path goes with one --model; use --systems for several")
    labels = {model: model.name or str(model) for model in models}
    if len(set(labels.values())) < len(models):
        labels = {model: str(model) for model in models}
    alone = len(models) == 1 if alone is None else alone
    return [
        System(shown if alone and len(counts) > 1 else name, model, ckpt_path, settings, references=count)
        for model in models
        for name, shown, count in _counted(labels[model], counts)
    ]


def _counted(name: str, counts: Sequence[int]) -> Iterator[tuple[str, str, int]]:
    """(name with the number of references where there are several, "4 references", 4) of each number."""
    for count in counts:
        shown = f"{count} reference{'' if count == 1 else 's'}"
        yield f"{name}, {shown}" if len(counts) > 1 else name, shown, count


def read_systems(file: Path, counts: Sequence[int], settings: Settings) -> list[System]:
    """Read a list of {"name", "model", "ckpt_path"?, "method"?, "settings"?, "pool"?, "references"?}.

    A "method" such as "feedface+adaface" joins those of "model" and "ckpt_path". Models are looked for beside the file,
    then in the working directory; the numbers and `settings` given here are for systems that have none of their own.
    `UserError` with the line for all else.
    """
    written = JsonFile(file)
    if not isinstance(written.data, list) or not written.data:
        raise UserError(f"{file}:1: not a list of systems; it looks like {EXAMPLE}")
    systems: list[System] = []
    for index, entry in enumerate(written.data):
        place = f"{file}:{written.line(index)}"
        if not isinstance(entry, dict):
            raise UserError(f"{place}: not a system; one looks like {EXAMPLE[1:-1]}")
        checked = check_as(entry, _ENTRY, place, lambda: list(_Entry.model_fields))
        try:
            for system in _read_system(checked, file, counts, settings):
                _check_new(system, systems)
                systems.append(system)
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    return systems


def _check_new(system: System, others: Sequence[System]) -> None:
    if any(safe_name(system.name) == safe_name(other.name) for other in others):
        raise UserError(f"the name {system.name!r} is used twice")


class _Entry(BaseModel):
    """A system as it is written."""

    model_config = CLOSED
    name: Text
    model: Text
    ckpt_path: Text | None = None
    method: Text | None = None
    settings: dict[Literal[SETTINGS_KEYS], Any] = Field(default_factory=dict)
    pool: Literal[POOLS] = "concat"
    references: Annotated[int, Field(ge=0, le=32)] | None = None


_ENTRY = TypeAdapter(_Entry)


def _read_system(entry: _Entry, file: Path, counts: Sequence[int], settings: Settings) -> Iterator[System]:
    own = entry.settings
    if "size" in own:
        own = own | {"size": _size(own["size"])}
    model, ckpt = (_found(name, file) for name in (entry.model, entry.ckpt_path))
    if entry.method is not None:
        model_with(entry.method, model, ckpt)
    together = "+" in (entry.method or "")
    for name, _, count in _counted(entry.name, counts if entry.references is None else [entry.references]):
        yield System(name, model, ckpt, Settings(**own).over(settings), entry.pool, count, together)


def _size(value: object) -> tuple[int, int]:
    sides = [value, value] if isinstance(value, int) else value
    if not isinstance(sides, list) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise UserError('"size" is a number of pixels, or [width, height]')
    return tuple(sides)


def _found(name: str | None, file: Path) -> Path | None:
    if name is None:
        return None
    try:
        beside = file.parent / name
        return beside if beside.exists() else Path(name)
    except (OSError, ValueError) as error:  # a name too long, or with a NUL character
        raise UserError(f"{name!r:.60}: not the name of a file or folder ({error})") from None

"""Before the pictures: what is in the way, what is done already, what is left to do."""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from feedface.common.errors import UserError
from feedface.common.files import folder_lock
from feedface.common.saving import check_writable
from feedface.common.validation import OPEN, read_json_as
from feedface.preparation import formats
from feedface.preparation.captions import Captioner
from feedface.preparation.models import OPENCV, Choice, check_models, choose, digests
from feedface.preparation.options import Options
from feedface.preparation.outcome import ERROR, KINDS, MULTI, first_stem, read_row, stems
from feedface.preparation.process import MEASURES, caption_all, verdict
from feedface.preparation.scan import Scan, check_folders, scan, stamp_of, summary

SETTINGS = "settings.json"
REPORT = ("report.html", "report.png")
OWN_FOLDERS = (*KINDS, formats.CROPS, formats.ADAFACE)
NOTES_SHOWN = 5


class _Settings(TypedDict):
    """settings.json, as far as it is looked at: the names of the weights' parts with their hashes; the rest as is."""

    __pydantic_config__ = OPEN
    weights: dict[str, str]


_SETTINGS = TypeAdapter(_Settings)


@dataclass
class Plan:
    """What process 0 found out, for all processes.

    Attributes:
        pictures: all of them, sorted.
        todo: those to be made now.
        settings: of this run, for settings.json.
    """

    pictures: list[str]
    todo: list[str]
    settings: dict


def prepare(options: Options, held: ExitStack) -> Plan:
    """Check what can be checked without a model, lock the output folder until `held` ends, see what is missing."""
    check_folders(options.data, options.out)
    choice = choice_of(options)
    check_models(choice, options.device)
    options.rules.thresholds.check(choice.detector)
    found = scan(options.data, options.out)
    captioner = options.captioner(found.pictures) if options.captions_repeatable else None
    _say_unused(captioner)
    if options.identity == "list":
        options.group([], found.pictures, choice.detector)  # is the list a list?
    if options.identity == "cluster" and choice.detector == OPENCV:
        options.group([(found.pictures[0], None)], found.pictures, choice.detector)  # says that there is no recogniser
    _check_own(options.out)
    settings = _merged(options.out / SETTINGS, _settings(options, choice))
    check_writable(options.out)
    busy = f"{options.out}: another run is making data here; wait for it or use another --out_folder"
    held.enter_context(folder_lock(options.out, busy))
    files = own_files(options.out)
    for path in [path for path in files if path.name.startswith(".tmp-")]:
        path.unlink()
        files.discard(path)
    finished = Finished(options, files, captioner)
    todo = [rel for rel in found.pictures if finished.row(rel) is None]
    _say_found(found, len(todo))
    return Plan(found.pictures, todo, settings)


def choice_of(options: Options) -> Choice:
    return choose(options.detector, options.parser, options.model, options.det_threshold)


class Finished:
    """Looks up what earlier runs, or this one, have made.

    Args:
        files: all files below the output folder, see `own_files`.
        captioner: of this run; None where asking it again would cost too much.
    """

    def __init__(self, options: Options, files: set[Path], captioner: Captioner | None):
        self._options, self._files, self._captioner = options, files, captioner

    def row(self, rel: str, unopened: bool = False) -> dict | None:
        """The first JSON file of a picture that needs no work, or None.

        `unopened`: take one that says that the picture could not be opened, too.
        """
        out = self._options.out
        for kind in KINDS:
            path = out / f"{first_stem(rel, kind)}.json"
            row = read_row(path) if path in self._files else None
            if row is None or (row["path"], row["outcome"]) != (rel, kind):
                continue
            wanted = [out / name for name in file_names(row)]
            if self._files.issuperset(wanted) and ((unopened and row["stamp"] is None) or self._is_current(row)):
                return row
        return None

    def _is_current(self, row: dict) -> bool:
        """Whether a new run would write the same, as far as can be told without the models."""
        options, path = self._options, self._options.data / row["path"]
        if row["stamp"] is None or row["stamp"] != stamp_of(path):
            return False
        if row["outcome"] in (ERROR, MULTI):
            return True
        if not {*MEASURES, "scores"} <= row.keys():
            return False
        reason = verdict(row, options.rules.thresholds)
        if reason:
            return row["reason"] == reason
        if row.get("caption_by") != options.caption_source:
            return False
        if self._captioner is None:
            return True
        return (row.get("caption"), row["reason"]) == caption_all(self._captioner, [(row["path"], path, None)])[0]


def file_names(row: dict) -> list[str]:
    """All files of a picture, below the output folder; `row` is its first JSON file."""
    names = stems(row["path"], row["outcome"], row["faces"])
    suffixes = (".json",) if row["outcome"] == ERROR else (".json", ".png")
    return [name + suffix for name in names for suffix in suffixes]


def own_files(out: Path) -> set[Path]:
    """All files below the folders that a run writes to, and left-over ones beside them."""
    files = set(out.glob(".tmp-*"))
    for name in OWN_FOLDERS:
        for folder, _, names in os.walk(out / name):
            files.update(Path(folder, name) for name in names)
    return files


def _settings(options: Options, choice: Choice) -> dict:
    """What has to stay the same in one output folder; the rest can be changed from run to run."""
    return {
        "data_folder": str(options.data.resolve()),
        "detector": choice.detector,
        "det_threshold": choice.threshold,
        "parser": choice.parser,
        "duplicate_iou": options.rules.duplicate_iou,
        "square": options.rules.square,
        "weights": digests(choice),
    }


def _merged(path: Path, settings: dict) -> dict:
    """The settings, with what an earlier run knew of weights that are gone; `UserError` where they differ from its."""
    if not path.exists():
        return settings
    try:
        before = read_json_as(path, _SETTINGS)
    except UserError as error:
        raise UserError(f"{error}; not the settings of a run of make_data.py: use another --out_folder") from None
    if missing := [name for name in settings if name not in before]:
        raise UserError(
            f"{path}: not the settings of a run of make_data.py ({missing[0]} is missing); use another --out_folder"
        )
    weights = before["weights"]
    now = settings | {"weights": weights | settings["weights"]}
    for name, value in now.items():
        if name == "weights" and any(value[part] != weights.get(part, value[part]) for part in value):
            part = next(part for part in value if value[part] != weights.get(part, value[part]))
            raise UserError(
                f"{path}: this folder was made with other weights of the {part}; use those, or another --out_folder"
            )
        if name != "weights" and value != before[name]:
            raise UserError(
                f"{path}: this folder was made with {name} {before[name]!r:.60}, now it is {value!r:.60}; "
                "use the same, or another --out_folder"
            )
    return now


def _check_own(out: Path) -> None:
    """`UserError` for a folder with somebody else's files under names that a run uses, and deletes from."""
    if not (out / SETTINGS).exists():
        for name in (*OWN_FOLDERS, formats.RECORDS, formats.FLASHFACE, *REPORT):
            if (out / name).exists():
                raise UserError(f"{out / name}: not made by make_data.py ({SETTINGS} is missing); use another folder")


def _say_unused(captioner: Captioner | None) -> None:
    unused = getattr(captioner, "unused", [])
    _say_notes([f"--caption_file: no picture is called {name}" for name in unused])


def _say_found(found: Scan, todo: int) -> None:
    print(f"{summary(found)}; {todo} to do, {len(found.pictures) - todo} done before", flush=True)
    _say_notes(found.notes)


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes[:NOTES_SHOWN]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > NOTES_SHOWN:
        print(f"note: … and {len(notes) - NOTES_SHOWN} more like these", file=sys.stderr)

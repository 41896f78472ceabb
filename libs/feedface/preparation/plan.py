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
from feedface.faces.detect import WITHOUT_RECOGNISER
from feedface.preparation import formats
from feedface.preparation.captions import Captioner, caption_or_reason
from feedface.preparation.filters import MEASURES, reject
from feedface.preparation.models import Choice, check_models, choose, digests
from feedface.preparation.options import Options
from feedface.preparation.result import ERROR, KINDS, MULTI, file_names, read_row, stems
from feedface.preparation.scan import check_folders, scan, stamp_of, summary

SETTINGS = "settings.json"
REPORT = ("report.html", "report.png")
OWN_FOLDERS = (*KINDS, formats.CROPS, formats.ADAFACE)
NOTES_SHOWN = 5


class _Settings(TypedDict):
    """What has to stay the same in one output folder; the rest can be changed from run to run."""

    __pydantic_config__ = OPEN
    data_folder: object
    detector: object
    det_threshold: object
    parser: object
    duplicate_iou: object
    square: object
    weights: dict[str, str]  # the parts' hashes


_SETTINGS = TypeAdapter(_Settings)


@dataclass
class PreparationPlan:
    """What process 0 found out, for all processes.

    Attributes:
        pictures: all of them, sorted.
        todo: those to be made now.
        settings: of this run, for settings.json.
    """

    pictures: list[str]
    todo: list[str]
    settings: dict


def prepare(options: Options, held: ExitStack) -> PreparationPlan:
    """Check what can be checked without a model, lock the output folder until `held` ends, see what is missing."""
    check_folders(options.data, options.out)
    choice = choice_of(options)
    check_models(choice, options.device)
    options.rules.thresholds.check(choice.detector)
    found = scan(options.data, options.out)
    captioner = repeatable_captioner(options, found.pictures)
    if captioner:
        _say_notes([f"--caption_file: no picture is called {name}" for name in captioner.unused])
    if options.identity == "list":
        options.group([], found.pictures, choice.detector)  # is the list a list?
    if options.identity == "cluster" and choice.detector in WITHOUT_RECOGNISER:
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
    print(f"{summary(found)}; {len(todo)} to do, {len(found.pictures) - len(todo)} done before", flush=True)
    _say_notes(found.notes)
    return PreparationPlan(found.pictures, todo, settings)


def choice_of(options: Options) -> Choice:
    return choose(options.detector, options.parser, options.model, options.det_threshold)


def repeatable_captioner(options: Options, pictures: Sequence[str]) -> Captioner | None:
    """The run's captioner; None where asking it again would cost too much."""
    return options.captioner(pictures) if options.captions_repeatable else None


class Finished:
    """Looks up what earlier runs, or this one, have made.

    Args:
        files: all files below the output folder, see `own_files`.
        captioner: see `repeatable_captioner`.
    """

    def __init__(self, options: Options, files: set[Path], captioner: Captioner | None):
        self._options, self._files, self._captioner = options, files, captioner

    def row(self, rel: str, unopened: bool = False) -> dict | None:
        """The first JSON file of a picture that needs no work, or None.

        `unopened`: take one that says that the picture could not be opened, too.
        """
        out = self._options.out
        for kind in KINDS:
            path = out / f"{stems(rel, kind, 1)[0]}.json"
            row = read_row(path) if path in self._files else None
            if row is None or (row["path"], row["outcome"]) != (rel, kind):
                continue
            whole = self._files.issuperset(out / name for name in file_names(row))
            if whole and ((unopened and row["stamp"] is None) or self._is_current(row)):
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
        if reason := reject(row, options.rules.thresholds):
            return row["reason"] == reason
        if row.get("caption_by") != options.caption_source:
            return False
        if self._captioner is None:
            return True
        (answer,) = self._captioner.caption_many([(row["path"], path, None)])
        return (row.get("caption"), row["reason"]) == caption_or_reason(answer)


def own_files(out: Path) -> set[Path]:
    """All files below the folders that a run writes to, and left-over ones beside them."""
    files = set(out.glob(".tmp-*"))
    for name in OWN_FOLDERS:
        for folder, _, names in os.walk(out / name):
            files.update(Path(folder, name) for name in names)
    return files


def _settings(options: Options, choice: Choice) -> dict:
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
    for name, value in settings.items():
        if name != "weights" and value != before[name]:
            raise UserError(
                f"{path}: this folder was made with {name} {before[name]!r:.60}, now it is {value!r:.60}; "
                "use the same, or another --out_folder"
            )
    for part, digest in settings["weights"].items():
        if before["weights"].get(part, digest) != digest:
            raise UserError(
                f"{path}: this folder was made with other weights of the {part}; use those, or another --out_folder"
            )
    return settings | {"weights": before["weights"] | settings["weights"]}


def _check_own(out: Path) -> None:
    """`UserError` for a folder with somebody else's files under names that a run uses, and deletes from."""
    if not (out / SETTINGS).exists():
        for name in (*OWN_FOLDERS, formats.RECORDS, formats.FLASHFACE, *REPORT):
            if (out / name).exists():
                raise UserError(f"{out / name}: not made by make_data.py ({SETTINGS} is missing); use another folder")


def _say_notes(notes: Sequence[str]) -> None:
    for note in notes[:NOTES_SHOWN]:
        print(f"note: {note}", file=sys.stderr)
    if len(notes) > NOTES_SHOWN:
        print(f"note: … and {len(notes) - NOTES_SHOWN} more like these", file=sys.stderr)

"""Run a protocol over systems: what is missing is drawn and scored, by one process or many, and put together.

    run(protocol, artists, judges, Plan(out), Team())

Left in `out`: references/<case>/, base/<model>/<case>/ (without a face), pictures/<system>/<case>/ with scores.json of
that case, scores.jsonl (a line a picture), scores.json, and the report. The same command goes on after a kill, and
makes again what was deleted. Case i belongs to process i % n; every process opens every system.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from feedface.common.errors import EXIT_USER_ERROR, UserError, one_line
from feedface.common.files import folder_lock, remove_leftovers
from feedface.common.processes import Team
from feedface.common.progress import progress
from feedface.common.saving import check_writable, safe_name, save_ascii, save_json, save_png
from feedface.common.validation import OPEN, read_json_as
from feedface.evaluation.judging import FaceEye, Judges
from feedface.evaluation.normalised import Bounds
from feedface.evaluation.pictures import Kept, Request, picture_name, read_kept, save_kept
from feedface.evaluation.protocols import Case
from feedface.evaluation.scoring import Gallery, bounds, score
from feedface.evaluation.summary import SystemRun, summarise
from feedface.evaluation.systems import Artist

VERSION = 1  # of the scores: raise it where the same pictures get other ones
SCORES = "scores.json"


class Cases(Protocol):
    names: list[str]
    problems: list[str]

    def load(self, index: int, judge: FaceEye) -> Case: ...


@dataclass(frozen=True)
class Plan:
    """What is the same for all systems.

    Attributes:
        samples: pictures a prompt.
        base_images: pictures a prompt without a face, for the normalisation (the paper: 20); 0: none, and then no
            background change either.
        about: more for scores.json: "protocol", "command", "cases": {…}.
    """

    out: Path
    samples: int = 1
    base_images: int = 20
    about: dict = field(default_factory=dict)


def run(
    protocol: Cases,
    artists: Sequence[Callable[[list[Case]], Artist]],
    judges: Judges,
    plan: Plan,
    team: Team,
) -> int:
    """Evaluate; returns the exit code: 0, or 2 where a case could not be taken (said on stderr, the others are done).

    artists: each opens a system, given this process's cases; they are opened one after the other.
    """
    with ExitStack() as held:
        team.lead(lambda: _begin(protocol, plan, held))
        cases, failed = team.each(lambda: _load_cases(protocol, judges, team))
        shared = team.all(lambda: (failed, {case.name: case.gallery for case in cases}))
        failed = {name: why for part, _ in shared for name, why in part.items()}
        known = {name: own for _, part in shared for name, own in part.items()}
        gallery = Gallery({name: known[name] for name in protocol.names if name in known})
        people = team.all(lambda: _keep_references(cases, plan.out))
        if team.leads:
            for name, why in failed.items():
                print(f"error: case {name}: {one_line(why)}", file=sys.stderr)
        if not gallery.names:
            raise UserError("no case is left to be evaluated")
        share = Share(cases, judges, gallery, plan, team.leads)
        systems: list[SystemRun] = []
        for make in artists:
            bounding = plan.base_images > 0 and not any(system.bounds_from for system in systems)
            systems.append(team.each(lambda make=make, bounding=bounding: share.evaluate(make(cases), bounding)))
        told = {name: about for part in people for name, about in part.items()}
        about = {"failed": failed, "people": {name: told[name] for name in gallery.names}}
        team.lead(lambda: _finish(plan, judges, systems, gallery.names, about))
    team.close()
    return EXIT_USER_ERROR if failed or protocol.problems else 0


def _begin(protocol: Cases, plan: Plan, held: ExitStack) -> None:
    check_writable(plan.out)
    held.enter_context(folder_lock(plan.out, f"{plan.out}: another evaluation is writing there; name another --out"))
    for problem in protocol.problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    if not protocol.names:
        raise UserError("no case is left to be evaluated")


def _load_cases(protocol: Cases, judges: Judges, team: Team) -> tuple[list[Case], dict[str, str]]:
    """This process's cases, and why others of its share cannot be taken."""
    cases, failed = [], {}
    mine = range(team.index, len(protocol.names), team.count)
    for index in progress(mine, desc="references", unit="case", disable=not team.leads):
        try:
            cases.append(protocol.load(index, judges.face))
        except UserError as error:
            failed[protocol.names[index]] = str(error)
    return cases, failed


def _keep_references(cases: Sequence[Case], out: Path) -> dict[str, dict]:
    """Write the face crops; returns what scores.json says of each case."""
    told = {}
    for case in cases:
        for notice in case.notices:
            print(f"note: case {case.name}: {notice}", file=sys.stderr)
        files = []
        for number, crop in enumerate(case.crops):
            path = out / "references" / safe_name(case.name) / f"{number:02d}.png"
            save_png(Image.fromarray(crop), path)
            files.append(path.relative_to(out).as_posix())
        told[case.name] = {
            "references": files,
            "others": len(case.others),
            "prompts": list(case.prompts),
            "notices": case.notices,
        }
    return told


class Share:
    """What one process does for a system: its cases are drawn, then scored. `show`: progress bars."""

    def __init__(self, cases: Sequence[Case], judges: Judges, gallery: Gallery, plan: Plan, show: bool):
        self.cases, self.judges, self.gallery, self.plan, self.show = cases, judges, gallery, plan, show
        self.fingerprint = [VERSION, judges.fingerprint(), gallery.digest]

    def evaluate(self, artist: Artist, bounding: bool) -> SystemRun:
        """bounding: its base pictures, if it has any, give the bounds of the normalisation."""
        base = artist.base if self.plan.base_images else None
        bounding = bounding and base is not None
        samples = 1 if artist.one_sample else self.plan.samples
        folder = self.plan.out / "pictures" / safe_name(artist.name)
        base_folder = self.plan.out / "base" / base.name if base else None
        wanted = [_requests(folder, *one, samples, artist.info, artist.crops) for one in enumerate(self.cases)]
        of_base: list[list[Request]] = [[] for _ in self.cases]
        if base:
            count = max(samples, self.plan.base_images) if bounding else samples
            of_base = [_requests(base_folder, *one, count, base.info, no_faces) for one in enumerate(self.cases)]
        self._draw(artist, of_base, f"{artist.name}, without a face")
        _copy_from_base(wanted, of_base)
        self._draw(artist, wanted, artist.name)

        bar = progress(self.cases, desc=f"scores of {artist.name}", unit="case", disable=not self.show)
        for case, requests, base_requests in zip(bar, wanted, of_base, strict=True):
            self._score(case, requests, [one for one in base_requests if one.sample < samples])
            if bounding:
                self._find_bounds(case, base_requests)
        return SystemRun(artist.name, artist.describe(), folder, base_folder if bounding else None, base is not None)

    def _draw(self, artist: Artist, requests: Sequence[Sequence[Request]], label: str) -> None:
        """What is missing, of all cases together; scores of what was deleted or made otherwise go with it."""
        missing = [one for part in requests for one in part if read_kept(one.path, one.info) is None]
        for request in missing:
            (request.path.parent / SCORES).unlink(missing_ok=True)
        with progress(total=len(missing), desc=label, unit="picture", disable=not (self.show and missing)) as bar:
            for request, kept in artist.draw(missing):
                save_kept(request.path, kept, request.info)
                bar.update()

    def _score(self, case: Case, requests: Sequence[Request], twins: Sequence[Request]) -> None:
        """twins: the same prompts and seeds without a face; none: there are none."""
        shown = len(requests[0].crops)
        file = requests[0].path.parent / SCORES
        key = self._key(case, [*requests, *twins], shown)
        if read_scores(file, CASE_SCORES).get("key") != key:
            base = _kept(twins) if twins else None
            found = score(case, requests, _kept(requests), base, self.judges, self.gallery, shown)
            rows = [_place(request) | row for request, row in zip(requests, found["rows"], strict=True)]
            save_json({"key": key} | found | {"rows": rows}, file)

    def _find_bounds(self, case: Case, requests: Sequence[Request]) -> None:
        file = requests[0].path.parent / SCORES
        key = self._key(case, requests, 0)
        if read_scores(file, CASE_BOUNDS).get("key") != key:
            found = bounds(case, requests, _kept(requests), self.judges)
            save_json({"key": key} | {name: asdict(bound) for name, bound in found.items()}, file)

    def _key(self, case: Case, requests: Sequence[Request], shown: int) -> str:
        """Changes with everything that scores follow from."""
        parts = [self.fingerprint, case.digest, [request.info.fingerprint for request in requests], shown]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def no_faces(case: Case) -> tuple:
    return ()


def _requests(folder: Path, number: int, case: Case, samples: int, info: Callable, crops: Callable) -> list[Request]:
    """All pictures of a case, prompt by prompt."""
    place = folder / safe_name(case.name)
    remove_leftovers(place)
    shown = crops(case)
    return [
        Request(place / picture_name(prompt, sample), info(case, prompt, sample), number, prompt, sample, shown)
        for prompt in range(len(case.prompts))
        for sample in range(samples)
    ]


def _place(request: Request) -> dict:
    return {
        "prompt": request.prompt,
        "sample": request.sample,
        "seed": request.info.seed,
        "file": f"{request.path.parent.name}/{request.path.name}",  # in the system's folder
    }


def _copy_from_base(wanted: Sequence[Sequence[Request]], of_base: Sequence[Sequence[Request]]) -> None:
    """A system that is shown no face draws what was drawn for the base."""
    made = {request.info.fingerprint: request for part in of_base for request in part}
    for request in (request for part in wanted for request in part if not request.crops):
        twin = made.get(request.info.fingerprint)
        if twin is not None and read_kept(request.path, request.info) is None:
            (request.path.parent / SCORES).unlink(missing_ok=True)
            save_kept(request.path, read_kept(twin.path, twin.info), request.info)


def _kept(requests: Sequence[Request]) -> list[Kept]:
    found = [read_kept(request.path, request.info) for request in requests]
    for request, kept in zip(requests, found, strict=True):
        if kept is None:
            raise UserError(f"{request.path}: was changed while the run went on; run the same command again")
    return found


class _Scored(TypedDict):
    """A picture's scores, as far as they are looked at here."""

    __pydantic_config__ = OPEN
    file: str


class _CaseScores(TypedDict):
    """scores.json of one case."""

    key: str
    rows: list[_Scored]
    diversity: float | None


class _CaseBounds(TypedDict):
    """scores.json of one case of a base."""

    key: str
    face: Bounds
    text: Bounds


CASE_SCORES, CASE_BOUNDS = TypeAdapter(_CaseScores), TypeAdapter(_CaseBounds)


def read_scores(file: Path, kind: TypeAdapter) -> dict:
    """What is kept of one case; empty where it is not there or not whole."""
    try:
        return read_json_as(file, kind)
    except UserError:
        return {}


def _finish(plan: Plan, judges: Judges, systems: Sequence[SystemRun], names: Sequence[str], about: dict) -> None:
    """Put the cases together, on process 0."""
    rows, spread, limits = [], {}, {}
    for system in systems:
        found = list(_case_scores(system, names))
        rows += [row for part in found for row in part[1]]
        spread[system.name] = {name: value for name, _, value in found if value is not None}
        if system.bounds_from is not None:
            stored = {name: _stored(system.bounds_from, name, CASE_BOUNDS) for name in names}
            limits = {kind: {name: one[kind] for name, one in stored.items()} for kind in ("face", "text")}
    for row in rows:
        row["file"] = row["file"].relative_to(plan.out).as_posix()
    scores = summarise(rows, systems, spread, limits, judges, plan.about, about)
    save_ascii("".join(json.dumps(row) + "\n" for row in rows), plan.out / "scores.jsonl")
    save_json(scores, plan.out / SCORES)
    from feedface.evaluation.report import write_report

    write_report(plan.out)
    print(f"written to {plan.out}: report.html, {SCORES}, scores.jsonl, table.md")


def _stored(folder: Path, name: str, kind: TypeAdapter) -> dict:
    stored = read_scores(folder / safe_name(name) / SCORES, kind)
    if not stored:
        raise UserError(f"{folder / safe_name(name)}: its scores are gone; run the same command again")
    return stored


def _case_scores(system: SystemRun, names: Sequence[str]) -> Iterator[tuple[str, list[dict], float | None]]:
    """(case, rows, diversity) of a system, from what every process left."""
    for name in names:
        stored = _stored(system.folder, name, CASE_SCORES)
        about = {"system": system.name, "case": name}
        yield name, [about | row | {"file": system.folder / row["file"]} for row in stored["rows"]], stored["diversity"]

"""Run a protocol over systems: what is missing is drawn and scored, by one process or many, and put together.

    run(protocol, generators, judges, BenchmarkPlan(out), ProcessGroup())

Left in `out`: references/<case>/, base/<model>/<case>/ (without a face), pictures/<system>/<case>/ with scores.json of
that case, scores.jsonl (a line a picture), scores.json, and the report. The same command goes on after a kill, and
makes again what was deleted. Case i belongs to process i % n; every process opens every system.
"""

import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from feedface.common.errors import EXIT_USER_ERROR, UserError, one_line
from feedface.common.files import folder_lock, remove_leftovers
from feedface.common.processes import ProcessGroup
from feedface.common.progress import progress
from feedface.common.saving import check_writable, safe_name, save_ascii, save_json, save_png
from feedface.common.validation import OPEN, read_json_as
from feedface.evaluation.generators import Generator
from feedface.evaluation.judges import FaceJudge
from feedface.evaluation.judging import Judges
from feedface.evaluation.normalised import Bounds
from feedface.evaluation.pictures import ImageRequest, SavedImage, picture_name, read_saved, save
from feedface.evaluation.protocols import Case
from feedface.evaluation.scoring import Gallery, bounds, score
from feedface.evaluation.summary import SystemRun, summarise

VERSION = 1  # of the scores: raise it where the same pictures get other ones
SCORES = "scores.json"


class Cases(Protocol):
    names: list[str]
    problems: list[str]

    def load(self, index: int, judge: FaceJudge) -> Case: ...


@dataclass(frozen=True)
class BenchmarkPlan:
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
    generators: Sequence[Callable[[list[Case]], Generator]],
    judges: Judges,
    plan: BenchmarkPlan,
    group: ProcessGroup,
) -> int:
    """Evaluate; returns the exit code: 0, or 2 where a case could not be taken (said on stderr, the others are done).

    generators: each opens a system, given this process's cases; they are opened one after the other.
    """
    with ExitStack() as held:
        group.lead(lambda: _begin(protocol, plan, held))
        cases, failed = group.each(lambda: _load_cases(protocol, judges, group))
        shared = group.all(lambda: (failed, {case.name: case.gallery for case in cases}))
        failed = {name: why for part, _ in shared for name, why in part.items()}
        known = {name: own for _, part in shared for name, own in part.items()}
        gallery = Gallery({name: known[name] for name in protocol.names if name in known})
        people = group.all(lambda: _keep_references(cases, plan.out))
        if group.leads:
            for name, why in failed.items():
                print(f"error: case {name}: {one_line(why)}", file=sys.stderr)
        if not gallery.names:
            raise UserError("no case is left to be evaluated")
        shard = Shard(cases, judges, gallery, plan, group.leads)
        systems: list[SystemRun] = []
        for make in generators:
            bounding = plan.base_images > 0 and not any(system.bounds_from for system in systems)
            systems.append(group.each(lambda make=make, bounding=bounding: shard.evaluate(make(cases), bounding)))
        told = {name: about for part in people for name, about in part.items()}
        about = {"failed": failed, "people": {name: told[name] for name in gallery.names}}
        group.lead(lambda: _finish(plan, judges, systems, gallery.names, about))
    group.close()
    return EXIT_USER_ERROR if failed or protocol.problems else 0


def _begin(protocol: Cases, plan: BenchmarkPlan, held: ExitStack) -> None:
    check_writable(plan.out)
    held.enter_context(folder_lock(plan.out, f"{plan.out}: another evaluation is writing there; name another --out"))
    for problem in protocol.problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    if not protocol.names:
        raise UserError("no case is left to be evaluated")


def _load_cases(protocol: Cases, judges: Judges, group: ProcessGroup) -> tuple[list[Case], dict[str, str]]:
    """This process's cases, and why others of its shard cannot be taken."""
    cases, failed = [], {}
    mine = range(group.index, len(protocol.names), group.count)
    for index in progress(mine, desc="references", unit="case", disable=not group.leads):
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
        paths = [out / "references" / safe_name(case.name) / f"{number:02d}.png" for number in range(len(case.crops))]
        for path, crop in zip(paths, case.crops, strict=True):
            save_png(Image.fromarray(crop), path)
        told[case.name] = {
            "references": [path.relative_to(out).as_posix() for path in paths],
            "others": len(case.others),
            "prompts": list(case.prompts),
            "notices": case.notices,
        }
    return told


@dataclass(frozen=True)
class CaseImages:
    """The pictures that one generator is to draw of one case, prompt by prompt, in a folder with their scores."""

    case: Case
    folder: Path
    requests: list[ImageRequest]

    @property
    def scores(self) -> Path:
        return self.folder / SCORES

    def missing(self) -> list[ImageRequest]:
        """Scores of what was deleted or made otherwise go with it."""
        found = [one for one in self.requests if read_saved(one.path, one.info) is None]
        if found:
            self.scores.unlink(missing_ok=True)
        return found

    def first(self, samples: int) -> list[ImageRequest]:
        """Of each prompt."""
        return [one for one in self.requests if one.sample < samples]


class Shard:
    """What one process does for a system: its cases are drawn, then scored. `show`: progress bars."""

    def __init__(self, cases: Sequence[Case], judges: Judges, gallery: Gallery, plan: BenchmarkPlan, show: bool):
        self.cases, self.judges, self.gallery, self.plan, self.show = cases, judges, gallery, plan, show
        self.fingerprint = [VERSION, judges.fingerprint(), gallery.digest]

    def evaluate(self, generator: Generator, bounding: bool) -> SystemRun:
        """bounding: its base pictures, if it has any, give the bounds of the normalisation."""
        base = generator.base if self.plan.base_images else None
        bounding = bounding and base is not None
        samples = 1 if generator.one_sample else self.plan.samples
        folder = self.plan.out / "pictures" / safe_name(generator.name)
        base_folder = self.plan.out / "base" / base.name if base else None
        wanted = self._wanted(folder, samples, generator.info, generator.crops)
        twins: list[CaseImages] = []
        if base:
            count = max(samples, self.plan.base_images) if bounding else samples
            twins = self._wanted(base_folder, count, base.info, lambda case: ())
        self._draw(generator, twins, f"{generator.name}, without a face")
        _copy_from_base(wanted, twins)
        self._draw(generator, wanted, generator.name)

        bar = progress(wanted, desc=f"scores of {generator.name}", unit="case", disable=not self.show)
        for number, images in enumerate(bar):
            self._score(images, twins[number].first(samples) if base else [])
            if bounding:
                self._find_bounds(twins[number])
        bounds_from = base_folder if bounding else None
        return SystemRun(generator.name, generator.describe(), folder, bounds_from, base is not None)

    def _wanted(self, folder: Path, samples: int, info: Callable, crops: Callable) -> list[CaseImages]:
        found = []
        for number, case in enumerate(self.cases):
            place = folder / safe_name(case.name)
            remove_leftovers(place)
            shown = crops(case)
            requests = [
                ImageRequest(
                    place / picture_name(prompt, sample), info(case, prompt, sample), number, prompt, sample, shown
                )
                for prompt in range(len(case.prompts))
                for sample in range(samples)
            ]
            found.append(CaseImages(case, place, requests))
        return found

    def _draw(self, generator: Generator, wanted: Sequence[CaseImages], label: str) -> None:
        """What is missing, of all cases together."""
        missing = [request for images in wanted for request in images.missing()]
        with progress(total=len(missing), desc=label, unit="picture", disable=not (self.show and missing)) as bar:
            for request, image in generator.draw(missing):
                save(request.path, image, request.info)
                bar.update()

    def _score(self, images: CaseImages, twins: Sequence[ImageRequest]) -> None:
        """twins: the same prompts and seeds without a face; none: there are none."""

        def measure() -> dict:
            base = _saved(twins) if twins else None
            requests = images.requests
            found = score(images.case, requests, _saved(requests), base, self.judges, self.gallery)
            rows = [_place(request) | row for request, row in zip(requests, found["rows"], strict=True)]
            return found | {"rows": rows}

        shown = len(images.requests[0].crops)
        self._measured_once(images, [*images.requests, *twins], shown, CASE_SCORES, measure)

    def _find_bounds(self, images: CaseImages) -> None:
        def measure() -> dict:
            found = bounds(images.case, images.requests, _saved(images.requests), self.judges)
            return {name: asdict(bound) for name, bound in found.items()}

        self._measured_once(images, images.requests, 0, CASE_BOUNDS, measure)

    def _measured_once(
        self,
        images: CaseImages,
        requests: Sequence[ImageRequest],
        shown: int,
        kind: TypeAdapter,
        measure: Callable[[], dict],
    ) -> None:
        """Write what `measure` finds, unless it is there, under a key of everything that it follows from."""
        parts = [self.fingerprint, images.case.digest, [request.info.fingerprint for request in requests], shown]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
        if read_scores(images.scores, kind).get("key") != key:
            save_json({"key": key} | measure(), images.scores)


def _place(request: ImageRequest) -> dict:
    return {
        "prompt": request.prompt,
        "sample": request.sample,
        "seed": request.info.seed,
        "file": f"{request.path.parent.name}/{request.path.name}",  # in the system's folder
    }


def _copy_from_base(wanted: Sequence[CaseImages], of_base: Sequence[CaseImages]) -> None:
    """A system that is shown no face draws what was drawn for the base."""
    made = {request.info.fingerprint: request for images in of_base for request in images.requests}
    for images in wanted:
        for request in () if images.requests[0].crops else images.missing():
            twin = made.get(request.info.fingerprint)
            if twin is not None:
                save(request.path, read_saved(twin.path, twin.info), request.info)


def _saved(requests: Sequence[ImageRequest]) -> list[SavedImage]:
    found = [read_saved(request.path, request.info) for request in requests]
    for request, image in zip(requests, found, strict=True):
        if image is None:
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


def _stored(folder: Path, names: Sequence[str], kind: TypeAdapter) -> dict[str, dict]:
    """case -> what every process left of it."""
    found = {name: read_scores(folder / safe_name(name) / SCORES, kind) for name in names}
    for name, stored in found.items():
        if not stored:
            raise UserError(f"{folder / safe_name(name)}: its scores are gone; run the same command again")
    return found


def _finish(
    plan: BenchmarkPlan, judges: Judges, systems: Sequence[SystemRun], names: Sequence[str], about: dict
) -> None:
    """Put the cases together, on process 0."""
    rows, diversity, limits = [], {}, {}
    for system in systems:
        stored = _stored(system.folder, names, CASE_SCORES)
        for name, one in stored.items():
            place = system.folder.relative_to(plan.out)
            rows += [{"system": system.name, "case": name} | row | {"file": (place / row["file"]).as_posix()}
                     for row in one["rows"]]  # fmt: skip
        diversities = {name: one["diversity"] for name, one in stored.items()}
        diversity[system.name] = {name: value for name, value in diversities.items() if value is not None}
        if system.bounds_from is not None:
            found = _stored(system.bounds_from, names, CASE_BOUNDS)
            limits = {kind: {name: one[kind] for name, one in found.items()} for kind in ("face", "text")}
    scores = summarise(rows, systems, diversity, limits, judges, plan.about, about)
    save_ascii("".join(json.dumps(row) + "\n" for row in rows), plan.out / "scores.jsonl")
    save_json(scores, plan.out / SCORES)
    from feedface.evaluation.report import write_report

    write_report(plan.out)
    print(f"written to {plan.out}: report.html, {SCORES}, scores.jsonl, table.md")

"""Run jobs with a pipeline: faces in, then every picture that is not there yet, a contact sheet and results.

The pictures of all jobs wait in one line and are drawn in batches, whichever prompts and people they show.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feedface.common.errors import UserError, one_line
from feedface.common.images import read_image
from feedface.common.progress import progress, say
from feedface.common.saving import OutputError, safe_name, save_png
from feedface.faces.references import find_faces
from feedface.faces.similarity import FaceSimilarity
from feedface.inference.batching import batches, dtype_name
from feedface.inference.beginnings import Beginnings
from feedface.inference.dense import annotations, drawn
from feedface.inference.outputs import PictureFolder, PictureInfo
from feedface.inference.people import Cast, load_people
from feedface.inference.photo_notice import photo_notice
from feedface.inference.run_report import report, run_sheet
from feedface.inference.somebody import check_named, described
from feedface.pipeline import Request
from feedface.settings import MAX_SEED, check_range

if TYPE_CHECKING:
    from feedface.backbones.base import Prompt
    from feedface.faces.detect import FaceDetector
    from feedface.faces.references import Reference
    from feedface.inference.jobs import Job
    from feedface.inference.start import Start
    from feedface.methods.base import Identity
    from feedface.pipeline import FeedFacePipeline
    from feedface.settings import Settings

MAX_TEXTS = 1024  # encoded prompts that are kept; a batch needs far fewer


@dataclass(frozen=True)
class RunPlan:
    """What is the same for all jobs of a run, but for what they say themselves.

    Attributes:
        settings: what is asked for; the model and the preset say the rest.
        seed: of the first picture of each prompt; the others follow.
        n_samples, n_iter: each prompt gets n_samples x n_iter pictures.
        detect: find and crop faces; else the pictures are face crops.
        batch_size: pictures drawn at a time, at most; None: what should fit into memory.
        face: which one of several faces in a picture, see `references.find_faces`.
        format: of the files, one of `provenance.SUFFIXES`.
        dense: beside each picture what the method's dense heads say of it, as NUMBER_dense.png.
        start: a picture to begin with; strength: of those that jobs begin with, where they say none.
        pose: yaw, pitch, roll of the person's head in degrees.
        blend, blend_weight: pictures of another person to blend with, and how much of that one is shown, 0 … 1.
    """

    settings: Settings
    seed: int = 0
    n_samples: int = 1
    n_iter: int = 1
    detect: bool = True
    batch_size: int | None = None
    face: str | int | None = None
    blend: Sequence[Path] = ()
    blend_weight: float = 0.5
    dense: bool = False
    format: str = "png"
    start: Start | None = None
    strength: float = 1.0
    pose: tuple[float, float, float] | None = None

    def of(self, job: Job) -> RunPlan:
        """This plan with what the job says itself. `UserError` for seeds beyond the largest there is."""
        seed = self.seed if job.seed is None else job.seed
        n_samples = job.n_samples or self.n_samples
        check_range("seed", seed, 0, MAX_SEED - n_samples * self.n_iter)
        detect = self.detect if job.detect is None else job.detect
        return replace(self, settings=job.settings.over(self.settings), seed=seed, n_samples=n_samples, detect=detect)

    @property
    def drawn_so(self) -> dict[str, object]:
        """What changes pictures besides their settings, faces and model."""
        pose = {} if self.pose is None else {"pose": list(self.pose)}
        return pose | ({} if self.start is None else self.start.settings)

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n_samples * self.n_iter)


class Watcher:
    """Is told how a batch goes; by default it does nothing."""

    def started(self, run: JobRun) -> None:
        """A job's faces are found."""

    def failed(self, job: Job, error: UserError) -> None:
        """A job cannot be drawn."""

    def stepped(self, pictures: int) -> None:
        """An evaluation of the model with so many pictures is done. An exception from here ends the batch."""


class JobRun:
    """A job under way: its faces, the pictures it wants and those that are there. Making one finds the faces."""

    def __init__(self, pipe: FeedFacePipeline, job: Job, plan: RunPlan, detector: FaceDetector, folder: Path):
        self.pipe, self.job, self.plan, self.detector = pipe, job, plan.of(job), detector
        self.begin = time.monotonic()
        self.failed = False
        self.settings = pipe.settings(self.plan.settings)  # complete
        begin_notices = self._begin_with_own()
        for prompt in job.prompts:
            check_named(prompt, job.people)
        self.references, notices = self._find_faces(self.job.images)
        # A model without a method draws without them, which `_find_faces` says.
        people, more = load_people(pipe, job.people, self._find_faces)
        people = [] if pipe.method_notice() else people
        notices += more
        begin = self.plan.start, self.plan.pose
        self.cast = Cast(pipe, detector, self.settings, people, *begin) if people else None
        self.references += [one for shown in people for one in shown.references]
        self.others, more = self._find_faces(self.plan.blend)
        notices += more
        self.notices = [*job.notices, *begin_notices, *notices, *self._setting_notices()]
        said = pipe.settings_notice(plan.settings)  # once for all jobs
        for notice in self.notices:
            if notice != said:
                say(f"note: {notice}")
        self.pictures = PictureFolder(folder, plan.format)
        self.crops = [
            self.pictures.save_reference(Image.fromarray(reference.crop), reference.digest)
            for reference in self.references
        ]
        settings = pipe.picture_settings(self.settings)
        if self.others:
            settings |= {"blend": [one.digest for one in self.others], "blend_weight": self.plan.blend_weight}
        settings |= self.plan.drawn_so
        if self.cast:
            settings |= self.cast.settings
        faces = tuple(face for shown in people for face in shown.faces)
        faces = faces or tuple(reference.digest for reference in self.references)
        self.wanted = [
            PictureInfo(prompt, seed, pipe.bundle.name, pipe.digest, settings, faces)
            for prompt in dict.fromkeys(described(prompt, job.people) for prompt in job.prompts)
            for seed in self.plan.seeds
        ]
        self.missing = [info for info in self.wanted if self.pictures.find(info) is None]
        self.made: set[str] = set()  # fingerprints
        self.results: dict | None = None

    def _begin_with_own(self) -> list[str]:
        """Take the picture that the job itself begins with; what to tell the user of it."""
        job, plan = self.job, self.plan
        if job.init is None and job.base is None:
            return []
        mask = None if job.mask is None else str(job.mask)
        begin = Beginnings(self.pipe, self.detector, plan.settings, plan.face, job.strength or plan.strength, mask)
        start, pose, notices = begin.of(job.base, job.init)
        self.plan = replace(plan, start=start, pose=pose or plan.pose)
        return notices

    def _find_faces(self, images: Sequence[Path]) -> tuple[list[Reference], list[str]]:
        if not images:
            return [], []
        if notice := self.pipe.method_notice():
            return [], [f"{notice}; drawn without a face"]
        detector = self.detector if self.plan.detect else None
        references, notices = find_faces(images, detector, self.plan.face)
        notice = photo_notice(self.pipe.bundle, detector, references)
        return references, [*notices, notice] if notice else notices

    def _setting_notices(self) -> Iterator[str]:
        notice = self.pipe.settings_notice(self.plan.settings)
        if notice:
            yield notice
        for prompt in self.job.prompts:
            notice = self.pipe.prompt_notice(prompt, bool(self.references))
            if notice:
                yield f"{prompt[:40]!r}: {notice}"

    @cached_property
    def identity(self) -> Identity | None:
        """Who is shown, encoded when the first picture is drawn; None for nobody."""
        if not self.references:
            return None
        own = self.pipe.identity(self.references)
        if self.others:
            own = self.pipe.blend(own, self.pipe.identity(self.others), self.plan.blend_weight)
        return own if self.plan.pose is None else self.pipe.posed(own, self.plan.pose)

    def identity_of(self, info: PictureInfo) -> Identity | None:
        """Who is shown in that picture."""
        return self.cast.identity(info.prompt, info.seed) if self.cast else self.identity

    def request(self, info: PictureInfo) -> Request:
        """That picture, as the pipeline draws it."""
        return Request(info.prompt, info.seed, self.identity_of(info), self.plan.start)

    @property
    def group(self) -> tuple:
        """What is the same for runs whose pictures can be drawn together: so many faces of so many people."""
        people = tuple(len(shown.faces) for shown in self.cast.people) if self.cast else ()
        start = self.plan.start
        return len(self.references), len(self.others), people, start and (start.strength, start.mask is None)

    def save(self, image: Image.Image, info: PictureInfo) -> None:
        """Keep a picture; the last one finishes the job."""
        path = self.pictures.save(image, info)
        if self.plan.dense:
            pixels = np.asarray(image)
            found = annotations(self.pipe.bundle, [pixels], [info.prompt], self.identity_of(info), self.pipe.device)
            dense = drawn(pixels, {name: value[0] for name, value in found.items()})
            save_png(dense, path.with_name(f"{path.stem}_dense.png"))
        self.made.add(info.fingerprint)
        if len(self.made) == len(self.missing):
            self.finish()

    def finish(self) -> None:
        """Measure similarities, write contact sheet and results, and report."""
        similarity = self.cast.people[0].similarity(self.detector) if self.cast else None
        similarity = similarity or FaceSimilarity(self.detector, self.references)
        rows = []
        for info in self.wanted:
            path = self.pictures.find(info)
            image = read_image(path)
            each = self.cast.measure(image, info.prompt, info.seed) if self.cast else {}
            known = [value for value in each.values() if value is not None]
            likeness = round(sum(known) / len(known), 4) if known else None if each else similarity.of(image)
            row = {"file": path.name, "prompt": info.prompt, "seed": info.seed, "similarity": likeness}
            row |= {"people": each} if each else {}
            rows.append(row | {"made_now": info.fingerprint in self.made})
        pipe, job = self.pipe, self.job
        settings = self.settings.as_json() | {"dtype": dtype_name(pipe.dtype)} | ({"int8": True} if pipe.int8 else {})
        settings |= pipe.changes.as_json()
        if self.others:
            settings |= {"blend": [one.name for one in self.others], "blend_weight": self.plan.blend_weight}
        settings |= self.plan.drawn_so
        self.results = {
            "id": job.id,
            "class_word": job.class_word,
            "model": {"name": pipe.bundle.name, "path": str(pipe.bundle.path), "digest": pipe.digest},
            "settings": settings,
            "detector": self.detector.name if self.plan.detect else None,
            "references": [
                {
                    "path": ref.name,
                    "crop": crop.name,
                    "box": ref.box,
                    "score": ref.score,
                    "faces_found": ref.faces_found,
                }
                for ref, crop in zip(self.references, self.crops, strict=True)
            ],
            "notices": self.notices + (self.cast.notes if self.cast else []),
            "similarity": similarity.summary([row["similarity"] for row in rows]),
            "pictures": rows,
            "seconds": round(time.monotonic() - self.begin, 2),
        }
        sheet = run_sheet(self.references, rows, self.pictures.folder)
        report(self.results, self.pictures.folder, self.pictures.save_run(self.results, sheet, keep=bool(self.made)))


def run_job(pipe: FeedFacePipeline, job: Job, plan: RunPlan, detector: FaceDetector, folder: Path) -> dict:
    """Draw what a job asks for into `folder`; returns what results.json holds. Pictures already there are kept."""

    def fail(run: JobRun, error: UserError) -> None:
        raise error

    _say_of_settings(pipe, plan)
    run = JobRun(pipe, job, plan, detector, folder)
    _draw_all(pipe, plan, [run], fail, Watcher())
    return run.results


def run_jobs(
    pipe: FeedFacePipeline,
    jobs: Sequence[Job],
    plan: RunPlan,
    detector: FaceDetector,
    output: Path,
    watcher: Watcher | None = None,
) -> int:
    """Run a batch, each job in its own folder under `output`; returns how many jobs failed, each said on stderr.

    A job is reported when its last picture is there. One that fails does not stop the others. A full disk or an
    unwritable folder does (`OutputError`).
    """
    failed: list[Job] = []
    watcher = watcher or Watcher()

    def fail(job: Job, error: UserError) -> None:
        if isinstance(error, OutputError):
            raise error
        failed.append(job)
        watcher.failed(job, error)
        say(one_line(f"error: job {job.id} ({job.source}): {error}"), sys.stderr)

    def runs() -> Iterator[JobRun]:
        for number, job in enumerate(jobs, 1):
            say(f"job {job.id} ({number} of {len(jobs)})")
            try:
                run = JobRun(pipe, job, plan, detector, output / safe_name(job.id))
            except UserError as error:
                fail(job, error)
            else:
                watcher.started(run)
                yield run

    _say_of_settings(pipe, plan)
    _draw_all(pipe, plan, runs(), lambda run, error: fail(run.job, error), watcher)
    return len(failed)


def _say_of_settings(pipe: FeedFacePipeline, plan: RunPlan) -> None:
    notice = pipe.settings_notice(plan.settings)
    if notice:
        say(f"note: {notice}")


def _draw_all(
    pipe: FeedFacePipeline,
    plan: RunPlan,
    runs: Iterable[JobRun],
    fail: Callable[[JobRun, UserError], None],
    watcher: Watcher,
) -> None:
    """Draw and save, a batch at a time, what is missing; `runs` are started when their turn comes."""
    texts: dict[str, Prompt] = {}  # prompts are encoded once

    def end(run: JobRun, error: UserError) -> None:
        run.failed = True
        fail(run, error)

    def step(pictures: int) -> None:
        bar.update(pictures)
        watcher.stepped(pictures)

    def line() -> Iterator[tuple[JobRun, PictureInfo]]:
        nonlocal total
        for run in runs:
            if not run.missing:
                try:
                    run.finish()
                except UserError as error:
                    end(run, error)
            total += run.settings.steps * len(run.missing)
            yield from ((run, info) for info in run.missing)

    total, bar = 0, None
    with ExitStack() as stack:
        # What is drawn together has the same settings and equally many faces.
        items = batches(
            line(),
            size=lambda item: plan.batch_size or pipe.batch_size(item[0].settings),
            key=lambda item: (item[0].settings, item[0].group),
        )
        for batch in items:
            batch = [(run, info) for run, info in batch if not run.failed]
            if not batch:
                continue
            if bar is None:  # no bar where nothing is missing
                bar = stack.enter_context(progress(total=total, desc="drawing"))
            bar.total = total
            try:
                requests = [
                    Request(info.prompt, info.seed, run.identity_of(info), run.plan.start) for run, info in batch
                ]
                images = pipe.draw_batch(requests, batch[0][0].settings, texts=texts, on_step=step)
            except UserError as error:
                for run in dict.fromkeys(run for run, _ in batch):
                    end(run, error)
                continue
            for (run, info), image in zip(batch, images, strict=True):
                try:
                    if not run.failed:
                        run.save(image, info)
                except UserError as error:
                    end(run, error)
            while len(texts) > MAX_TEXTS:
                texts.pop(next(iter(texts)))

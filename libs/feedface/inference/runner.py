"""Run jobs with a pipeline: faces in, then every picture that is not there yet, a contact sheet and results.

The pictures of all jobs wait in one line and are drawn in batches, whichever prompts and people they show.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from feedface.common.errors import UserError, one_line
from feedface.common.progress import progress, say
from feedface.common.saving import OutputError, safe_name
from feedface.inference.batching import batches
from feedface.inference.job_run import JobRun, RunPlan
from feedface.inference.outputs import PictureInfo
from feedface.inference.stages import Batch

if TYPE_CHECKING:
    from feedface.faces.detect import FaceDetector
    from feedface.inference.jobs import Job
    from feedface.pipeline import FeedFacePipeline


class Watcher:
    """Is told how a batch goes; by default it does nothing."""

    def started(self, run: JobRun) -> None:
        """A job's faces are found."""

    def failed(self, job: Job, error: UserError) -> None:
        """A job cannot be drawn."""

    def stepped(self, pictures: int) -> None:
        """An evaluation of the model with so many pictures is done. An exception from here ends the batch."""


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
    total, bar = 0, None

    def end(run: JobRun, error: UserError) -> None:
        if not run.failed:
            run.failed = True
            fail(run, error)

    def step(pictures: int) -> None:
        bar.update(pictures)
        watcher.stepped(pictures)

    def line() -> Iterator[Picture]:
        nonlocal total
        for run in runs:
            if not run.missing:
                try:
                    run.finish()
                except UserError as error:
                    end(run, error)
            pictures = [
                Picture(run, info, run.pictures.latents(info) if pipe.low_memory else None) for info in run.missing
            ]
            total += run.settings.steps * sum(picture.latents is None for picture in pictures)
            yield from pictures

    def wanted() -> Iterator[Batch]:
        nonlocal bar
        # What is drawn together has the same settings and equally many faces.
        for pictures in batches(
            line(),
            size=lambda picture: plan.batch_size or pipe.batch_size(picture.run.settings),
            key=lambda picture: (picture.run.settings, picture.run.group, picture.latents is None),
        ):
            pictures = [picture for picture in pictures if not picture.run.failed]
            if pictures:
                if bar is None:  # no bar where nothing is missing
                    bar = stack.enter_context(progress(total=total, desc="drawing"))
                bar.total = total
                yield _batch(pictures)

    def keep(batch: Batch, latents: Tensor) -> None:
        for picture, row in zip(batch.items, latents, strict=True):
            picture.run.pictures.keep_latents(picture.info, row)

    with ExitStack() as stack:
        for batch, images in pipe.draw_batches(wanted(), step, keep):
            if isinstance(images, UserError):
                for picture in batch.items:
                    end(picture.run, images)
                continue
            for picture, image in zip(batch.items, images, strict=True):
                try:
                    if not picture.run.failed:
                        picture.run.save(image, picture.info)
                except UserError as error:
                    end(picture.run, error)


class Picture(NamedTuple):
    """One that a run still misses. `latents` [C,h,w]: what another run left of it, which a kill ended."""

    run: JobRun
    info: PictureInfo
    latents: Tensor | None


def _batch(pictures: Sequence[Picture]) -> Batch:
    drawn = None if pictures[0].latents is None else torch.stack([picture.latents for picture in pictures])
    return Batch(
        [picture.run.request(picture.info) for picture in pictures],
        pictures[0].run.settings,
        pictures,
        drawn,
        lambda: not all(picture.run.failed for picture in pictures),
    )

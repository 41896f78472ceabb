"""The page of batches: job files and the photos they name, drawn one job after the other."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from feedface.app.background import events
from feedface.common.errors import UserError
from feedface.inference.jobs import read_jobs
from feedface.inference.runner import Watcher, run_jobs

if TYPE_CHECKING:
    from feedface.app.models import Models
    from feedface.app.session import Session
    from feedface.faces.types import FaceDetector
    from feedface.inference.job_run import JobRun, RunPlan
    from feedface.inference.jobs import Job

HEADERS = ("job", "pictures", "state")
Table = list[list[str]]


class _State(Watcher):
    """A line of the table for each job; `emit` gets the table whenever something has happened."""

    def __init__(self, jobs: Sequence[Job], problems: Sequence[str], emit):
        self._states: dict[str, str] = {job.id: "waiting" for job in jobs}
        self._runs: dict[str, JobRun] = {}
        self._problems, self._emit = problems, emit

    def table(self) -> Table:
        rows = []
        for name, state in self._states.items():
            run = self._runs.get(name)
            count = ""
            if run is not None:
                there = len(run.wanted) - len(run.missing) + len(run.made)
                count = f"{there} of {len(run.wanted)}"
                if state == "drawing" and run.results is not None:
                    state = "done"
            rows.append([name, count, state])
        return rows + [["", "", f"cannot be run: {problem}"] for problem in self._problems]

    def started(self, run: JobRun) -> None:
        self._runs[run.job.id], self._states[run.job.id] = run, "drawing"
        self._emit(self.table())

    def failed(self, job: Job, error: UserError) -> None:
        self._states[job.id] = f"failed: {error}"
        self._emit(self.table())

    def stepped(self, pictures: int) -> None:
        self._emit(self.table())


def run_batch(
    session: Session, models: Models, name: str, detector: FaceDetector, files: Sequence[str], plan: RunPlan
) -> Iterator[tuple[Table, Path | None]]:
    """The table of jobs as it changes and, last, the folder of pictures. Uploaded files are deleted.

    Job files name photos by any path; what counts is the file's name, among those uploaded. `UserError` where there is
    nothing to run. Setting `session.stop` ends it, with what is there.
    """
    session.stop.clear()
    folder, output = session.file("jobs"), session.file("pictures")
    folder.mkdir()
    try:
        for file in map(Path, files):
            shutil.move(file, folder / file.name)
        jobs, problems = read_jobs([folder], _find)
        problems = [re.sub(r" \(relative to .*\)", "", problem.replace(f"{folder}/", "")) for problem in problems]
        state = _State(jobs, problems, lambda table: None)
        yield state.table(), None

        def work(emit) -> None:
            state._emit = emit
            if jobs:
                run_jobs(models.load(name), jobs, plan, detector, output, state)

        for table in events(work, session.stop):
            yield table, None
        yield state.table(), output if output.is_dir() else None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _find(name: str, folder: Path) -> Path | None:
    """A photo that was uploaded, whatever folders the job file names."""
    name = Path(name.replace("\\", "/")).name
    return next((file for file in folder.iterdir() if file.name == name), None)

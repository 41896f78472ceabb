"""A run of make_data.py: what is missing is made, by one process or many, and the records are put together.

A picture is done when its JSON file is there and fits the picture, so a run that was killed is gone on with by the
same command, and leaves the same bytes as one run. Each file is written by one process: those of a picture by the one
whose turn it is, those about all pictures by process 0.
"""

import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict

from feedface.common.device import limit_threads, pick_devices
from feedface.common.errors import UserError
from feedface.common.processes import ProcessGroup
from feedface.common.saving import save_json
from feedface.preparation import formats
from feedface.preparation.models import load_models
from feedface.preparation.options import Options
from feedface.preparation.plan import (
    OWN_FOLDERS,
    SETTINGS,
    Finished,
    PreparationPlan,
    choice_of,
    own_files,
    prepare,
    repeatable_captioner,
)
from feedface.preparation.preparer import Clock, Preparer, make_all, thread_pool
from feedface.preparation.report import write_report
from feedface.preparation.result import KINDS, SINGLE, file_names, read_rows, stems

STAGES = ("read", "detect", "parse", "judge", "caption", "write")


def run(options: Options) -> int:
    """Make everything that is missing; returns the exit code: 0, or 128 + signal number when told to stop.

    Raises `UserError`, in one process for all, for what the user can put right.
    """
    formats.check_formats(options.formats, options.identity)
    group, clock = ProcessGroup(), Clock()
    with ExitStack() as held:
        plan = group.lead(lambda: prepare(options, held))
        if plan.todo:
            preparer = group.each(lambda: _load(options, plan, group, clock))
            group.lead(lambda: save_json(plan.settings, options.out / SETTINGS))
            begin, cpu = time.perf_counter(), time.process_time()
            stopped = make_all(preparer, plan.todo[group.index :: group.count], show=group.leads)
            clock.seconds["all"] = time.perf_counter() - begin
            clock.seconds["cpu"] = time.process_time() - cpu
            if stopped:
                if group.leads:
                    print("interrupted: what is done stays, the same command goes on", file=sys.stderr)
                return 128 + stopped
        timings = group.all(lambda: dict(clock.seconds))
        ending = Ending(options, plan) if group.leads else None
        cuts = group.lead(lambda: ending.begin())
        group.each(lambda: _cut(cuts[group.index :: group.count], options.workers))
        group.lead(lambda: ending.finish(timings))
    group.close()
    return 0


def _load(options: Options, plan: PreparationPlan, group: ProcessGroup, clock: Clock) -> Preparer:
    threads = limit_threads(group.local_count)
    captioner = options.captioner(plan.pictures, pick_devices(options.device, group.local_index)[1])
    detector, parser = load_models(choice_of(options), options.device, group.local_index, threads)
    return Preparer(options, detector, parser, captioner, clock)


def _cut(cuts: list[formats.Cut], workers: int) -> None:
    with thread_pool(workers) as pool:
        waiting = [pool.submit(formats.make_cut, cut) for cut in cuts]
        try:
            for done in waiting:
                done.result()
        finally:
            for left in waiting:
                left.cancel()


class Ending:
    """After the pictures, on process 0: groups, records, formats, report, and nothing else left in the folder."""

    def __init__(self, options: Options, plan: PreparationPlan):
        self.options, self.plan = options, plan

    def begin(self) -> list[formats.Cut]:
        """Group and make the records in memory; returns the pictures to be cut for the formats."""
        options, pictures = self.options, self.plan.pictures
        finished = Finished(options, own_files(options.out), repeatable_captioner(options, pictures))
        self.rows = []
        for rel in pictures:
            row = finished.row(rel, unopened=True)
            if row is None:
                raise UserError(f"{options.data / rel}: was changed while the run went on; run the same command again")
            self.rows.append(row)
        singles = [row for row in self.rows if row["outcome"] == SINGLE]
        faces = [(row["path"], row["embedding"]) for row in singles]
        identities = options.group(faces, pictures, self.plan.settings["detector"])
        self.records = formats.make_records(singles, identities, options.data, options.out, options.dense)
        self.cuts = formats.plan_cuts(self.records, options.formats, options.data, options.out)
        made_from = {cut: options.out / f"{stems(cut.rel, SINGLE, 1)[0]}.json" for cut in self.cuts}
        return [cut for cut, row in made_from.items() if not formats.is_made(cut, row)]

    def finish(self, timings: list[dict]) -> None:
        """Write what is about all pictures, delete what belongs to none, say how it went."""
        options = self.options
        formats.write_all(self.records, options.formats, options.data, options.out)
        settings = self.plan.settings | {"last_run": self._last_run()}
        save_json(settings, options.out / SETTINGS)
        self._clean()
        faces = (face for row in self.rows for face in read_rows(options.out, row))
        write_report(options.out, faces, options.data, settings, [record.identity for record in self.records])
        self._say(timings)
        if options.timings:
            save_json({"pictures": len(self.plan.todo), "processes": timings}, options.timings)

    def _last_run(self) -> dict:
        """What may differ from run to run."""
        options = self.options
        return {
            "thresholds": asdict(options.rules.thresholds),
            "caption": options.caption_source,
            "caption_text": options.caption_text if options.caption == "none" else None,
            "caption_file": str(options.caption_file) if options.caption == "file" else None,
            "identity": options.identity,
            "identity_list": options.identity_list and str(options.identity_list),
            "identity_threshold": options.identity_threshold,
            "formats": list(options.formats),
        }

    def _clean(self) -> None:
        """Delete outputs of pictures that have gone or turned out otherwise, and of formats not asked for."""
        out = self.options.out
        wanted = {out / name for row in self.rows for name in file_names(row)} | {cut.target for cut in self.cuts}
        for path in own_files(out) - wanted:
            if path.suffix in (".json", ".png"):  # whatever else somebody has put there is not ours
                path.unlink()
        if "flashface" not in self.options.formats:
            (out / formats.FLASHFACE).unlink(missing_ok=True)
        for name in OWN_FOLDERS:
            for folder in sorted((out / name).rglob("*"), reverse=True):  # what lies deeper first
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

    def _say(self, timings: list[dict]) -> None:
        counts = Counter(row["outcome"] for row in self.rows)
        out = self.options.out
        made = len(self.plan.todo)
        print(f"{len(self.rows)} picture(s): " + ", ".join(f"{counts[kind]} {kind}" for kind in KINDS))
        if made:
            seconds = max(timing["all"] for timing in timings)
            busy = {stage: sum(timing.get(stage, 0) for timing in timings) for stage in STAGES}
            shares = ", ".join(f"{stage} {value / sum(busy.values()):.0%}" for stage, value in busy.items())
            print(f"{made} made now in {seconds:.1f} s, {made / seconds:.1f} pictures/s ({shares})")
        people = len({record.identity for record in self.records} - {None})
        of_people = f" of {people} people" if people else ""
        print(f"{len(self.records)} record(s){of_people}: {out / formats.RECORDS}; report: {out / 'report.html'}")
        if not self.records:
            print("note: there is nothing to train on; the report says why", file=sys.stderr)

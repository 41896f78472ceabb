"""A job under way: its faces found, its pictures kept as they come and, with the last, its results and report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from feedface.common.images import read_image
from feedface.common.progress import say
from feedface.faces.references import find_faces
from feedface.faces.similarity import FaceSimilarity
from feedface.inference.batching import dtype_name
from feedface.inference.beginnings import Beginnings
from feedface.inference.outputs import PictureFolder, PictureInfo
from feedface.inference.people import Cast, load_people
from feedface.inference.photo_notice import photo_notice
from feedface.inference.run_report import most_alike, report, run_sheet
from feedface.inference.somebody import check_named, described
from feedface.inference.stages import Request
from feedface.settings import MAX_SEED, check_range

if TYPE_CHECKING:
    from feedface.faces.detect import FaceDetector
    from feedface.faces.references import Reference
    from feedface.inference.jobs import Job
    from feedface.inference.start import Start
    from feedface.methods.base import Identity
    from feedface.pipeline import FeedFacePipeline
    from feedface.settings import Settings


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
        dense: beside each picture what the method's dense heads say of it, as NUMBER_dense.png and .json.
        start: a picture to begin with; strength: of those that jobs begin with, where they say none.
        pose: yaw, pitch, roll of the person's head in degrees.
        best: the contact sheet shows so many pictures of each prompt, those most like the person; None: all.
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
    best: int | None = None

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
        return Request(info.prompt, info.seed, partial(self.identity_of, info), self.plan.start)

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
            # Dense-Face brings in all of diffusers' ControlNets, for which other methods need not wait.
            from feedface.inference.dense import save_dense

            save_dense(path, np.array(image), info.prompt, self.identity_of(info), self.pipe)
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
        best = most_alike(rows, self.plan.best) if self.plan.best else []
        if self.plan.best and not best:
            self.notices.append("no likeness was measured, so the sheet shows all pictures, not the best")
            say(f"note: {self.notices[-1]}")
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
            "best": [row["file"] for row in best],
            "seconds": round(time.monotonic() - self.begin, 2),
        }
        sheet = run_sheet(self.references, best or rows, self.pictures.folder)
        report(self.results, self.pictures.folder, self.pictures.save_run(self.results, sheet, keep=bool(self.made)))

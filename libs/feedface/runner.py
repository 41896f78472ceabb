"""Run jobs with a pipeline: faces in, then every picture that is not there yet, a contact sheet and results.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from feedface.device import DTYPES
from feedface.errors import UserError
from feedface.images import read_image
from feedface.output import OutputError, PictureFolder, PictureInfo, safe_name, save_json, save_png
from feedface.sheet import Tile, contact_sheet
from feedface.similarity import FaceSimilarity

if TYPE_CHECKING:
    from feedface.faces.detect import FaceDetector
    from feedface.jobs import Job
    from feedface.pipeline import FeedFacePipeline
    from feedface.settings import Settings

RESULTS, SHEET = "results.json", "sheet.png"


@dataclass(frozen=True)
class Plan:
    """What is the same for all jobs of a run.

    Attributes:
        settings: complete, see `FeedFacePipeline.settings`.
        seed: of the first sample of each prompt; the others follow.
        n_samples: drawn at a time.
        n_iter: how often, so that each prompt gets n_samples x n_iter pictures.
        detect: find and crop faces; else the pictures are face crops.
    """

    settings: Settings
    seed: int = 0
    n_samples: int = 1
    n_iter: int = 1
    detect: bool = True

    @property
    def seeds(self) -> range:
        return range(self.seed, self.seed + self.n_samples * self.n_iter)


def run_jobs(pipe: FeedFacePipeline, jobs: Sequence[Job], plan: Plan, detector: FaceDetector, output: Path) -> int:
    """Run a batch, each job in its own folder under `output`; returns how many jobs failed, each said on stderr.

    A job that fails does not stop the others. A full disk or an unwritable folder does (`OutputError`).
    """
    failed = 0
    for number, job in enumerate(jobs, 1):
        print(f"job {job.id} ({number} of {len(jobs)})")
        try:
            run_job(pipe, job, plan, detector, output / safe_name(job.id))
        except OutputError:
            raise
        except UserError as error:
            failed += 1
            print(f"error: job {job.id} ({job.source}): {error}", file=sys.stderr)
    return failed


def run_job(pipe: FeedFacePipeline, job: Job, plan: Plan, detector: FaceDetector, folder: Path) -> dict:
    """Draw what a job asks for into `folder`; returns what results.json holds. Pictures already there are kept."""
    begin = time.monotonic()
    references, notices = pipe.set_faces(job.images, detector if plan.detect else None)
    notices += [f"{prompt[:40]!r}: {notice}" for prompt in job.prompts if (notice := pipe.prompt_notice(prompt))]
    for notice in notices:
        print(f"note: {notice}")
    pictures = PictureFolder(folder)
    crops = [folder / f"reference_{index:02d}.png" for index in range(len(references))]
    for reference, path in zip(references, crops, strict=True):
        save_png(Image.fromarray(reference.crop), path)

    wanted = {prompt: [_info(pipe, plan, prompt, seed) for seed in plan.seeds] for prompt in job.prompts}
    made = _draw_missing(pipe, plan, pictures, wanted)
    similarity = FaceSimilarity(detector, references)
    rows = [
        {
            "file": (path := pictures.find(info)).name,
            "prompt": prompt,
            "seed": info.seed,
            "similarity": similarity.of(read_image(path)),
            "made_now": info.fingerprint in made,
        }
        for prompt, infos in wanted.items()
        for info in infos
    ]
    results = {
        "id": job.id,
        "class_word": job.class_word,
        "model": {"name": pipe.bundle.name, "path": str(pipe.bundle.path), "digest": pipe.digest},
        "settings": _settings(pipe, plan),
        "detector": detector.name if plan.detect else None,
        "references": [
            {"path": ref.name, "crop": crop.name, "box": ref.box, "score": ref.score, "faces_found": ref.faces_found}
            for ref, crop in zip(references, crops, strict=True)
        ],
        "notices": notices,
        "similarity": similarity.summary([row["similarity"] for row in rows]),
        "pictures": rows,
        "seconds": round(time.monotonic() - begin, 2),
    }
    save_png(_sheet(references, rows, folder), folder / SHEET)
    save_json(results, folder / RESULTS)
    _report(results, folder)
    return results


def _settings(pipe: FeedFacePipeline, plan: Plan) -> dict:
    dtype = next(name for name, dtype in DTYPES.items() if dtype == pipe.dtype)
    return asdict(plan.settings) | {"dtype": dtype}


def _info(pipe: FeedFacePipeline, plan: Plan, prompt: str, seed: int) -> PictureInfo:
    faces = tuple(reference.digest for reference in pipe.references)
    return PictureInfo(prompt, seed, pipe.bundle.name, pipe.digest, _settings(pipe, plan), faces)


def _draw_missing(
    pipe: FeedFacePipeline, plan: Plan, pictures: PictureFolder, wanted: dict[str, list[PictureInfo]]
) -> set[str]:
    """Draw and save, a batch at a time, the pictures that are not in the folder; returns their fingerprints."""
    from tqdm import tqdm

    batches = []
    for prompt, infos in wanted.items():
        missing = [info for info in infos if pictures.find(info) is None]
        batches += [
            (prompt, missing[first : first + plan.n_samples]) for first in range(0, len(missing), plan.n_samples)
        ]
    made: set[str] = set()
    with tqdm(total=plan.settings.steps * len(batches), unit="step", disable=not batches) as bar:
        for prompt, infos in batches:
            images = pipe.generate(
                prompt,
                seeds=[info.seed for info in infos],
                batch_size=plan.n_samples,
                progress=bar.update,
                **asdict(plan.settings),
            )
            for image, info in zip(images, infos, strict=True):
                pictures.save(image, info)
                made.add(info.fingerprint)
    return made


def _sheet(references: Sequence, rows: Sequence[dict], folder: Path) -> Image.Image:
    by_prompt: dict[str, list[Tile]] = {}
    for row in rows:
        label = f"{Path(row['file']).stem}, seed {row['seed']}"
        if row["similarity"] is not None:
            label += f", sim. {row['similarity']:.2f}"
        by_prompt.setdefault(row["prompt"], []).append(Tile(Image.fromarray(read_image(folder / row["file"])), label))
    faces = [Tile(Image.fromarray(reference.crop), Path(reference.name).name) for reference in references]
    return contact_sheet(faces, list(by_prompt.items()))


def _report(results: dict, folder: Path) -> None:
    rows = results["pictures"]
    made = sum(row["made_now"] for row in rows)
    print(f"{len(rows)} picture(s) in {folder}: {made} made now, {len(rows) - made} were finished before")
    print(f"contact sheet: {folder / SHEET}; settings and figures: {folder / RESULTS}")
    summary = results["similarity"]
    if summary["mean"] is None:
        print(f"face similarity: not measured ({summary['reason']})")
    else:
        each = ", ".join("no face" if row["similarity"] is None else f"{row['similarity']:.2f}" for row in rows[:20])
        more = ", …" if len(rows) > 20 else ""
        print(
            f"face similarity to the references (cosine, recogniser of {summary['measured_with']!r}; 1 is the same "
            f"face): mean {summary['mean']:.2f} ({each}{more})"
        )

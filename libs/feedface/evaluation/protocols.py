"""Who is asked for, and what: the paper's cases out of job files, or the people of the mini world.

A protocol has `names` of its cases, `problems` (one line each) with those it could not take, and `load(index, judge)`,
which looks at one case's pictures. Letters: R references, G other pictures of the person, E embedding width.
"""

import contextlib
import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import AliasChoices, BaseModel, Field, TypeAdapter

from feedface.common.errors import UserError
from feedface.common.images import read_image
from feedface.common.validation import Text, read_json_as
from feedface.evaluation.cases import FIRST_IDENTITY, crop_references, make_cases
from feedface.evaluation.judges import FaceJudge
from feedface.evaluation.subject_prompts import PEOPLE, SubjectPrompt, read_list, subject_prompts
from feedface.faces.crop import crop_square, square_box
from feedface.faces.references import NoFaceError
from feedface.inference.jobs import Job, find_job_files, read_jobs

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
LONGEST_PX = 1024  # of references that are kept in memory: more than any judge looks at


@dataclass
class Case:
    """One person and what is to be drawn.

    Attributes:
        seeds: of each prompt's first sample; the next samples add 1 each.
        crops: R face crops, uint8 RGB squares; a system is shown the first so many of them.
        references: the R pictures they are from, uint8 RGB, at most `LONGEST_PX` long.
        own: [R, E], what the judge sees in them.
        others: [G, E] the same of pictures that no system is shown; G may be 0.
        judged: what CLIP is asked of each prompt's pictures, where that is not the prompt.
        asked: for each prompt attribute -> class index that it names (mini).
        real: for each prompt a picture that shows what it says (mini).
        notices: one line each, on pictures that were left out.
        digest: changes with the pictures and the prompts.
    """

    name: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    crops: list[np.ndarray]
    references: list[np.ndarray]
    own: np.ndarray
    others: np.ndarray
    judged: tuple[str, ...] = ()
    asked: list[dict[str, int]] | None = None
    real: list[np.ndarray] | None = None
    notices: list[str] = field(default_factory=list)
    digest: str = ""

    @property
    def gallery(self) -> np.ndarray:
        """What a picture has to be nearest to: the other pictures; the references where there are no others."""
        return self.others if len(self.others) else self.own

    @property
    def said(self) -> tuple[str, ...]:
        """For each prompt what its pictures are compared with."""
        return self.judged or self.prompts


class PhotoCases:
    """The paper's protocol (App. C): a case is a job in the authors' JSON schema, see `jobs`.

    Args:
        paths: job files, or folders of them.
        data: folder that the pictures' paths are also relative to.
        references: at most so many of a case's pictures, the first that show a face, are references.
        seed: of the noise.
    """

    def __init__(self, paths: Sequence[Path], data: Path, references: int, seed: int):
        if not data.is_dir():
            raise UserError(f"--data {data}: no such folder")
        files = [file.absolute() for file in find_job_files(paths)]
        with contextlib.chdir(data):  # where a job's paths are looked for after its own folder
            jobs, self.problems = read_jobs(files)
            self.jobs = [(job, [path.absolute() for path in job.images]) for job in jobs]
        self.references, self.seed = references, seed
        self.names = [job.id for job, _ in self.jobs]

    def load(self, index: int, judge: FaceJudge) -> Case:
        """Read a case's pictures and find the faces in them. `UserError`: a damaged picture, or no face in any."""
        job, paths = self.jobs[index]
        seeds = tuple(self._seed(job, number) for number in range(len(job.prompts)))
        case = _photo_case(job.id, paths, job.prompts, seeds, self.references, judge)
        case.notices = _notices(job) + case.notices
        return case

    def _seed(self, job: Job, prompt: int) -> int:
        """Noise of its own for every prompt, the same whichever other cases there are."""
        return self.seed + zlib.crc32(f"{job.id}/{prompt}".encode())


def _photo_case(
    name: str,
    paths: Sequence[Path],
    prompts: tuple[str, ...],
    seeds: tuple[int, ...],
    references: int,
    judge: FaceJudge,
) -> Case:
    """A case of photos: the first `references` that show a face are references."""
    pictures = [read_image(path) for path in paths]
    looks = judge.look(pictures)
    places = np.flatnonzero(looks.found)
    if not len(places):
        raise NoFaceError(
            f"no face found in any of its {len(paths)} pictures (judge {judge.name!r}): "
            f"{', '.join(path.name for path in paths)}"
        )
    shown, unseen = places[:references], places[references:]
    return Case(
        name=name,
        prompts=prompts,
        seeds=seeds,
        crops=[crop_square(pictures[place], square_box(looks.faces[place].box)) for place in shown],
        references=[_shrunk(pictures[place]) for place in shown],
        own=looks.embeddings[shown],
        others=looks.embeddings[unseen],
        notices=[f"{paths[place]}: no face found, left out" for place in np.flatnonzero(~looks.found)],
        digest=_digest([pictures[place] for place in places], prompts),
    )


class SubjectCases:
    """AdaFace's protocol: a case is a folder of pictures of one subject, asked for by the prompts of a set.

    Args:
        data: a folder with one of each subject. Its `metainfo.json` may say {"class": "young man", "kind": 1}, see
            `subject_prompts`; a person otherwise. A list file in it, `*-prompts-*.txt`, comes before the set.
        which: the set.
        references, seed: as of `PhotoCases`.
        word: the subject's in prompts.
    """

    def __init__(self, data: Path, which: str, references: int, seed: int, word: str = "z"):
        if not data.is_dir():
            raise UserError(f"--data {data}: no such folder")
        self.problems: list[str] = []
        jobs = []
        for folder in sorted(path for path in data.iterdir() if path.is_dir()):
            try:
                jobs.append(_subject(folder, which, word))
            except UserError as error:
                self.problems.append(str(error))
        if not jobs:
            self.problems.append(f"--data {data}: has no folder of a subject's pictures")
        self.subjects, self.references, self.seed = jobs, references, seed
        self.names = [folder.name for folder, _, _ in jobs]

    def load(self, index: int, judge: FaceJudge) -> Case:
        """As `PhotoCases.load`."""
        folder, pictures, prompts = self.subjects[index]
        seeds = tuple(self.seed + zlib.crc32(f"{folder.name}/{number}".encode()) for number in range(len(prompts)))
        case = _photo_case(
            folder.name, pictures, tuple(entry.prompt for entry in prompts), seeds, self.references, judge
        )
        case.judged = tuple(entry.asked for entry in prompts)
        return case


def _subject(folder: Path, which: str, word: str) -> tuple[Path, list[Path], list[SubjectPrompt]]:
    """A folder, its pictures and prompts."""
    pictures = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.stem.endswith("_mask")
    )
    if not pictures:
        raise UserError(f"{folder}: has no pictures")
    about = _SubjectInfo()
    if (folder / "metainfo.json").is_file():
        about = read_json_as(folder / "metainfo.json", TypeAdapter(_SubjectInfo), what="does not describe a subject")
    lists = sorted(folder.glob("*-prompts-*.txt"))
    prompts = read_list(lists[0]) if lists else subject_prompts(which, about.class_word, about.kind, word)
    return folder, pictures, prompts


class _SubjectInfo(BaseModel):
    """Other keys are the authors' own."""

    class_word: Text = Field("person", validation_alias=AliasChoices("class", "person_type"))
    kind: Literal[0, 1, 2] = PEOPLE


class MiniCases:
    """People and scenes of the portrait world that nobody trained on, see `cases`; the other pictures are the gallery.

    Args:
        people, prompts: how many people, and prompts a person.
        references: how many pictures of a person are references.
        size: side of the pictures in pixels.
        seed: of the noise of the first prompt of the first person; each further prompt adds `stride`.
        detector: what cuts the references, see `cases.crop_references`.
    """

    def __init__(
        self,
        people: int,
        prompts: int,
        references: int,
        size: int,
        seed: int,
        stride: int = 1,
        detector: str = "truth",
        faces_root: Path | None = None,
    ):
        self.cases = make_cases(people, references, prompts, size)
        self.crops, self.found = crop_references(self.cases, detector, faces_root)
        self.names = [f"person_{FIRST_IDENTITY + number}" for number in range(people)]
        self.problems: list[str] = []
        self.seed, self.stride = seed, stride

    def load(self, index: int, judge: FaceJudge) -> Case:
        cases = self.cases
        references, gallery = list(cases.references[index]), list(cases.gallery[index])
        looks, shown = judge.look(references + gallery), len(references)
        own, others = looks.embeddings[:shown], looks.embeddings[shown:][looks.found[shown:]]
        if not own.any():
            raise NoFaceError(f"the judge {judge.name!r} finds no face in its references")
        prompts = tuple(cases.prompts[index])
        first = self.seed + index * len(prompts) * self.stride
        return Case(
            name=self.names[index],
            prompts=prompts,
            seeds=tuple(first + number * self.stride for number in range(len(prompts))),
            crops=list(self.crops[index]),
            references=references,
            own=own,
            others=others,
            asked=[
                {name: int(values[index, number]) for name, values in cases.asked.items() if values[index, number] >= 0}
                for number in range(len(prompts))
            ],
            real=list(cases.pictures[index]),
            digest=_digest([*references, *gallery, *self.crops[index]], prompts),
        )


def _notices(job: Job) -> list[str]:
    """What a job says and an evaluation does not do."""
    alike = f"{job.source}: {', '.join(job.own)}: not used; an evaluation draws all cases alike"
    return [*job.notices, alike] if job.own else list(job.notices)


def _shrunk(picture: np.ndarray) -> np.ndarray:
    factor = LONGEST_PX / max(picture.shape[:2])
    if factor >= 1:
        return picture
    size = [max(1, round(side * factor)) for side in reversed(picture.shape[:2])]
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def _digest(pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> str:
    digest = hashlib.sha256(repr(tuple(prompts)).encode())
    for picture in pictures:
        digest.update(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()[:16]

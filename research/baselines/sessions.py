"""Learn the evaluation's people one after the other and draw their prompts; what is there already is kept.

Letters: I people, S samples a person, R references.
"""

import hashlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from feedface.checkpoints.bundle import Bundle
from feedface.common.images import open_image
from feedface.common.json_files import load_json
from feedface.common.saving import save_json
from feedface.evaluation.cases import FIRST_IDENTITY, WORLD_SEED, Cases
from feedface.inference.model_files import model_digest
from feedface.inference.outputs import PictureFolder, PictureInfo
from feedface.settings import Settings
from feedface.synthetic.world.captions import captions as world_captions
from feedface.synthetic.world.identity import sample_identities
from feedface.synthetic.world.scene import sample_scenes
from research.baselines.personalise import (
    DreamBoothSettings,
    Examples,
    draw_prior,
    personalise,
    pick_identifier,
    with_identifier,
)
from research.people import draw_people

REFERENCE_SCENE = 100  # the references' first scene in `make_cases`
PRIOR_SEED = 1_000_000_000  # far from the seeds that pictures are drawn with


@dataclass
class Person:
    """One person of the evaluation, and what it takes to learn and to draw them."""

    case: str
    pictures: np.ndarray  # [R, H, W, 3] uint8
    captions: list[str]  # of these
    prompts: list[str]  # without the identifier
    noun: str


def people_of(cases: Cases) -> list[Person]:
    """The cases' people with the captions of their references, which `Cases` does not hold."""
    count, each = cases.references.shape[:2]
    people = torch.arange(FIRST_IDENTITY, FIRST_IDENTITY + count).repeat_interleave(each)
    scenes = torch.arange(REFERENCE_SCENE, REFERENCE_SCENE + each).repeat(count)
    who = sample_identities(people, WORLD_SEED)
    captions = np.array(world_captions(who, sample_scenes(people, scenes, WORLD_SEED), WORLD_SEED))
    return [
        Person(f"{FIRST_IDENTITY + i:06d}", pictures, list(rows), prompts, noun_of(prompts[0]))
        for i, (pictures, rows, prompts) in enumerate(
            zip(cases.references, captions.reshape(count, each).tolist(), cases.prompts, strict=True)
        )
    ]


def noun_of(prompt: str) -> str:
    """The world's word for the person of a prompt: man or woman."""
    return "woman" if "woman" in prompt.split() else "man"


def class_prompts(noun: str, count: int) -> list[str]:
    """Captions of the first people of the world that the model was trained on, of one class, a scene of each."""
    found: list[str] = []
    first = 0
    while len(found) < count:
        people = torch.arange(first, first + 2 * count)
        who = sample_identities(people, WORLD_SEED)
        rows = world_captions(who, sample_scenes(people, torch.zeros_like(people), WORLD_SEED), WORLD_SEED)
        found += [row for row in rows if noun_of(row) == noun]
        first += 2 * count
    return found[:count]


class Sessions:
    """Learns people one at a time and draws their prompts; keeps pictures and seconds in `folder`."""

    def __init__(
        self, bundle: Bundle, training: DreamBoothSettings, prior_pictures: int, settings: Settings, folder: Path
    ):
        self.bundle, self.training, self.settings, self.folder = bundle, training, settings, folder
        self.prior_pictures = prior_pictures
        self.device = next(bundle.backbone.parameters()).device
        self.digest = model_digest(bundle)
        self.priors: dict[str, Examples] = {}
        self.prior_seconds: dict[str, float] = {}  # of the classes whose prior was drawn in this run

    def __call__(self, person: Person, seed: int, batch_size: int) -> tuple[np.ndarray, dict]:
        """Pictures uint8 [S,H,W,3], row i with noise from seed + i, and the record of the training."""
        folder = PictureFolder(self.folder / person.case)
        infos = [self._info(person, prompt, seed + i) for i, prompt in enumerate(person.prompts)]
        # What the training depends on, and not what is drawn after it, names the record of its cost.
        record_file = folder.folder / f"training-{self._info(person, '', 0).fingerprint[:16]}.json"
        if all(folder.find(info) for info in infos) and record_file.is_file():
            return np.stack([_read(folder.find(info)) for info in infos]), load_json(record_file)
        learned = personalise(
            self.bundle, person.pictures, person.captions, self.training, self.device, self._prior(person.noun)
        )
        last = max(1, len(learned.losses) // 10)
        record = {
            "case": person.case,
            "identifier": learned.identifier,
            "steps": learned.steps,
            "seconds": round(learned.seconds, 2),
            "cpu_seconds": round(learned.cpu_seconds, 2),
            "loss_first_tenth": float(np.mean(learned.losses[:last])),
            "loss_last_tenth": float(np.mean(learned.losses[-last:])),
        }
        begun = time.perf_counter()
        mine = replace(self.bundle, backbone=learned.backbone)
        prompts = [info.prompt for info in infos]
        how = {"seed": seed, "batch_size": batch_size, "device": self.device, "label": person.case}
        [pictures] = draw_people(mine, [prompts], None, self.settings, **how)
        record["drawing_seconds"] = round(time.perf_counter() - begun, 2)
        save_json(record, record_file)  # before the pictures: where they are all there, so is what they cost
        for picture, info in zip(pictures, infos, strict=True):
            if folder.find(info) is None:
                folder.save(Image.fromarray(picture), info)
        return pictures, record

    def _prior(self, noun: str) -> Examples | None:
        if not self.training.prior_weight:
            return None
        if noun not in self.priors:
            started = time.perf_counter()
            prompts = class_prompts(noun, self.prior_pictures)
            self.priors[noun] = draw_prior(self.bundle, prompts, self.settings, PRIOR_SEED)
            self.prior_seconds[noun] = round(time.perf_counter() - started, 1)
        return self.priors[noun]

    def _info(self, person: Person, prompt: str, seed: int) -> PictureInfo:
        identifier = pick_identifier(self.bundle.text_encoder.tokenizer)
        training = asdict(self.training) | {"prior_pictures": self.prior_pictures, "captions": person.captions}
        return PictureInfo(
            prompt=with_identifier(prompt, identifier) if prompt else "",
            seed=seed,
            model=self.bundle.name,
            model_digest=self.digest,
            settings={**self.settings.drawn(), "dreambooth": training},
            references=tuple(hashlib.sha256(picture.tobytes()).hexdigest()[:16] for picture in person.pictures),
        )


def _read(path: Path) -> np.ndarray:
    with open_image(path, ("PNG",)) as image:
        return np.asarray(image.convert("RGB"))

"""One setting measured: unseen people drawn with it, judged by the inspector, person by person.

All settings get the same people, prompts and noise, so they can be compared in pairs. Results are JSON files, one a
setting, with a number for each person; intervals are made from them later. Letters: I people, S pictures a person.
"""

import json
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import ml_collections
import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle, read_index
from feedface.common.device import pick_device
from feedface.common.files import atomic_file
from feedface.evaluation import metrics
from feedface.evaluation.background import background_changes, face_masks
from feedface.evaluation.cases import Cases, crop_references, make_cases
from feedface.evaluation.draw import draw, encode_faces
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.judges import ClipJudge
from feedface.faces.detect import make_detector
from feedface.faces.parse import make_parser
from feedface.inference.model_files import load_model, model_digest
from feedface.settings import PLAIN, Settings
from feedface.synthetic.train.common import say

DIGITS = 4


@dataclass(frozen=True)
class Measurement:
    """What is drawn. `Settings` that are None are the model's own; those of cost approximate nothing by default."""

    name: str  # also the result's file name
    run: str | None = None  # a run of `runs.all_runs`; None: the committed face-controlnet
    samples: int | None = None  # the run's checkpoint after so many samples
    references: int = 1
    pool: str = "concat"
    guidance: float | None = None
    face_scale: float | None = None
    uncond: str | None = None
    steps: int | None = None  # None: the config's
    preset: str | None = None  # named, it stands for what is None below and for the steps
    scheduler: str | None = None
    guidance_interval: tuple[float, float] | None = None
    face_interval: tuple[float, float] | None = None
    reuse: int | None = None
    few_step: bool | None = None


class Measurer:
    """Renders the cases once, and draws the pictures without a face once for each way of drawing."""

    def __init__(self, config: ml_collections.ConfigDict, device: str | None = None):
        self.config, self.device = config, pick_device(device)
        measure = config.measure
        self.bundle = load_model(config.model, None, self.device, torch.float32)
        size = self.bundle.image_size
        self.cases: Cases = make_cases(measure.people, measure.references, measure.samples_per_person, size)
        self.crops, _ = crop_references(self.cases, "truth", None)
        self.prompts = [prompt for person in self.cases.prompts for prompt in person]
        self.clip = ClipJudge.load(None, self.device, self.bundle)
        self.inspector = Inspector.from_pretrained(self.bundle.components["inspector"], self.device)
        self.detector = make_detector("mini", self.bundle.faces_root)
        self.parser = make_parser("mini", config.model, str(self.device))
        self.gallery = self._embed(self.cases.gallery)[0]
        self.shown = self._embed(self.cases.references)[0]
        self._base: dict[Settings, tuple[np.ndarray, list]] = {}

    def settings(self, wanted: Measurement) -> Settings:
        known = vars(wanted)
        given = Settings(**{entry.name: known[entry.name] for entry in fields(Settings) if entry.name in known})
        if wanted.preset is None and not wanted.few_step:
            given = given.over(replace(PLAIN, steps=self.config.measure.steps))
        bundle = self.bundle
        return given.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, bundle.few_step)

    def measure(self, wanted: Measurement, control: Path | None) -> dict:
        """Draw and judge; `control`: folder of the face-controlnet's model, None for the committed one.

        Returns what the result file holds: "people" has a list of I numbers for each figure, means over S pictures.
        """
        bundle = self.bundle if control is None else load_model(self.config.model, control, self.device, torch.float32)
        settings = self.settings(wanted)
        begun = time.perf_counter()
        pictures = self._draw(bundle, wanted, settings) if wanted.references else self._without_face(settings)[0]
        people = self.judge(pictures, wanted.references)
        if wanted.references:
            people |= self._background(pictures, settings)
        return {
            "measurement": asdict(wanted),
            "model": model_digest(self.bundle),
            "settings": settings.as_json(),
            "cases": self.config.measure.to_dict(),
            "parameters": sum(p.numel() for p in bundle.method.trainable_parameters()),
            "seconds": round(time.perf_counter() - begun, 1),
            "people": {name: [_rounded(value) for value in values] for name, values in people.items()},
        }

    def judge(self, pictures: np.ndarray, shown: int) -> dict[str, np.ndarray]:
        """Figures [I] of pictures [I, S, H, W, 3] for which the first `shown` references were used."""
        embedding, seen = self._embed(pictures)
        references = self.shown[:, : max(shown, 1)]
        copied = [metrics.copy_paste(*person) for person in zip(embedding, references, self.gallery, strict=True)]
        hits, asked = metrics.attribute_hits(seen, self.cases.asked)["all"]
        return {
            "nearest": metrics.nearest_identity(embedding, metrics.mean_embedding(self.gallery)),
            "other": metrics.similarity_to_own(embedding, self.gallery),
            "reference": metrics.similarity_to_own(embedding, references),
            "strangers": metrics.similarity_to_strangers(embedding, self.gallery),
            "copy_paste": np.stack(copied).mean(axis=1),
            "attributes_shown": hits,
            "attributes_asked": asked,
        }

    def _draw(self, bundle: Bundle, wanted: Measurement, settings: Settings) -> np.ndarray:
        measure, faces = self.config.measure, None
        if wanted.references:
            crops = self.crops[:, : wanted.references]
            tokens = encode_faces(bundle, crops, self.device, torch.float32, wanted.pool)
            faces = tokens.repeat_interleave(measure.samples_per_person, dim=0)
        drawn = draw(bundle, self.prompts, faces, settings, measure.seed, measure.batch_size, self.device, wanted.name)
        return drawn.reshape(self.cases.pictures.shape)

    def _background(self, pictures: np.ndarray, settings: Settings) -> dict[str, np.ndarray]:
        base, base_masks = self._without_face(settings)
        base, flat = (some.reshape(-1, *some.shape[2:]) for some in (base, pictures))
        masks = face_masks(flat, self.detector, self.parser)
        changes = background_changes(flat, base, masks, base_masks, self.clip)
        found = {"background_found": np.array([change is not None for change in changes], float)}
        for name in ("background_pixels", "background_clip"):
            found[name] = np.array([np.nan if change is None else change[name] for change in changes])
        by_person = {name: values.reshape(pictures.shape[:2]) for name, values in found.items()}
        # A picture in which no face was found has no known background; a person without any is left out later.
        means = {name: _mean_of_known(values) for name, values in by_person.items()}
        return means | {
            "face_found": np.array([mask is not None for mask in masks]).reshape(pictures.shape[:2]).mean(1)
        }

    def _without_face(self, settings: Settings) -> tuple[np.ndarray, list]:
        """Pictures [I, S, H, W, 3] of the base model and the face masks in them, once for each way of drawing."""
        key = replace(settings, face_scale=None, face_interval=None, preset=None)
        if key not in self._base:
            drawn = self._draw(self.bundle, Measurement("without a face", references=0), settings)
            masks = face_masks(drawn.reshape(-1, *drawn.shape[2:]), self.detector, self.parser)
            self._base[key] = drawn, masks
        return self._base[key]

    def _embed(self, pictures: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        people, each = pictures.shape[:2]
        found = self.inspector.inspect(pictures.reshape(-1, *pictures.shape[2:]))
        classes = {name: values.reshape(people, each) for name, values in found.attributes.items()}
        return found.embedding.reshape(people, each, -1), classes


def measure_all(
    wanted: list[tuple[Measurement, Path | None]], config: ml_collections.ConfigDict, workdir: Path
) -> None:
    """Measure what is not in `workdir/results` yet."""
    missing = [(one, control) for one, control in wanted if not result_file(workdir, one.name).exists()]
    if not missing:
        return
    measurer = Measurer(config)
    for number, (one, control) in enumerate(missing, 1):
        say(f"measuring {one.name} ({number} of {len(missing)})")
        result = measurer.measure(one, control)
        path = result_file(workdir, one.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(result) + "\n", encoding="utf-8")


def image_size(config: ml_collections.ConfigDict) -> int:
    """Side of the model's pictures in pixels."""
    return read_index(Path(config.model)).image_size


def result_file(workdir: Path, name: str) -> Path:
    return workdir / "results" / f"{name}.json"


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """[I, S] -> [I]: the mean of what is not NaN, NaN where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DIGITS)

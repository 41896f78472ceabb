"""One setting measured: unseen people drawn with it, judged by the inspector, person by person.

All settings get the same people, prompts and noise, so they can be compared in pairs. Results are JSON files, one a
setting, with a number for each person; intervals are made from them later. Letters: I people, S pictures a person.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path

import ml_collections
import numpy as np
import torch

from feedface.checkpoints.bundle import Bundle
from feedface.common.device import fast_bfloat16, pick_device
from feedface.common.progress import say
from feedface.evaluation import metrics
from feedface.evaluation.background import background_changes, face_masks
from feedface.evaluation.cases import crop_references, make_cases
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.judges import ClipJudge
from feedface.evaluation.mini import Judge
from feedface.faces.detect import make_detector
from feedface.faces.parse import make_parser
from feedface.inference.model_files import load_model, model_digest
from feedface.settings import PLAIN, Settings
from research.people import Values, attribute_counts, draw_people, flat, identity_values
from research.reproduction.plan import Measurement
from research.results import store

DIGITS = 4
SHORT = {
    "nearest_identity": "nearest",
    "similarity_to_another_picture": "other",
    "similarity_to_reference": "reference",
}


class Measurer:
    """Renders the cases once, and draws the pictures without a face once for each way of drawing.

    config: of configs/reproduction.py; its `measure` says how many people, pictures and references.
    """

    def __init__(self, config: ml_collections.ConfigDict, device: str | None = None):
        self.config, self.device = config, pick_device(device)
        measure = config.measure
        self.dtype = torch.bfloat16 if fast_bfloat16(self.device) else torch.float32
        self.bundle = load_model(config.model, None, self.device, self.dtype)
        size = self.bundle.image_size
        self.cases = make_cases(measure.people, measure.references, measure.samples_per_person, size)
        self.crops, _ = crop_references(self.cases, "truth", None)
        self.prompts = [prompt for person in self.cases.prompts for prompt in person]
        inspector = Inspector.from_pretrained(self.bundle.extra("inspector"), self.device)
        self.inspector = Judge(inspector, self.cases)
        self.clip = ClipJudge.load(None, self.device, self.bundle)
        self.detector = make_detector("mini", self.bundle.faces_root)
        self.parser = make_parser("mini", config.model, str(self.device))
        self._base: dict[Settings, tuple[np.ndarray, list]] = {}

    def measure(self, wanted: Measurement, folder: Path | None) -> dict:
        """Draw and judge; `folder`: the method's model, None for the committed one.

        Returns what the result file holds: "people" has a list of I numbers for each figure, means over S pictures.
        """
        bundle = self.bundle if folder is None else load_model(self.config.model, folder, self.device, self.dtype)
        steps = replace(PLAIN, steps=self.config.measure.steps, pag_scale=0)  # as the paper samples
        settings = wanted.settings.over(steps).for_model(bundle.defaults, bundle.image_size, bundle.size_multiple)
        begun = time.perf_counter()
        if wanted.references:
            pictures = self._draw(bundle, settings, wanted.references, wanted.pool, wanted.name)
        else:
            pictures = self._without_face(settings)[0]
        people = self.judge(pictures, wanted.references)
        if wanted.references:
            people |= self._background(pictures, settings)
        return {
            "measurement": asdict(wanted),
            "model": model_digest(self.bundle),
            "settings": settings.as_json(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "cases": self.config.measure.to_dict(),
            "parameters": sum(p.numel() for _, p in bundle.method.trained_parameters(bundle.backbone)),
            "seconds": round(time.perf_counter() - begun, 1),
            "people": {name: [_rounded(value) for value in values] for name, values in people.items()},
        }

    def judge(self, pictures: np.ndarray, shown: int) -> Values:
        """Figures [I] of pictures [I,S,H,W,3] for which the first `shown` references were used."""
        judge, shown = self.inspector, max(shown, 1)
        embedding, seen = judge.look(pictures)
        people = zip(embedding, judge.references[:, :shown], judge.gallery, strict=True)
        found = {SHORT[name]: values for name, values in identity_values(judge, embedding, shown).items()}
        found["strangers"] = metrics.similarity_to_strangers(embedding, judge.gallery)
        found["copy_paste"] = np.stack([metrics.copy_paste(*person) for person in people]).mean(axis=1)
        return found | attribute_counts(seen, judge.asked)

    def _draw(self, bundle: Bundle, settings: Settings, references: int, pool: str, label: str) -> np.ndarray:
        measure, crops = self.config.measure, self.crops[:, :references] if references else None
        how = {"seed": measure.seed, "batch_size": measure.batch_size, "device": self.device, "label": label}
        return draw_people(bundle, self.cases.prompts, crops, settings, pool=pool, **how)

    def _background(self, pictures: np.ndarray, settings: Settings) -> Values:
        base, base_masks = self._without_face(settings)
        masks = face_masks(flat(pictures), self.detector, self.parser)
        changes = background_changes(flat(pictures), flat(base), masks, base_masks, self.clip)
        found = {"background_found": np.array([change is not None for change in changes], float)}
        for name in ("background_pixels", "background_clip"):
            found[name] = np.array([np.nan if change is None else change[name] for change in changes])
        found["face_found"] = np.array([mask is not None for mask in masks], float)
        # A picture in which no face was found has no known background; a person without any is left out later.
        return {name: _mean_of_known(values.reshape(pictures.shape[:2])) for name, values in found.items()}

    def _without_face(self, settings: Settings) -> tuple[np.ndarray, list]:
        """Pictures [I,S,H,W,3] of the base model and the face masks in them, once for each way of drawing."""
        key = replace(settings, face_scale=None, face_interval=None, preset=None)
        if key not in self._base:
            drawn = self._draw(self.bundle, settings, 0, "concat", "without a face")
            self._base[key] = drawn, face_masks(flat(drawn), self.detector, self.parser)
        return self._base[key]


def measure_all(
    wanted: list[tuple[Measurement, Path | None]], config: ml_collections.ConfigDict, workdir: Path
) -> None:
    """Measure what is not in `workdir/results` yet."""
    missing = [(one, folder) for one, folder in wanted if not result_file(workdir, one.name).exists()]
    measurer = Measurer(config) if missing else None
    for number, (one, folder) in enumerate(missing, 1):
        say(f"measuring {one.name} ({number} of {len(missing)})")
        store(result_file(workdir, one.name), measurer.measure(one, folder))


def result_file(workdir: Path, name: str) -> Path:
    return workdir / "results" / f"{name}.json"


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    """[I,S] -> [I]: the mean of what is not NaN, NaN where nothing is."""
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(1) / np.where(known.any(1), known.sum(1), np.nan)


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), DIGITS)

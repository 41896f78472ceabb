"""One setting of `sampling_quality.py` measured: pictures drawn, judged, and compared to a fine solution.

Letters: I people, S pictures a person, R people of the fine solution, one picture each.
"""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ml_collections
import torch
from research.reproduction.measure import Measurer
from safetensors.torch import load_file, save_file
from sampling_quality_draw import Painter, distance
from sampling_quality_settings import Setting, parse

from feedface.common.device import DTYPES
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.inference.acceleration import quantise_int8
from feedface.inference.model_files import load_model, model_digest
from feedface.settings import Settings
from feedface.synthetic.train.common import say

DIGITS = 5
ABOUT = "about.json"
NOT_ASKED = ("steps", "batch_size")  # of a config's `measure`: they do not change the cases


class Bench:
    """The cases, their judge and a fine solution of some of them, for all settings alike.

    config: of configs/reproduction.py; its `measure` says how many people, pictures and references. workdir: holds a
    JSON file a setting, and the fine solution: `evaluations` of dpmsolver++ for the first picture of the first `people`
    (None: all). `UserError` when what is there was measured with other weights or cases.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: Path,
        device: str | None = None,
        evaluations: int = 200,
        people: int | None = None,
    ):
        measure = config.measure
        self.config, self.workdir = config, workdir
        self.measurer = Measurer(config, device)
        self.device = self.measurer.device
        self.adapter = self.measurer.bundle.few_step
        self._painters: dict[str | None, Painter] = {}
        self.fine_rows = list(range(0, measure.people * measure.samples_per_person, measure.samples_per_person))
        self.fine_rows = self.fine_rows[:people]
        self.fine_setting = parse(f"dpmsolver++ {evaluations}")
        self._check_workdir()
        self.fine_latents = self._fine_solution()
        self.fine_pixels = self._painter(None).pixels(self.fine_latents, measure.batch_size)

    def result_file(self, setting: Setting) -> Path:
        return self.workdir / setting.file_name

    def is_done(self, setting: Setting) -> bool:
        """Whether it is measured already, and would be drawn the same way now (a preset may have changed since)."""
        file = self.result_file(setting)
        return file.is_file() and read_json(file)["drawn_with"] == self._drawn_with(setting)

    def measure(self, setting: Setting) -> dict:
        """Draw, judge, compare and count; writes and returns what the result file holds.

        "people" has a list of I numbers for each figure (means over S), and of R for the distances to the fine solution
        in latents and in pixels (of 255). `UserError` where the setting is not to be had here.
        """
        batch_size = self.config.measure.batch_size
        settings, painter = self._settings(setting), self._painter(setting.numbers)
        begun = time.perf_counter()
        latents = painter.latents(range(len(self.measurer.prompts)), settings, batch_size)
        seconds = (time.perf_counter() - begun) / len(latents)
        pixels = painter.pixels(latents, batch_size)
        pictures = pixels.round().byte().permute(0, 2, 3, 1).numpy().reshape(self.measurer.cases.pictures.shape)
        people = self.measurer.judge(pictures, self.config.measure.references)
        people["distance_latent"] = distance(latents[self.fine_rows], self.fine_latents)
        people["distance_pixel"] = distance(pixels[self.fine_rows], self.fine_pixels)
        result = {
            "setting": setting.name,
            "drawn_with": self._drawn_with(setting),
            # Other arithmetic does the same operations, but not every kernel can be looked into.
            "cost": asdict(self._painter(None).cost(settings)),
            "seconds_a_picture": round(seconds, 5),
            "people": {name: [round(float(value), DIGITS) for value in values] for name, values in people.items()},
        }
        write_json(self.result_file(setting), result)
        return result

    def _settings(self, setting: Setting) -> Settings:
        bundle = self.measurer.bundle
        adapter = None if setting.numbers == "int8" else self.adapter  # as `FeedFacePipeline` has it
        return setting.settings().for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, adapter)

    def _drawn_with(self, setting: Setting) -> dict[str, Any]:
        """All that decides how its pictures come out, as JSON has it."""
        settings = self._settings(setting)
        adapter = self.adapter.digest if settings.few_step else None
        return json.loads(json.dumps(settings.drawn() | {"numbers": setting.numbers, "adapter": adapter}))

    def _painter(self, numbers: str | None) -> Painter:
        """The model in this arithmetic: loaded once."""
        if numbers not in self._painters:
            dtype = DTYPES.get(numbers, torch.float32)
            bundle = self.measurer.bundle
            if numbers is not None:
                bundle = load_model(self.config.model, None, self.device, dtype)
            if numbers == "int8":
                quantise_int8(bundle, self.device)
            crops = self.measurer.crops[:, : self.config.measure.references]
            prompts, seed = self.measurer.prompts, self.config.measure.seed
            self._painters[numbers] = Painter(bundle, prompts, crops, seed, self.device, dtype)
        return self._painters[numbers]

    def _fine_solution(self) -> torch.Tensor:
        """Latents [R, C, h, w], drawn once."""
        file = self.workdir / "fine.safetensors"
        if not file.is_file():
            say(f"the fine solution: {len(self.fine_rows)} pictures with {self.fine_setting.name} evaluations")
            settings = self._settings(self.fine_setting)
            latents = self._painter(None).latents(self.fine_rows, settings, self.config.measure.batch_size)
            with atomic_file(file) as temporary:
                save_file({"latents": latents.cpu().contiguous()}, temporary)
        return load_file(file)["latents"]

    def _check_workdir(self) -> None:
        about = {
            "model": model_digest(self.measurer.bundle),
            "cases": {key: value for key, value in self.config.measure.to_dict().items() if key not in NOT_ASKED},
            "fine": {"setting": self.fine_setting.name, "people": len(self.fine_rows)},
        }
        file = self.workdir / ABOUT
        if not file.is_file():
            write_json(file, about)
            return
        known = read_json(file)
        different = [key for key in about if known.get(key) != about[key]]
        if different:
            raise UserError(
                f"{self.workdir}: holds measurements of another {' and '.join(different)} (see {ABOUT}); "
                "use another --workdir, or delete it"
            )


def read_json(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def write_json(file: Path, content: dict) -> None:
    with atomic_file(file) as temporary:
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")

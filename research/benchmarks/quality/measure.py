"""One setting measured: pictures drawn, judged, compared to a fine solution, and their cost counted.

Letters: I people, S pictures a person, N = I S pictures, R people of the fine solution, one picture each.
"""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from feedface.checkpoints.bundle import Bundle
from feedface.common.device import DTYPES
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.json_files import load_json
from feedface.common.progress import say
from feedface.diffusion.sampling import sample
from feedface.diffusion.state import take
from feedface.evaluation.draw import encode_faces
from feedface.inference.acceleration import quantise_int8
from feedface.inference.batching import sample_options
from feedface.inference.model_files import load_model, model_digest
from feedface.settings import Settings
from research.benchmarks.counting import counted
from research.benchmarks.quality.settings import ABOUT, Setting, parse
from research.reproduction.measure import Measurer
from research.results import store

DIGITS = 5
NOT_ASKED = ("steps", "batch_size")  # of a config's `measure`: they do not change the cases


class Artist:
    """A model and all of the cases that is the same for every setting: prompts [N], identities, seeds.

    crops: face crops [I,R], see `encode_faces`; picture n has the noise of seed + n.
    """

    def __init__(
        self, bundle: Bundle, prompts: Sequence[str], crops: np.ndarray, seed: int, device: torch.device,
        dtype: torch.dtype,
    ):  # fmt: skip
        self.bundle = bundle
        people = torch.arange(len(crops)).repeat_interleave(len(prompts) // len(crops))
        identity = take(encode_faces(bundle, crops, device, dtype), people)
        self.identity = {name: value.to(device) for name, value in identity.items()}
        with torch.inference_mode():
            self.prompt = bundle.method.prompt(bundle.text_encoder, prompts, self.identity)
            self.empty_prompt = {"text": bundle.text_encoder.encode([""])}
        self.seeds = [seed + number for number in range(len(prompts))]

    @torch.inference_mode()
    def latents(self, rows: Sequence[int], settings: Settings, batch_size: int) -> Tensor:
        """Pictures number `rows` as latents [len(rows),C,h,w] of the model's own size; settings: complete."""
        backbone, method = self.bundle.networks(settings.few_step)
        options = sample_options(settings, self.bundle.few_step) | {"method": method}
        parts = []
        for start in range(0, len(rows), batch_size):
            some = list(rows[start : start + batch_size])
            drawn = sample(
                backbone, take(self.prompt, some), [self.seeds[row] for row in some], empty_prompt=self.empty_prompt,
                identity=take(self.identity, some), **options,
            )  # fmt: skip
            parts.append(drawn["img"])
        return torch.cat(parts)

    @torch.inference_mode()
    def pixels(self, latents: Tensor, batch_size: int) -> Tensor:
        """Latents [N,C,h,w] -> pictures [N,3,H,W] from 0 to 255, not rounded, on the CPU."""
        parts = [self.bundle.vae.decode(part).float().cpu() for part in latents.split(batch_size)]
        return torch.cat(parts).clamp(-1, 1).add(1).mul(127.5)

    def cost(self, settings: Settings) -> dict[str, float]:
        """What one picture costs, counted while the first is drawn.

        "conditional", "unconditional": passes through the backbone; "control": through the method, a fraction where
        only some of its blocks ran; "blocks": share of the backbone's blocks that ran in these passes, the others' last
        output was used again; "gflop": of all these passes.
        """
        counts = Counter()
        with counted(*self.bundle.networks(settings.few_step), counts):
            self.latents([0], settings, 1)
        return {
            "conditional": counts["calls"],
            "unconditional": round(counts["rows"]) - counts["calls"],
            "control": round(counts["control"], 6),
            "blocks": round(counts["blocks"] / counts["rows"], 6),
            "gflop": counts["flop"] / 1e9,
        }


def distance(a: Tensor, b: Tensor) -> np.ndarray:
    """Root mean square of the difference of each picture: [N,…] and [N,…] -> [N]."""
    return (a.double().cpu() - b.double().cpu()).flatten(1).square().mean(1).sqrt().numpy()


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
        self.bundle, self.device = self.measurer.bundle, self.measurer.device
        self._artists: dict[str | None, Artist] = {}
        first_pictures = range(0, measure.people * measure.samples_per_person, measure.samples_per_person)
        self.fine_rows = list(first_pictures)[:people]
        self.fine_setting = parse(f"dpmsolver++ {evaluations}")
        self._check_workdir()
        self.fine_latents = self._fine_solution()
        self.fine_pixels = self._artist(None).pixels(self.fine_latents, measure.batch_size)

    def result_file(self, setting: Setting) -> Path:
        return self.workdir / setting.file_name

    def is_done(self, setting: Setting) -> bool:
        """Whether it is measured already, and would be drawn the same way now (a preset may have changed since)."""
        file = self.result_file(setting)
        return file.is_file() and load_json(file)["drawn_with"] == self._drawn_with(setting)

    def measure(self, setting: Setting) -> dict:
        """Draw, judge, compare and count; writes and returns what the result file holds.

        "people" has a list of I numbers for each figure (means over S), and of R for the distances to the fine solution
        in latents and in pixels (of 255). `UserError` where the setting is not to be had here.
        """
        batch_size = self.config.measure.batch_size
        settings, artist = self._settings(setting), self._artist(setting.numbers)
        begun = time.perf_counter()
        latents = artist.latents(range(len(self.measurer.prompts)), settings, batch_size)
        seconds = (time.perf_counter() - begun) / len(latents)
        pixels = artist.pixels(latents, batch_size)
        pictures = pixels.round().byte().permute(0, 2, 3, 1).numpy().reshape(self.measurer.cases.pictures.shape)
        people = self.measurer.judge(pictures, self.config.measure.references)
        people["distance_latent"] = distance(latents[self.fine_rows], self.fine_latents)
        people["distance_pixel"] = distance(pixels[self.fine_rows], self.fine_pixels)
        result = {
            "setting": setting.name,
            "drawn_with": self._drawn_with(setting),
            # Other arithmetic does the same operations, but not every kernel can be looked into.
            "cost": self._artist(None).cost(settings),
            "seconds_a_picture": round(seconds, 5),
            "people": {name: [round(float(value), DIGITS) for value in values] for name, values in people.items()},
        }
        store(self.result_file(setting), result)
        return result

    def _settings(self, setting: Setting) -> Settings:
        bundle = self.bundle
        adapter = None if setting.numbers == "int8" else bundle.few_step  # as `FeedFacePipeline` has it
        found = setting.settings.for_model(bundle.defaults, bundle.image_size, bundle.size_multiple, adapter)
        if found.reuse > 1 and not bundle.backbone.reusable:
            raise UserError(f"{setting.name}: the {bundle.backbone.kind} has no blocks whose output could be reused")
        return found

    def _drawn_with(self, setting: Setting) -> dict[str, Any]:
        """All that decides how its pictures come out, as JSON has it."""
        settings = self._settings(setting)
        adapter = self.bundle.few_step.digest if settings.few_step else None
        return json.loads(json.dumps(settings.drawn() | {"numbers": setting.numbers, "adapter": adapter}))

    def _artist(self, numbers: str | None) -> Artist:
        """The model in this arithmetic: loaded once."""
        if numbers not in self._artists:
            dtype = DTYPES.get(numbers, torch.float32)
            bundle = self.bundle
            if numbers is not None:
                bundle = load_model(self.config.model, None, self.device, dtype)
            if numbers == "int8":
                quantise_int8(bundle, self.device)
            crops, seed = self.measurer.crops[:, : self.config.measure.references], self.config.measure.seed
            self._artists[numbers] = Artist(bundle, self.measurer.prompts, crops, seed, self.device, dtype)
        return self._artists[numbers]

    def _fine_solution(self) -> torch.Tensor:
        """Latents [R,C,h,w], drawn once."""
        file = self.workdir / "fine.safetensors"
        if not file.is_file():
            say(f"the fine solution: {len(self.fine_rows)} pictures with {self.fine_setting.name} evaluations")
            settings = self._settings(self.fine_setting)
            latents = self._artist(None).latents(self.fine_rows, settings, self.config.measure.batch_size)
            with atomic_file(file) as temporary:
                save_file({"latents": latents.cpu().contiguous()}, temporary)
        return load_file(file)["latents"]

    def _check_workdir(self) -> None:
        about = {
            "model": model_digest(self.bundle),
            "cases": {key: value for key, value in self.config.measure.to_dict().items() if key not in NOT_ASKED},
            "fine": {"setting": self.fine_setting.name, "people": len(self.fine_rows)},
        }
        file = self.workdir / ABOUT
        if not file.is_file():
            store(file, about)
            return
        known = load_json(file)
        different = [key for key in about if known.get(key) != about[key]]
        if different:
            raise UserError(
                f"{self.workdir}: holds measurements of another {' and '.join(different)} (see {ABOUT}); "
                "use another --workdir, or delete it"
            )

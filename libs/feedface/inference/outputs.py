"""What a run leaves behind: numbered pictures that say how they were made, and its results. Nothing is overwritten.

A picture is known by its fingerprint: prompt, seed, settings, model and faces. A run that finds a whole picture with
the fingerprint it is about to make takes that one; other pictures stay where they are and the numbers go on. Runs may
share a folder, also at the same time: each name is claimed by one of them.

    0000.png, 0001.png, …                   pictures (or .jpg, .webp)
    reference_DIGEST.png                    face crops, by their content: a picture's metadata names its crops' digests
    results_0000.json, sheet_0000.png, …    of each run that made pictures
    results.json, sheet.png                 of the last run
    .latents/FINGERPRINT.safetensors        with little memory, of pictures on their way: drawn, and not decoded yet
"""

import hashlib
import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, PngImagePlugin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.common.files import NameTaken, atomic_file, make_folder
from feedface.common.saving import naming, save_json, save_png
from feedface.inference.provenance import SUFFIXES, png_text, read_fingerprint, save_picture

T = TypeVar("T")
RESULTS, SHEET, LATENTS = "results", "sheet", ".latents"
_OF_A_RUN = re.compile(rf"(?:{RESULTS}|{SHEET})_(\d{{4,}})\.(?:json|png)")


@dataclass(frozen=True)
class PictureInfo:
    """How one picture is made: all that changes it.

    Attributes:
        settings: steps, guidance, face_scale, size, uncond, dtype.
        references: digest of each face crop.
    """

    prompt: str
    seed: int
    model: str
    model_digest: str
    settings: dict
    references: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    def said(self) -> dict[str, str]:
        """The same as texts for a file's metadata: prompt, seed, model, settings (JSON), fingerprint."""
        settings = self.settings | {"model_digest": self.model_digest, "references": self.references}
        return {
            "prompt": self.prompt,
            "seed": str(self.seed),
            "model": self.model,
            "settings": json.dumps(settings),
            "fingerprint": self.fingerprint,
        }

    def metadata(self) -> PngImagePlugin.PngInfo:
        """The same as a PNG has it."""
        return png_text(self.said())


class PictureFolder:
    """One folder of pictures, as above; new ones in `format`, one of `provenance.SUFFIXES`."""

    def __init__(self, folder: str | os.PathLike, format: str = "png"):
        self.folder, self._format = Path(folder), format
        with naming(self.folder):
            make_folder(self.folder)
        self._finished: dict[str, Path] = {}
        self._next = 0
        for path in sorted(self.folder.iterdir()):
            if re.fullmatch(r"\d{4,}", path.stem) and path.suffix in SUFFIXES.values():
                self._next = max(self._next, int(path.stem) + 1)
                fingerprint = read_fingerprint(path) if path.suffix == SUFFIXES[format] else None
                if fingerprint:
                    self._finished.setdefault(fingerprint, path)

    def find(self, info: PictureInfo) -> Path | None:
        """The finished picture made in exactly this way, if there is one."""
        return self._finished.get(info.fingerprint)

    def save(self, image: Image.Image, info: PictureInfo) -> Path:
        """Write the picture under the next free number. `OutputError` if it cannot be written."""

        def write(number: int) -> Path:
            path = self.folder / f"{number:04d}{SUFFIXES[self._format]}"
            save_picture(image, path, info.said(), self._format, new=True)
            return path

        self._next, path = _claim(self._next, write)
        self._finished[info.fingerprint] = path
        self._forget_latents(info)
        return path

    def keep_latents(self, info: PictureInfo, latents: Tensor) -> None:
        """Keep a picture's latents [C,h,w] until it is saved. `OutputError` if they cannot be written."""
        path = self._latents_of(info)
        with naming(path), atomic_file(path) as temporary:
            save_file({"latents": latents.contiguous()}, temporary)

    def latents(self, info: PictureInfo) -> Tensor | None:
        """What `keep_latents` kept; None where there is nothing, or nothing of use."""
        try:
            with safe_open(self._latents_of(info), "pt") as file:
                found = file.get_tensor("latents")
        except (OSError, SafetensorError):
            return None
        return found if found.dim() == 3 and found.isfinite().all() else None

    def _latents_of(self, info: PictureInfo) -> Path:
        return self.folder / LATENTS / f"{info.fingerprint}.safetensors"

    def _forget_latents(self, info: PictureInfo) -> None:
        path = self._latents_of(info)
        path.unlink(missing_ok=True)
        with suppress(OSError):  # there are others, or none
            path.parent.rmdir()

    def save_reference(self, crop: Image.Image, digest: str) -> Path:
        """Write a face crop under its digest."""
        path = self.folder / f"reference_{digest}.png"
        save_png(crop, path)
        return path

    def save_run(self, results: dict, sheet: Image.Image, keep: bool) -> tuple[Path, Path]:
        """Write the last run's results and contact sheet, and with `keep` once more under the run's own number.

        Returns the paths of both, numbered where they are kept.
        """
        paths = self.folder / f"{RESULTS}.json", self.folder / f"{SHEET}.png"
        if keep:

            def write(number: int) -> tuple[Path, Path]:
                paths = self.folder / f"{RESULTS}_{number:04d}.json", self.folder / f"{SHEET}_{number:04d}.png"
                save_json(results, paths[0], new=True)
                save_png(sheet, paths[1])  # the number is this run's
                return paths

            numbers = [int(match[1]) for path in self.folder.iterdir() if (match := _OF_A_RUN.fullmatch(path.name))]
            _, kept = _claim(max(numbers, default=-1) + 1, write)
        save_png(sheet, paths[1])
        save_json(results, paths[0])
        return kept if keep else paths


def _claim(number: int, write: Callable[[int], T]) -> tuple[int, T]:
    """Write something new under the first number from `number` on that nobody has; returns the next one, and it."""
    while True:
        try:
            return number + 1, write(number)
        except NameTaken:  # by a run that writes here at the same time
            number += 1

"""How pictures are sampled: the numbers a user may set, their ranges, and the model's defaults for the rest."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from feedface.errors import UserError

MAX_SEED = 2**63 - 1
MAX_SIZE_PX = 4096


def check_range(name: str, value: float, low: float, high: float) -> None:
    """`UserError` if `value` is outside [low, high] or not a number."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # so that NaN fails too
        raise UserError(f"{name} {value}: out of range; use {low} to {high}")


@dataclass(frozen=True)
class Settings:
    """Sampling settings; `None` stands for the model's own default (`Settings.for_model` fills it in).

    Attributes:
        steps: evaluations of the model, 1 to 999.
        guidance: g in eps_u + g (eps_c - eps_u), 0 to 50; the paper's and the release's "scale s" is g = 1 + s.
        face_scale: strength of the face, 0 (ignored) to 5; the release uses 0.8, the paper's text 1.
        size: (width, height) in pixels.
        uncond: what the unconditional half sees: "true_uncond", "empty_token" (both of the release) or "paper".
    """

    steps: int | None = None
    guidance: float | None = None
    face_scale: float | None = None
    size: tuple[int, int] | None = None
    uncond: str | None = None

    def __post_init__(self):
        if self.steps is not None:
            check_range("--steps", self.steps, 1, 999)
            if not isinstance(self.steps, int):
                raise UserError(f"--steps {self.steps}: not a whole number")
        if self.guidance is not None:
            check_range("--guidance", self.guidance, 0, 50)
        if self.face_scale is not None:
            check_range("--face_scale", self.face_scale, 0, 5)
        for side in self.size or ():
            check_range("--size", side, 1, MAX_SIZE_PX)
        if self.uncond is not None:
            from feedface.diffusion.guidance import UNCOND_MODES  # brings in torch: not needed to parse a command line

            if self.uncond not in UNCOND_MODES:
                raise UserError(f"uncond {self.uncond!r}: use one of {', '.join(UNCOND_MODES)}")

    def over(self, base: Settings) -> Settings:
        """These settings, with those of `base` where these say nothing."""
        return replace(base, **{key: value for key, value in asdict(self).items() if value is not None})

    def for_model(self, defaults: Mapping[str, object], image_size: int, multiple: int) -> Settings:
        """Fill in a model's defaults and check the size against what its grid allows.

        Args:
            defaults: the bundle's steps, guidance, face_scale and uncond.
            image_size: side in pixels of the model's training pictures.
            multiple: both sides must be multiples of it (VAE factor x patch size).
        """
        full = self.over(Settings(size=(image_size, image_size), **defaults))
        low, high = max(multiple, image_size // 4), min(4 * image_size, MAX_SIZE_PX)
        for side in full.size:
            if side % multiple or not low <= side <= high:
                near = min(max(round(side / multiple), -(-low // multiple)), high // multiple) * multiple
                raise UserError(
                    f"--size {full.size[0]}x{full.size[1]}: each side must be a multiple of {multiple} from {low} to "
                    f"{high} for this model; {near} is the nearest to {side}"
                )
        return full


def parse_size(text: str) -> tuple[int, int]:
    """ "512" -> (512, 512); "512x768" -> (512, 768), width first."""
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if match is None:
        raise UserError(f"--size {text}: not a size; use 512 or 512x768 (width x height)")
    width, height = match[1], match[2] or match[1]
    return int(width), int(height)

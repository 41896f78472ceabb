"""How pictures are sampled: what a user may set, in which ranges, the presets, and where the rest comes from.

What is not set comes from, in this order: the preset that the user names, the config file, the model's own defaults,
the preset "balanced". Within one of these an option that is set comes before a preset that is named beside it.
A model's own "fast" gives way to "balanced" where its adapter cannot draw what is asked for.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from feedface.common.errors import UserError
from feedface.diffusion.names import SCHEDULERS, UNCOND_MODES

MAX_SEED = 2**63 - 1
MAX_SAMPLES = 256  # pictures of a prompt at once
MAX_SIZE_PX = 4096
PRESET_NAMES, DEFAULT_PRESET = ("quality", "balanced", "fast"), "balanced"
EVERYWHERE = (0.0, 1000.0)  # the interval of timesteps that leaves nothing out
NOWHERE = (0.0, 0.0, 0.0, 0.0)  # the face box that leaves a face's place open
# What is not set, and no preset's and no model's.
ORDINARY = {
    "negative_prompt": "",
    "rescale": 0,
    "face_box": NOWHERE,
    "pag_scale": 0,
    "pag_interval": EVERYWHERE,
}
# What decides how long a picture takes: all that a preset fixes.
COST_KNOBS = ("steps", "scheduler", "guidance_interval", "face_interval", "reuse", "few_step")
WITHOUT_PROMPT = ("true_uncond",)  # the unconditional modes that no empty or negative prompt belongs to
# Far more than any text encoder reads (CLIP: 77 tokens); what is longer was put here by mistake.
MAX_PROMPT_CHARACTERS = 2000


def check_prompt(prompt: str) -> str:
    """Return the prompt, or raise `UserError` if it is empty, too long or not text that can be stored as UTF-8."""
    if not isinstance(prompt, str):
        raise UserError(f"a prompt is text, not {type(prompt).__name__}")
    if not prompt.strip():
        raise UserError("the prompt is empty; describe the picture, as in 'a woman on a beach'")
    if len(prompt) > MAX_PROMPT_CHARACTERS:
        raise UserError(
            f"the prompt has {len(prompt)} characters, the limit is {MAX_PROMPT_CHARACTERS} (CLIP reads 77 tokens)"
        )
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not valid UTF-8 text (character {error.start + 1})") from None
    return prompt


def check_range(name: str, value: float, low: float, high: float) -> None:
    """`UserError` if `value` is outside [low, high] or not a number."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # so that NaN fails too
        raise UserError(f"{name} {value}: out of range; use {low} to {high}")


def whole_number(name: str, value: object, low: int, high: int) -> int:
    """`value`, NumPy's too, as an int; `UserError` if it is none or outside [low, high]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise UserError(f"{name} {value}: not a whole number; use {low} to {high}")
    check_range(name, value, low, high)
    return int(value)


class Adapter(Protocol):
    """What settings must know of a model's few-step adapter: see `checkpoints.few_step.FewStep`."""

    steps: int
    guidance: float
    face_scale: float
    uncond: str
    pag_scale: float
    pag_interval: tuple[float, float]


@dataclass(frozen=True)
class Settings:
    """Sampling settings; `None` stands for what was not set (`Settings.for_model` fills it in).

    An interval is (low, high) of timesteps, 0 (clean) to 1000 (noise), inclusive; `EVERYWHERE` leaves nothing out.

    Attributes:
        steps: evaluations of the model, 1 to 999.
        guidance: g in eps_u + g (eps_c - eps_u), 0 to 50; the paper's and the release's "scale s" is g = 1 + s. Two
            numbers: of the first step and of the last, evenly between.
        face_scale: strength of the face, 0 (ignored) to 5; the release uses 0.8, the paper's text 1.
        size: (width, height) in pixels; one number stands for both.
        uncond: what the unconditional half sees, one of the backbone's `uncond_modes`: see `diffusion.guidance`.
        preset: one of `PRESETS`: fixes all of `COST_KNOBS` that are not set.
        scheduler: the solver, one of `diffusion.sampling.SCHEDULERS`.
        guidance_interval: where guidance acts; outside, only the conditional half is evaluated.
        face_interval: where the face acts; outside, its control is not evaluated.
        reuse: the deep blocks are evaluated at every so many steps, 1 to 999; 1: at each.
        few_step: draw with the model's few-step adapter, which fixes steps, solver and guidance.
        negative_prompt: what guidance leads away from, in the place of the empty prompt; with it a model whose own
            `uncond` is "true_uncond" takes "empty_token", unless `uncond` says otherwise.
        rescale: how far a guided prediction's contrast is taken back to the conditional one's, 0 to 1.
        pag_scale: s of perturbed-attention guidance, 0 (none) to 10, see `diffusion.guidance`: cleaner faces, and less
            alike; where it acts, a step takes half as long again.
        pag_interval: where that guidance acts.
        face_box: where the face shall be, x1, y1, x2, y2 in shares of the picture, for a method that can place it; 0 0
            0 0 leaves it open.
    """

    steps: int | None = None
    guidance: float | tuple[float, float] | None = None
    face_scale: float | None = None
    size: tuple[int, int] | None = None
    uncond: str | None = None
    preset: str | None = None
    scheduler: str | None = None
    guidance_interval: tuple[float, float] | None = None
    face_interval: tuple[float, float] | None = None
    reuse: int | None = None
    few_step: bool | None = None
    negative_prompt: str | None = None
    rescale: float | None = None
    face_box: tuple[float, float, float, float] | None = None
    pag_scale: float | None = None
    pag_interval: tuple[float, float] | None = None

    def __post_init__(self):
        # Always Python's own numbers, and floats or tuples: equal settings look the same in every file.
        for name in ("steps", "reuse"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(f"--{name}", getattr(self, name), 1, 999))
        if isinstance(self.guidance, tuple | list):
            object.__setattr__(self, "guidance", _two("--guidance", self.guidance, 0, 50))
        for name, high in (("guidance", 50), ("face_scale", 5), ("rescale", 1), ("pag_scale", 10)):
            value = getattr(self, name)
            if value is not None and not isinstance(value, tuple):
                check_range(f"--{name}", value, 0, high)
                object.__setattr__(self, name, value if isinstance(value, int) else float(value))
        if self.size is not None:
            object.__setattr__(self, "size", _size(self.size))
        if self.uncond is not None:
            _check_name("uncond", self.uncond, UNCOND_MODES)
        if self.preset is not None:
            _check_name("--preset", self.preset, PRESET_NAMES)
        if self.scheduler is not None:
            _check_name("--scheduler", self.scheduler, SCHEDULERS)
        for name in ("guidance_interval", "face_interval", "pag_interval"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _interval(f"--{name}", getattr(self, name)))
        if self.face_box is not None:
            object.__setattr__(self, "face_box", _face_box(self.face_box))
        if self.few_step is not None and not isinstance(self.few_step, bool):
            raise UserError(f"few_step {self.few_step!r}: use true or false")
        if self.negative_prompt not in (None, ""):
            try:
                check_prompt(self.negative_prompt)
            except UserError as error:
                raise UserError(f"--negative_prompt: {error}") from None

    def over(self, base: Settings) -> Settings:
        """These settings, with those of `base` where these say nothing.

        A preset that is named here comes before what `base` says about cost.
        """
        if self.preset is not None:
            base = replace(base, **dict.fromkeys(COST_KNOBS))
        return replace(base, **{key: value for key, value in vars(self).items() if value is not None})

    def for_model(
        self,
        defaults: Mapping[str, object],
        image_size: int,
        multiple: int,
        adapter: Adapter | None = None,
        uncond_modes: Sequence[str] | None = None,
        reusable: bool = True,
    ) -> Settings:
        """Complete settings: no None in them, and all that the model can do. Complete ones stay as they are.

        Args:
            defaults: the bundle's guidance, face_scale and uncond, perhaps steps and preset.
            image_size: side in pixels of the model's training pictures.
            multiple: both sides must be multiples of it (VAE factor x the backbone's latent multiple).
            adapter: the model's few-step adapter, None where it has none or cannot use it.
            uncond_modes, reusable: what the backbone can do; None: any mode.
        """
        if self.negative_prompt and self.uncond is None and defaults.get("uncond") in WITHOUT_PROMPT:
            # A negative prompt takes the place of an empty one, which that mode has not.
            return replace(self, uncond="empty_token").for_model(
                defaults, image_size, multiple, adapter, uncond_modes, reusable
            )
        own = Settings(**{**ORDINARY, "size": (image_size, image_size), **defaults})
        unable = adapter is None or self.few_step is False or self._against(self, adapter) is not None
        if own.preset and PRESETS[own.preset].few_step and unable:
            own = replace(own, preset=DEFAULT_PRESET)
        full = self.over(own)
        full = replace(full, preset=full.preset or DEFAULT_PRESET)
        for knob in COST_KNOBS:
            if getattr(full, knob) is None:
                full = replace(full, **{knob: getattr(PRESETS[full.preset], knob)})
        full = full._with_adapter(self, adapter)
        if uncond_modes is not None and full.uncond not in uncond_modes:
            raise UserError(f"--uncond {full.uncond}: this model's backbone has {', '.join(uncond_modes)}")
        if full.reuse > 1 and not reusable:
            raise UserError(f"--reuse {full.reuse}: this model's backbone has no deep blocks to reuse; leave it out")
        if full.negative_prompt and full.uncond in WITHOUT_PROMPT:
            raise UserError(
                f"--negative_prompt: without effect, as the model is guided away from noise in the text's place "
                f"with --uncond {full.uncond}; leave that out, or take --uncond empty_token"
            )
        if self.size is None and image_size % multiple:
            raise UserError(
                f"the model's image_size is {image_size}, which is no multiple of {multiple}, as it must be"
            )
        low, high = max(multiple, image_size // 4), min(4 * image_size, MAX_SIZE_PX)
        for side in full.size:
            if side % multiple or not low <= side <= high:
                near = min(max(round(side / multiple), -(-low // multiple)), high // multiple) * multiple
                raise UserError(
                    f"--size {full.size[0]}x{full.size[1]}: each side must be a multiple of {multiple} from {low} to "
                    f"{high} for this model; {near} is the nearest to {side}"
                )
        return full

    def _with_adapter(self, asked: Settings, adapter: Adapter | None) -> Settings:
        """These settings with what the few-step adapter fixes, if it is to be used: not against what was asked for."""
        if not self.few_step:
            return self
        if adapter is None:
            if asked.few_step:
                raise UserError("few_step: this model has no few-step adapter (distill.py makes one); leave it out")
            return replace(self, few_step=False)
        wrong = self._against(asked, adapter)
        if wrong and asked.few_step:
            key, wanted, made_for = wrong
            raise UserError(f"--{key} {wanted}: the model's few-step adapter was made for {made_for}")
        if wrong:
            return replace(self, few_step=False)
        face_scale = adapter.face_scale if asked.face_scale is None else asked.face_scale  # may be another
        return replace(self, face_scale=face_scale, **_fixed_by(adapter))

    @staticmethod
    def _against(asked: Settings, adapter: Adapter) -> tuple[str, object, object] | None:
        """The first setting asked for that the adapter cannot draw with: name, value, the adapter's value."""
        for key, value in _fixed_by(adapter).items():
            wanted = getattr(asked, key)
            if wanted is not None and wanted != value:
                return key, wanted, value
        return None

    def adapter_notice(self, full: Settings, adapter: Adapter | None) -> str | None:
        """What to tell the user if `full`, made of these, draws without the few-step adapter that its preset is for."""
        if full.few_step or self.few_step is not None or not PRESETS[full.preset].few_step:
            return None
        wrong = adapter and self._against(self, adapter)
        if wrong:
            key, wanted, value = wrong
            reason = f"it was made for {_shown(key, value)}, not {_shown(key, wanted)}"
        elif adapter is None:
            reason = "there is none for this model as it is loaded"
        else:
            return None  # the model's own settings leave it out
        return f"preset {full.preset}: drawn without the few-step adapter ({reason}), in {full.steps} steps instead"

    def as_json(self) -> dict[str, object]:
        """All of them as JSON has them: lists for tuples."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in vars(self).items()}

    def drawn(self) -> dict[str, object]:
        """What changes the picture, out of complete settings, for its fingerprint.

        A knob that approximates nothing is left out, and so is the preset: pictures of the time before there were any
        keep their fingerprints.
        """
        always = ("steps", "guidance", "face_scale", "size", "uncond")
        knobs = [knob for knob in COST_KNOBS if knob not in always and getattr(self, knob) != getattr(PLAIN, knob)]
        said = [name for name in ("negative_prompt", "rescale", "pag_scale") if getattr(self, name)]
        said += ["face_box"] if self.face_box not in (None, NOWHERE) else []
        said += ["pag_interval"] if self.pag_scale and self.pag_interval != EVERYWHERE else []
        return {key: getattr(self, key) for key in (*always, *knobs, *said)}


def parse_size(text: str) -> tuple[int, int]:
    """ "512" -> (512, 512); "512x768" -> (512, 768), width first."""
    match = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
    if match is None:
        raise UserError(f"--size {text or '(empty)'}: not a size; use 512 or 512x768 (width x height)")
    width, height = match[1], match[2] or match[1]
    return int(width), int(height)


def _fixed_by(adapter: Adapter) -> dict[str, object]:
    """What drawing with the adapter leaves no choice in."""
    return {
        "steps": adapter.steps,
        "guidance": float(adapter.guidance),  # built in, and so is `uncond`: no unconditional half is evaluated
        "uncond": adapter.uncond,
        "scheduler": "ddim",
        "guidance_interval": EVERYWHERE,
        "face_interval": EVERYWHERE,
        "reuse": 1,
        "negative_prompt": "",
        "rescale": 0.0,
        "pag_scale": adapter.pag_scale,
        "pag_interval": tuple(map(float, adapter.pag_interval)),
    }


def _shown(key: str, value: object) -> str:
    shown = value if isinstance(value, tuple) else (value,)
    return " ".join([f"--{key}", *(f"{number:g}" if isinstance(number, float) else str(number) for number in shown)])


def _size(value: object) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, numbers.Real) else value
    if not isinstance(sides, tuple | list) or len(sides) != 2:
        raise UserError(f"--size {value!r}: give a number of pixels, or two: width and height")
    return tuple(whole_number("--size", side, 1, MAX_SIZE_PX) for side in sides)


def _check_name(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{name} {value!r}: use one of {', '.join(known)}")


def _two(name: str, value: Sequence, low: float, high: float) -> float | tuple[float, float]:
    """Two numbers, or one where they are the same."""
    if len(value) not in (1, 2):
        raise UserError(f"{name} {' '.join(map(str, value))}: give one number, or two: of the first and the last step")
    for number in value:
        check_range(name, number, low, high)
    return float(value[0]) if value[0] == value[-1] else (float(value[0]), float(value[1]))


def _face_box(value: object) -> tuple[float, ...]:
    if not isinstance(value, tuple | list) or len(value) != 4:
        raise UserError(f"--face_box {value!r}: give four numbers, x1, y1, x2, y2")
    for side in value:
        check_range("--face_box", side, 0, 1)
    x1, y1, x2, y2 = box = tuple(map(float, value))
    if box != NOWHERE and (x1 >= x2 or y1 >= y2):
        raise UserError(f"--face_box {x1:g} {y1:g} {x2:g} {y2:g}: is empty; x2 must be above x1, and y2 above y1")
    return box


def _interval(name: str, value: object) -> tuple[float, float]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise UserError(f"{name} {value!r}: give two timesteps, low and high")
    for end in value:
        check_range(name, end, *EVERYWHERE)
    low, high = map(float, value)
    if low >= high:
        raise UserError(f"{name} {low:g} {high:g}: the first is the lower end (0 is clean, 1000 noise)")
    return low, high


# Every step evaluates all of the model, with guidance and face: what the other knobs are measured against.
PLAIN = Settings(
    scheduler="dpmsolver++", guidance_interval=EVERYWHERE, face_interval=EVERYWHERE, reuse=1, few_step=False
)
# How much work a picture takes. They fix what costs time and leave guidance, face and size to the model. "quality"
# approximates nothing; "balanced" is the default of models that name none; "fast" draws with the model's few-step
# adapter where it has one, else with the few evaluations that stand here.
# Chosen by docs/performance.md: up to ten evaluations, times that are uniform come nearest to the exact solution, and
# leaving guidance out at the last, nearly clean time costs least of all that it may be left out at.
PRESETS = {
    "quality": Settings(steps=20, scheduler="unipc:karras").over(PLAIN),
    "balanced": Settings(steps=8, scheduler="dpmsolver++:uniform", guidance_interval=(150, 1000)).over(PLAIN),
    "fast": Settings(steps=5, scheduler="dpmsolver++:uniform", few_step=True).over(PLAIN),
}

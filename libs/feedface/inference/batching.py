"""Draws pictures with a loaded bundle: the one place where prompts, noise and faces become pixels.

Rows of a batch may belong to different prompts and people. Letters: B pictures in a batch.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from feedface.backbones.base import Prompt
from feedface.checkpoints.bundle import Bundle
from feedface.checkpoints.few_step import FewStep
from feedface.common.device import DTYPES
from feedface.common.errors import UserError
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.init_image import InitImage
from feedface.diffusion.sampling import sample
from feedface.diffusion.state import join, length, take
from feedface.encoders import to_tensor, to_uint8
from feedface.faces.face_region import keep_mask
from feedface.inference.regions import at_size, check_regions, is_joint, method_for
from feedface.inference.start import Start
from feedface.methods.base import Identity
from feedface.settings import NOWHERE, WITHOUT_PROMPT, Settings

# Four pictures of 512 px leave room beside the full-size weights on a GPU of 8 GiB; larger ones take more at a time.
BATCH_PX, MAX_BATCH = 4 * 512 * 512, 64
BATCH_GPU_BYTES = 8 << 30
# The decoder, not the backbone, fills a GPU's memory at 512 px, and there one picture keeps it busy.
DECODED_PX = 512 * 512

Item = TypeVar("Item")


def default_batch_size(settings: Settings, device: torch.device, low_memory: bool = False) -> int:
    """How many pictures are drawn at a time where nobody says it: what fits, and keeps the device busy."""
    if low_memory:
        return 1
    room = 1.0
    if device.type == "cuda":
        room = max(1.0, torch.cuda.get_device_properties(device).total_memory / BATCH_GPU_BYTES)
    width, height = settings.size
    return min(MAX_BATCH, max(1, int(room * BATCH_PX / (width * height))))


def batches(
    items: Iterable[Item], size: int | Callable[[Item], int], key: Callable[[Item], Hashable]
) -> Iterator[list[Item]]:
    """Lists of at most `size` items with the same `key`, each as soon as it is full; at the end those that are not.

    A `size` that depends on the item is the same for the same `key`. `items` is read as far as the next full list
    needs, in its order.
    """
    waiting: dict[Hashable, list[Item]] = {}
    for item in items:
        group = waiting.setdefault(key(item), [])
        group.append(item)
        if len(group) == (size(item) if callable(size) else size):
            yield waiting.pop(key(item))
    yield from waiting.values()


def picture_settings(settings: Settings, dtype: torch.dtype, adapter: FewStep | None) -> dict[str, Any]:
    """What changes the picture, of complete settings and the model's number format, for `output.PictureInfo`."""
    found = settings.drawn() | {"dtype": dtype_name(dtype)}
    if settings.few_step:
        found["few_step"] = adapter.digest
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """As the command line calls it: "fp32", …"""
    return next(name for name, known in DTYPES.items() if known == dtype)


def sample_options(settings: Settings, adapter: FewStep | None) -> dict[str, Any]:
    """Complete settings, but for the size, as arguments of `sample`. `adapter`: the model's."""
    if settings.few_step:  # it has the guidance in it
        return {"timesteps": adapter.timesteps, "guidance": 1.0, "scale": settings.face_scale}
    return {
        "steps": settings.steps,
        "scheduler": settings.scheduler,
        "guidance": settings.guidance,
        "uncond_mode": settings.uncond,
        "scale": settings.face_scale,
        "guidance_interval": settings.guidance_interval,
        "face_interval": settings.face_interval,
        "reuse": settings.reuse,
        "rescale": settings.rescale,
        "pag_scale": settings.pag_scale,
        "pag_interval": settings.pag_interval if settings.pag_scale else None,
    }


@dataclass
class Conditions:
    """What sampling takes of texts and people: B rows, or one for all."""

    prompt: Prompt
    empty: Prompt | None
    identity: Identity | None

    def to(self, device: torch.device) -> "Conditions":
        return Conditions(*(_on(device, part) for part in (self.prompt, self.empty, self.identity)))

    def rows(self, rows: slice) -> "Conditions":
        """Some of them."""
        identity = self.identity
        if identity is not None and length(identity) > 1:
            identity = take(identity, rows)
        return Conditions(take(self.prompt, rows), self.empty, identity)


def draw_batch(
    bundle: Bundle,
    prompts: Sequence[str],
    seeds: Sequence[int],
    identity: Identity | None,
    settings: Settings,
    device: torch.device,
    *,
    texts: dict[str, Prompt] | None = None,
    on_step: Callable[[int], object] | None = None,
    starts: Sequence[Start] | None = None,
) -> np.ndarray:
    """One picture per prompt and seed: uint8 [B, H, W, 3]. Threads that share the bundle take turns.

    Where a batch does not fit into the GPU's memory, its halves are drawn one after the other. `UserError` where one
    picture does not fit, and where a part of the model gives NaN or infinity.

    Args:
        identity: who is shown, B rows or one for all; None to leave the method out.
        settings: complete (`Settings.for_model`).
        texts: encoded prompts, of one row each, taken from here and added, where calls share prompts.
        on_step: called after each evaluation of the model with the number of pictures in it.
        starts: pictures to begin with, one each, of one strength; all have masks, or none.
    """
    texts = {} if texts is None else texts

    def draw(rows: slice) -> np.ndarray:
        who = identity if identity is None or length(identity) == 1 else take(identity, rows)
        init = None if starts is None else init_image(bundle, starts[rows], device)
        who = acting(bundle, who, settings, device)
        conditions = read_prompts(bundle, encode_texts(bundle, prompts[rows], who, settings, device, texts))
        return decode(bundle, draw_latents(bundle, conditions, seeds[rows], settings, device, on_step, init))

    with bundle.lock:
        return np.concatenate(in_halves(draw, len(seeds), settings, device))


def in_halves(draw: Callable[[slice], Item], count: int, settings: Settings, device: torch.device) -> list[Item]:
    """What `draw` makes of `count` rows: of all at once or, where they do not fit into memory, of parts in order."""

    def parts(rows: slice) -> list[Item]:
        try:
            return [draw(rows)]
        except torch.OutOfMemoryError:
            if rows.stop - rows.start == 1:
                width, height = settings.size
                raise UserError(
                    f"out of memory on {device} with one picture of {width} x {height}; half precision (--dtype fp16), "
                    "a smaller --size, --low_memory (of inference.py) or --device cpu need less"
                ) from None
        # Not inside `except`, which keeps alive what did not fit.
        middle = (rows.start + rows.stop) // 2
        return parts(slice(rows.start, middle)) + parts(slice(middle, rows.stop))

    return parts(slice(0, count))


@torch.inference_mode()
def decode(bundle: Bundle, latents: Tensor) -> np.ndarray:
    """Latents [B, C, h, w] -> pictures uint8 [B, H, W, 3], in pieces of at most `DECODED_PX` (or one picture)."""
    vae = bundle.vae
    picture_px = latents[0, 0].numel() * vae.factor**2
    pictures = []
    for part in latents.split(max(1, DECODED_PX // picture_px)):
        pixels = vae.decode(part)
        if not pixels.isfinite().all():
            raise _not_finite(bundle, {"vae": vae})
        pictures.append(to_uint8(pixels))
    return np.concatenate(pictures)


def check_finite(bundle: Bundle, kind: str, values: Tensor) -> None:
    """`UserError` naming the part `kind` that gave these values, unless they are all finite."""
    if not values.isfinite().all():
        raise _not_finite(bundle, {kind: getattr(bundle, kind)})


def _not_finite(bundle: Bundle, networks: dict[str, nn.Module]) -> UserError:
    """For numbers that are NaN or infinite: names the first of `networks` that holds such weights."""
    for kind, network in networks.items():
        # What a low-memory bundle keeps elsewhere cannot be looked into.
        weights = [value for value in (*network.parameters(), *network.buffers()) if not value.is_meta]
        if not all(value.isfinite().all() for value in weights):
            broken = bundle.components.get(kind, kind)
            return UserError(f"{broken}: its weights hold NaN or infinity; fetch or make this part of the model anew")
    return UserError(
        f"the model's {' or '.join(networks)} gives NaN or infinity, from weights that are finite: numbers that are "
        "too large for half precision; use --dtype fp32 or bf16"
    )


def acting(bundle: Bundle, identity: Identity | None, settings: Settings, device: torch.device) -> Identity | None:
    """Who the method shows, on the device; None where it does nothing."""
    if bundle.method_class is None or not settings.face_scale:
        return None
    if is_joint(identity):
        check_regions(bundle.method_class)
    return _on(device, identity)


@torch.inference_mode()
def encode_texts(
    bundle: Bundle,
    prompts: Sequence[str],
    identity: Identity | None,
    settings: Settings,
    device: torch.device,
    texts: dict[str, Prompt],
) -> Conditions:
    """What prompts become, by no other weights than the text encoder's; `identity` as `acting` gives it."""
    negative = [] if settings.uncond in WITHOUT_PROMPT or settings.few_step else [settings.negative_prompt]
    tells = identity is not None and bundle.method_class.changes_prompt
    apart = bool(negative) and bundle.described("text_encoder").negative_skip is not None
    own = [] if tells else prompts
    encoded = _on(device, _encoded(bundle, [*own, *([] if apart else negative)], texts))
    prompt, empty = take(encoded, slice(len(own))), take(encoded, slice(len(own), None))
    if apart:
        empty = {"text": bundle.text_encoder.encode(negative, negative=True).to(device)}
    if tells:  # with the person in them: kept for nobody else
        method = bundle.described("method")  # the identity says all of the person
        prompt = _on(device, method.prompt(bundle.text_encoder, prompts, identity, settings.face_scale))
        check_finite(bundle, "text_encoder", prompt["text"])
    return Conditions(prompt, empty if negative else None, identity)


@torch.inference_mode()
def read_prompts(bundle: Bundle, conditions: Conditions) -> Conditions:
    """The same with what the method makes of people for these prompts."""
    identity = conditions.identity
    if identity is not None and bundle.method_class.reads_prompt:
        # Before the backbone, as what works once a generation may then make room for it.
        identity = method_for(bundle.method, identity).prompted(identity, conditions.prompt)
    return replace(conditions, identity=identity)


@torch.inference_mode()
def draw_latents(
    bundle: Bundle,
    conditions: Conditions,
    seeds: Sequence[int],
    settings: Settings,
    device: torch.device,
    on_step: Callable[[int], object] | None = None,
    init: InitImage | None = None,
) -> Tensor:
    """The backbone's work: latents [B, C, h, w] of finished pictures, a row for each seed."""
    prompt, identity = conditions.prompt, conditions.identity
    guided_model = GuidedModel if identity is None else bundle.method_class.guided_model
    if isinstance(settings.guidance, tuple) and guided_model is not GuidedModel:
        raise UserError(f"--guidance: one number, please; {bundle.method_class.kind} is guided in its own way")
    if settings.pag_scale and guided_model is not GuidedModel:
        raise UserError(f"--pag_scale: not with {bundle.method_class.kind}, which is guided in its own way; use 0")
    backbone, method = bundle.networks(settings.few_step)
    method = method_for(method, identity)
    width, height = (side * backbone.latent_multiple // bundle.size_multiple for side in settings.size)
    identity = at_size(identity, (height, width))
    if identity is not None and settings.face_box != NOWHERE:
        prompt = bundle.method_class.placed(prompt, settings.face_box, (height, width))
    latents = sample(
        backbone,
        prompt=prompt,
        seeds=list(seeds),
        empty_prompt=conditions.empty,
        method=method,
        identity=identity,
        latent_size=(height, width),
        init=init,
        progress=None if on_step is None else lambda done, total: on_step(len(seeds)),
        **sample_options(settings, bundle.few_step),
    )["img"]
    if not latents.isfinite().all():
        if identity is not None and not all(value.isfinite().all() for value in identity.values()):
            raise UserError("the identity holds NaN or infinity; make it with FeedFacePipeline.identity")
        raise _not_finite(bundle, {"backbone": backbone} | ({} if method is None else {"method": method}))
    return latents


@torch.inference_mode()
def init_image(bundle: Bundle, starts: Sequence[Start], device: torch.device) -> InitImage:
    """What sampling takes of pictures to begin with: latents of the posterior's mode, and what is kept of them."""
    vae = bundle.vae
    latents = {id(start): vae.encode(to_tensor(start.picture)[None], sample=False).float() for start in starts}
    clean = {"img": torch.cat([latents[id(start)] for start in starts]).to(device)}
    keep = None
    if starts[0].mask is not None:
        masks = [keep_mask(start.mask, clean["img"].shape[-2:]) for start in starts]
        keep = torch.from_numpy(np.stack(masks))[:, None].to(clean["img"])
    if keep is None and bundle.described("image_encoder") is not None and bundle.kinds["backbone"] == "uvit":
        clean["clip_img"] = bundle.image_encoder.encode([start.picture for start in starts]).float().to(device)
    return InitImage(clean, starts[0].strength, keep)


def _on(device: torch.device, batch: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    return batch and {name: value.to(device) for name, value in batch.items()}


def _encoded(bundle: Bundle, prompts: Sequence[str], texts: dict[str, Prompt]) -> Prompt:
    """Prompts without anybody in them, on the CPU, a row each; each is encoded once."""
    new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in texts]
    if new:
        encoded = {"text": bundle.text_encoder.encode(new).cpu()}
        check_finite(bundle, "text_encoder", encoded["text"])
        texts.update((prompt, take(encoded, slice(row, row + 1))) for row, prompt in enumerate(new))
    return join(*(texts[prompt] for prompt in prompts)) if prompts else {}

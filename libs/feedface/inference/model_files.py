"""Which files a model is made of, wherever the user keeps them.

`model` is one of
- a folder of this project, with model_index.json: models/mini, a converted bundle, a training checkpoint;
- a Stable Diffusion 1.x or 2.x: a diffusers folder, or a single file (.safetensors, .ckpt) in LDM's naming;
- a folder with the authors' files: uvit_v1.pth, autoencoder_kl.pth, caption_decoder.pth and feed-4800000.pt. Their text
  encoder, CLIP ViT-L/14, is taken from its clip-vit-large-patch14/ if there is one, else from the model hub.

`ckpt_path` stands for another method than the model's own: the authors' adapter file, the folder of a method, or the
one of another folder with model_index.json, such as a training checkpoint. Where `method` names two kinds, such as
"feedface+adaface", it goes together with the model's own.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from feedface.checkpoints.bundle import Bundle, check_parts, load_parts, read_index
from feedface.checkpoints.index import INDEX
from feedface.checkpoints.official import HOME, load_face_controlnet
from feedface.checkpoints.parts import is_stable_diffusion, load_part, part_class
from feedface.checkpoints.release import FILES, TEXT_ENCODER, is_release, load_release
from feedface.common.errors import UserError
from feedface.common.files import follow
from feedface.common.places import default_model
from feedface.encoders import TEXT_PROJECTION
from feedface.inference.acceleration import channels_last
from feedface.methods.base import method_class
from feedface.methods.together import Together

# What decides how a picture comes out; a bundle's other parts (faces, inspector, image encoder) do not.
DRAWING_NETWORKS = ("backbone", "method", "vae", "text_encoder")
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Changes:
    """What a user adds to a model.

    On Stable Diffusion's U-Net, `clip_skip`: how many of the text encoder's last layers are left out; `loras`: files,
    each with its strength. `subject_word`: of a method that changes prompts, the person's word in them.
    """

    clip_skip: int = 0
    loras: Sequence[tuple[Path, float]] = ()
    subject_word: str | None = None

    def __post_init__(self):
        if self.subject_word is not None and len(self.subject_word.split()) != 1:
            raise UserError(f"--subject_word {self.subject_word!r}: give one word, such as z or <anna>")

    def as_json(self) -> dict[str, Any]:
        """For a picture's settings; empty where there is none."""
        loras = [f"{file.name}:{scale:g}" for file, scale in self.loras]
        word = {} if self.subject_word is None else {"subject_word": self.subject_word}
        return ({"clip_skip": self.clip_skip} if self.clip_skip else {}) | ({"loras": loras} if loras else {}) | word

    def __str__(self) -> str:
        """What changes pictures, for `Bundle.variant`."""
        loras = [f"lora {_file_digest(file)} {scale:g}" for file, scale in self.loras]
        word = [] if self.subject_word is None else [f"subject_word {self.subject_word}"]
        return ", ".join([f"clip_skip {self.clip_skip}"] * bool(self.clip_skip) + loras + word)


NO_CHANGES = Changes()


def parse_lora(text: str) -> tuple[Path, float]:
    """ "FILE" or "FILE:0.8" -> (file, strength); `UserError` for one that is not there."""
    file, _, scale = text.rpartition(":")
    try:
        found = (Path(file), float(scale)) if file else (Path(text), 1.0)
    except ValueError:
        found = Path(text), 1.0
    if not found[0].is_file():
        raise UserError(f"--lora {text}: no such file; give FILE or FILE:STRENGTH, such as style.safetensors:0.8")
    if not abs(found[1]) <= 10:
        raise UserError(f"--lora {text}: a strength is a number from -10 to 10")
    return found


def own_model(ckpt_path: str | os.PathLike | None) -> Path | None:
    """The model that a `ckpt_path` belongs to: itself (a training checkpoint), or the authors' files beside it."""
    if ckpt_path is None:
        return None
    path = follow(ckpt_path)
    if (path / INDEX).is_file():
        return path
    return path.parent if path.is_file() and is_release(path.parent) else None


def shows_faces(model: str | os.PathLike, ckpt_path: str | os.PathLike | None = None) -> bool:
    """Whether the model has a method to show a face with, by its files' names and index alone."""
    return ckpt_path is not None or is_release(model) or "method" in read_index(model).kinds


def model_with(method: str, model: str | os.PathLike | None, ckpt_path: str | os.PathLike | None = None) -> Path:
    """The model folder to show people with a method of this kind: `model`, or the first beside the default one.

    Of two kinds joined by "+", the one that `ckpt_path` is not. `UserError` for an unknown method, and a model that has
    another.
    """
    if "+" in method:
        return _model_of_two(method, model, ckpt_path)
    kind = method_class(method).kind
    if model is None:
        folder = default_model().parent
        indexes = [default_model() / INDEX, *sorted(folder.glob(f"*/{INDEX}"))]
        for index in indexes:
            if index.is_file() and read_index(index.parent).kinds.get("method") == kind:
                return index.parent
        raise UserError(f"--method {kind}: no model in {folder} has it; name one with --model (train.py trains one)")
    if ckpt_path is None:
        own = "feedface" if is_release(model) else read_index(model).kinds.get("method", "none")
        if own != kind:
            raise UserError(f"--method {kind}: the method of {model} is {own}; name a model that has it with --model")
    return Path(model)


def _model_of_two(method: str, model: str | os.PathLike | None, ckpt_path: str | os.PathLike | None) -> Path:
    kinds = [method_class(kind).kind for kind in method.split("+")]
    if len(kinds) != 2 or ckpt_path is None:
        raise UserError(f"--method {method}: give one of two methods with --model, the other with --ckpt_path")
    given = _kind_at(follow(ckpt_path))
    if given not in kinds:
        raise UserError(f"--method {method}: the method of --ckpt_path {ckpt_path} is {given}")
    kinds.remove(given)
    return model_with(kinds[0], model)


def _kind_at(ckpt: Path) -> str:
    """The kind of the method that a `ckpt_path` is."""
    if not ckpt.is_dir():
        return "feedface"
    folder = read_index(ckpt).components.get("method", ckpt) if (ckpt / INDEX).is_file() else ckpt
    return part_class("method", folder).kind


def load_model(
    model: str | os.PathLike,
    ckpt_path: str | os.PathLike | None,
    device: torch.device,
    dtype: torch.dtype,
    control: Mapping[str, Any] | None = None,
    low_memory: bool = False,
    changes: Changes = NO_CHANGES,
    together: bool = False,
) -> Bundle:
    """Load what is needed to draw. `components` of the result name the files each part came from.

    Args:
        model, ckpt_path: see above.
        device, dtype: where and in what is computed.
        control: how an adapter file in the authors' naming is built, where it differs from theirs: sites, num_heads,
            control_input, mlp_ratio, as in the `control` section of a training config.
        low_memory: read each part when it is used and drop it after (`low_memory.LowMemoryBundle`): for little memory,
            not for speed.
        changes: for Stable Diffusion.
        together: the method of `ckpt_path` is used with the model's own, not in its place.

    Raises:
        UserError: names what is missing, broken, not to be trusted, or does not fit.
    """

    def read(kinds: Sequence[str], device: torch.device, dtype: torch.dtype | None) -> Bundle:
        bundle = _read(follow(model), ckpt_path, kinds, device, dtype, control)
        return _changed(bundle, changes, device)

    if together:
        if low_memory:
            raise UserError("--low_memory: is for one method; two at once stay in memory")
        bundle, other = _load_parts(follow(model), DRAWING_NETWORKS, device, dtype), read(["method"], device, dtype)
        return _changed(_joined(bundle, other), changes, device)
    if not low_memory:
        return read(DRAWING_NETWORKS, device, dtype)
    from feedface.inference.low_memory import LowMemoryBundle

    return LowMemoryBundle(read(DRAWING_NETWORKS, torch.device("meta"), None), read, device, dtype)


def _read(
    model: Path,
    ckpt_path: str | os.PathLike | None,
    kinds: Sequence[str],
    device: torch.device,
    dtype: torch.dtype | None,
    control: Mapping[str, Any] | None,
) -> Bundle:
    """Some of the parts of a model; dtype None: as stored."""
    if ckpt_path is None:
        return _load_parts(model, kinds, device, dtype)
    ckpt = follow(ckpt_path)
    if not ckpt.exists():
        raise UserError(f"--ckpt_path {ckpt}: no such file or folder; models/README.md says where weights come from")
    bundle = _load_parts(model, [kind for kind in kinds if kind != "method"], device, dtype)
    bundle.components["method"] = ckpt
    # The model's few-step adapter was made for its own method.
    bundle.components.pop("few_step", None)
    others = read_index(ckpt).components if (ckpt / INDEX).is_file() else {}
    folder = others.get("method", ckpt)
    if "faces" in others:  # which has the recogniser that the method knows, where the model has no faces of its own
        bundle.components.setdefault("faces", others["faces"])
    bundle.kinds["method"] = _kind_at(ckpt)
    if "method" not in kinds:
        return bundle
    if ckpt.is_dir():
        bundle.method = load_part("method", {"method": folder}, device, dtype)
    else:
        method = load_face_controlnet(ckpt, **(control or {})).to(device, dtype)
        bundle.method = method.eval().requires_grad_(False)
    check_parts(bundle)
    return bundle


def _joined(bundle: Bundle, other: Bundle) -> Bundle:
    """`bundle` with the other's method beside its own."""
    if bundle.method is None:
        raise UserError(f"{bundle.path}: has no method of its own to go together with that of --ckpt_path")
    bundle.method = Together([bundle.method, other.method]).eval()
    bundle.components["other_method"] = other.components["method"]
    bundle.components = {**other.components, **bundle.components}
    bundle.kinds["method"] = Together.kind
    bundle.components.pop("few_step", None)
    check_parts(bundle)
    return bundle


def _changed(bundle: Bundle, changes: Changes, device: torch.device) -> Bundle:
    """A bundle with what the user adds to it, in the parts that are loaded."""
    if changes == NO_CHANGES:
        return bundle
    bundle.variant = str(changes)
    if changes.subject_word is not None:
        asked = bundle.method or bundle.method_class  # of two together only the methods themselves know
        if asked is None or asked.subject_word is None:
            found = "no method" if bundle.method_class is None else f"the method {bundle.method_class.kind}"
            raise UserError(f"--subject_word: prompts have a person's word with adaface; this model has {found}")
        if bundle.method is not None:
            bundle.method.subject_word = changes.subject_word
    if bundle.kinds["backbone"] != "unet" and (changes.clip_skip or changes.loras):
        option = "--clip_skip" if changes.clip_skip else "--lora"
        raise UserError(
            f"{option}: is for Stable Diffusion's U-Net; this model's backbone is a {bundle.kinds['backbone']}"
        )
    if bundle.text_encoder is not None and changes.clip_skip:
        bundle.text_encoder.clip_skip, bundle.text_encoder.negative_skip = changes.clip_skip, None
    if changes.loras and device.type != "meta":
        from feedface.checkpoints.stable_diffusion import merge_lora

        for file, scale in changes.loras:
            merge_lora(file, bundle.backbone, bundle.text_encoder, scale)
    return bundle


def _load_parts(path: Path, parts: Sequence[str], device: torch.device, dtype: torch.dtype | None) -> Bundle:
    known = (path / INDEX).is_file() or is_stable_diffusion(path)
    if path.is_dir() and not known and not is_release(path):
        raise UserError(
            f"{path}: holds neither a model of this project ({INDEX}) nor a Stable Diffusion (unet/, …) nor the "
            f"authors' four files ({', '.join(FILES.values())}), which come from {HOME}; models/README.md says more"
        )
    if known or not is_release(path):
        bundle = read_index(path)
        wanted = [part for part in parts if part in bundle.components or part != "method"]
        load_parts(bundle, wanted, device, dtype)
    else:
        local = path / TEXT_ENCODER.rpartition("/")[2]
        text_encoder = str(local) if local.is_dir() else TEXT_ENCODER
        bundle = load_release(path, text_encoder=text_encoder, components=parts, device=device, dtype=dtype)
    if bundle.vae is not None and device.type == "cuda":
        channels_last(bundle.vae)
    return bundle


# What parts were called when the first pictures were made, which are known again by their model's digest.
DIGEST_NAMES = {"backbone": "uvit", "method": "face_controlnet"}


def model_digest(bundle: Bundle) -> str:
    """Changes when the weights do: a hash of the size, the first and the last megabyte of each file.

    Not of all bytes, which takes minutes at full size; a trained tensor anywhere changes those anyway.
    """
    digest = hashlib.sha256(bundle.variant.encode())
    seen = set()  # a Stable Diffusion is the same files for all parts
    for part in (*DRAWING_NETWORKS, "other_method", "tokenizer"):
        root = bundle.components.get(part)
        if root is None or root in seen:  # the authors' files have no tokenizer of their own
            continue
        seen.add(root)
        for path in sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]:
            if path.name == TEXT_PROJECTION:  # only judges use it
                continue
            digest.update(f"{DIGEST_NAMES.get(part, part)}/{path.name}:{path.stat().st_size}".encode())
            for sample in _samples(path):
                digest.update(sample)
    return digest.hexdigest()[:16]


def _samples(path: Path) -> Iterable[bytes]:
    """The first and the last megabyte."""
    with open(path, "rb") as file:
        yield file.read(SAMPLE_BYTES)
        file.seek(max(path.stat().st_size - SAMPLE_BYTES, 0))
        yield file.read(SAMPLE_BYTES)


def _file_digest(path: Path) -> str:
    return hashlib.sha256(f"{path.stat().st_size}".encode() + b"".join(_samples(path))).hexdigest()[:16]

"""The Python interface: show the model a person once, then draw that person as often as you like.

pipe = FeedFacePipeline.from_pretrained("models/mini")
pipe.set_faces(["face.png", "another.png"], detector="auto")
images = pipe.generate("a smiling man with a red hat", n_samples=4, seed=7)    # list of PIL images

Many prompts and people share the passes through the model:
anna, ben = (pipe.identity(find_faces([file], None)[0]) for file in ("anna.png", "ben.png"))
images = pipe.draw([Request("a woman on a beach", 0, anna), Request("a man with a red hat", 0, ben)])

Threads may share a pipeline: they take turns, a batch each, and get what each would get alone. The faces of `set_faces`
are the pipeline's, so threads with people of their own use `identity` and `draw`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from feedface.checkpoints.hub import fetch_model, is_hub_name, push_model, save_model
from feedface.common.device import pick_device, pick_dtype
from feedface.common.errors import UserError
from feedface.common.progress import progress as watch
from feedface.common.prompt_weights import plain_prompt
from feedface.encoders import preprocess_reference
from feedface.faces.detect import make_detector
from feedface.faces.embeddings import references_of
from feedface.faces.references import Picture, Reference, as_pictures, find_faces
from feedface.inference.acceleration import channels_last, check_cuda_graphs, compile_blocks, quantise_int8
from feedface.inference.batching import batches, check_finite, default_batch_size, draw_batch, picture_settings
from feedface.inference.model_files import NO_CHANGES, Changes, load_model, model_digest, parse_lora
from feedface.inference.regions import check_regions, together
from feedface.inference.somebody import Box
from feedface.inference.stages import Batch, Request, draw_by_stages
from feedface.settings import MAX_SAMPLES, MAX_SEED, NOWHERE, Settings, check_prompt, check_range, whole_number

if TYPE_CHECKING:
    from feedface.backbones.base import Prompt
    from feedface.checkpoints.bundle import Bundle
    from feedface.checkpoints.few_step import FewStep
    from feedface.faces.detect import FaceDetector
    from feedface.methods.base import Identity

MAX_BATCH = 4096
MAX_TEXTS = 1024  # encoded prompts that are kept; a batch needs far fewer


class FeedFacePipeline:
    """A loaded model and the faces it was shown last.

    Attributes:
        bundle: the networks.
        digest: changes with the model's weights.
        references: the faces that were set; empty at first: then pictures follow the prompt alone.
        low_memory, int8: how the model was loaded, see `from_pretrained`.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device,
        dtype: torch.dtype,
        *,
        low_memory: bool = False,
        int8: bool = False,
        changes: Changes = NO_CHANGES,
    ):
        self.bundle, self.device, self.dtype = bundle, device, dtype
        self.low_memory, self.int8, self.changes = low_memory, int8, changes
        self.digest = model_digest(bundle)
        self.references: list[Reference] = []
        self._identity: Identity | None = None  # of one row

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        ckpt_path: str | os.PathLike | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        control: Mapping[str, Any] | None = None,
        low_memory: bool = False,
        compile: bool = False,
        cuda_graphs: bool = False,
        int8: bool = False,
        clip_skip: int = 0,
        loras: Sequence[str] = (),
        subject_word: str | None = None,
        together: bool = False,
    ) -> FeedFacePipeline:
        """Load a model.

        Args:
            path: a model folder of this project, "user/name" of the hub (downloaded to its cache), a Stable Diffusion
                1.x or 2.x (a diffusers folder or a single file), or a folder with the authors' files.
            ckpt_path: another method than the model's own.
            device: "cuda", "cuda:1", "mps", "cpu"; by default the best there is.
            dtype: "fp32", "bf16", "fp16"; by default fp16 on a GPU, fp32 on a CPU.
            control: for an adapter file in the authors' naming that is not built as theirs.
            low_memory: one part in memory at a time, each read once for many pictures, see `stages`.
            compile: compile the blocks: a minute at first, and faster from then on.
            cuda_graphs: compile them and replay them as CUDA graphs: not tried on a GPU yet.
            int8: weights in 8 bits: less memory, on a CPU also faster; pictures differ a little. Without the few-step
                adapter, which has to be merged into full weights.
            clip_skip: of Stable Diffusion's text encoder, how many of its last layers are left out.
            loras: LoRA files for Stable Diffusion, each "FILE" or "FILE:STRENGTH".
            subject_word: with AdaFace, the person's word in prompts; None: the model's own, "z".
            together: the method of `ckpt_path` is used with the model's own, not in its place.

        `model_files.load_model` says more about `path`, `ckpt_path` and `control`, `acceleration` about the last two.
        """
        if is_hub_name(path):
            path = fetch_model(path)
        picked = pick_device(device)
        if cuda_graphs:
            check_cuda_graphs(picked, low_memory)
        number = pick_dtype(dtype, picked)
        changes = Changes(clip_skip, tuple(map(parse_lora, loras)), subject_word)
        bundle = load_model(path, ckpt_path, picked, number, control, low_memory, changes, together)
        if int8:
            quantise_int8(bundle, picked)
        if compile or cuda_graphs:
            compile_blocks(bundle, cuda_graphs)
        return cls(bundle, picked, number, low_memory=low_memory, int8=int8, changes=changes)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write all of the model into one new folder, with a card to fill in, as `push_to_hub` uploads it."""
        save_model(self.bundle, Path(folder))

    def push_to_hub(self, name: str, private: bool = True) -> str:
        """Upload the model as "user/name" of the Hugging Face hub; returns the address."""
        return push_model(self.bundle, name, private)

    def to(self, device: str | torch.device) -> FeedFacePipeline:
        """Move the model to another device, in the number format that it has; returns itself.

        `UserError` for a model of low_memory or int8, which are made for one device.
        """
        if self.low_memory or self.int8:
            raise UserError("a model loaded with low_memory or int8 stays on its device: load it anew for another one")
        picked = pick_device(device)
        with self.bundle.lock:
            self.bundle.to(picked)
            if picked.type == "cuda":
                channels_last(self.bundle.vae)
            self.device = picked
        return self

    def __reduce__(self):
        raise UserError(
            "a pipeline is not for pickling or copying (weights and a lock): call FeedFacePipeline.from_pretrained in "
            "the process that draws, and send paths, prompts and seeds there"
        )

    @property
    def adapter(self) -> FewStep | None:
        """The model's few-step adapter; None where it has none or cannot take it."""
        return None if self.int8 else self.bundle.few_step

    def settings(self, wanted: Settings | None = None) -> Settings:
        """`wanted`, complete: with the preset's and the model's; `UserError` for what the model cannot draw."""
        bundle = self.bundle
        backbone, method = bundle.backbone_class, bundle.method_class
        full = (wanted or Settings()).for_model(
            bundle.defaults,
            bundle.image_size,
            bundle.size_multiple,
            self.adapter,
            backbone.uncond_modes,
            backbone.reusable,
        )
        if full.face_box != NOWHERE and not (method and method.places_faces):
            raise UserError(
                f"--face_box: the model's method ({method.kind if method else 'none'}) cannot place a face; "
                "flashface_official can"
            )
        return full

    def settings_notice(self, wanted: Settings) -> str | None:
        """What to tell the user if something in `wanted` has not the effect it is meant to have."""
        settings = self.settings(wanted)
        if settings.negative_prompt and settings.guidance == 1:
            return "--negative_prompt: without effect at guidance 1, which leads away from nothing"
        return wanted.adapter_notice(settings, self.adapter)

    def picture_settings(self, settings: Settings) -> dict[str, Any]:
        """What changes the picture, of complete settings and the way the model was loaded."""
        found = picture_settings(settings, self.dtype, self.adapter)
        return found | ({"int8": True} if self.int8 else {}) | self.changes.as_json()

    def batch_size(self, settings: Settings) -> int:
        """How many pictures are drawn at a time by default."""
        return default_batch_size(settings, self.device, self.low_memory)

    def prompt_notice(self, prompt: str, shown: bool = False) -> str | None:
        """What to tell the user if the text encoder will not read the whole prompt. `shown`: with a person."""
        with self.bundle.lock:
            if shown and self.bundle.method_class is not None and self.bundle.method_class.changes_prompt:
                method = self.bundle.described("method")
                return method.notice(self.bundle.described("text_encoder"), prompt)
            encoder = self.bundle.described("text_encoder")
            count = len(encoder.tokenizer(plain_prompt(prompt)[0], verbose=False).input_ids)
        if count <= encoder.num_tokens:
            return None
        return f"the prompt has {count} tokens; the text encoder reads the first {encoder.num_tokens}, the rest is cut"

    @torch.inference_mode()
    def set_faces(
        self,
        pictures: Picture | Sequence[Picture],
        detector: FaceDetector | str | None = None,
        pool: str = "concat",
        face: str | int | None = None,
    ) -> tuple[list[Reference], list[str]]:
        """Encode one person's faces, for all later calls of `generate`.

        Args:
            pictures: a path, PIL image or uint8 RGB array [H, W, 3], or several of them, of the same person. An empty
                list removes the face.
            detector: finds the face to crop: one of `faces.detect.make_detector`, or its name ("auto": the model's own
                where it has one); None: the pictures are face crops.
            pool: "concat" (the model sees all faces), "mean" or "first".
            face: which one where a picture shows several: "most-like" (the other pictures' faces), "largest", "left",
                "right", or N, the N-th from the left; None: "most-like" if the detector has a recogniser.

        Returns:
            (references, notices): the faces used, and one line for each picture left out, with several faces, or whose
            face is unlike the others'.
        """
        pictures = as_pictures(pictures)
        if isinstance(detector, str):
            detector = make_detector(detector, self.bundle.faces_root)
        references, notices = find_faces(pictures, detector, face) if pictures else ([], [])
        self.show(references, pool)
        return references, notices

    @torch.inference_mode()
    def show(self, references: Sequence[Reference], pool: str = "concat") -> None:
        """Like `set_faces`, with faces that were found before."""
        identity = self.identity(references, pool) if references else None
        self.references, self._identity = list(references), identity

    @torch.inference_mode()
    def identity(self, references: Sequence[Reference], pool: str = "concat") -> Identity:
        """One person, by their faces, at least one, for `Request`: a row by name. `pool`: see `set_faces`.

        `UserError` for a model without a method to show somebody with.
        """
        if notice := self.method_notice():
            raise UserError(notice)
        with self.bundle.lock:
            method = self.bundle.described("method")
            pixels = torch.stack([preprocess_reference(method.reference, reference.crop) for reference in references])
            pixels = references_of(
                method.reference, pixels.to(self.device, self.dtype), lambda: self.bundle.vae, self.bundle.faces_root
            )
            method = self.bundle.method if method.encodes_references else method
            features = method.features(pixels)  # [F, …] each
            identity = method.identity({name: value[None] for name, value in features.items()}, pool)
            for value in identity.values():
                check_finite(self.bundle, "method", value)
        return identity

    @torch.inference_mode()
    def blend(self, first: Identity, second: Identity, weight: float = 0.5) -> Identity:
        """Two people in one, for `Request`: the first alone at `weight` 0, the second alone at 1.

        `UserError` for a weight outside 0 … 1, and for a method that cannot blend.
        """
        check_range("--blend_weight", weight, 0, 1)
        with self.bundle.lock:
            return self.bundle.method.blended(first, second, weight)

    def together(self, people: Sequence[Identity], regions: Sequence[Box | Tensor]) -> Identity:
        """Several people in one, for `Request`: each in a region, a box (x0, y0, x1, y1) of 0 … 1 or a mask [H,W].

        `UserError` for a method that cannot keep people apart.
        """
        check_regions(self.bundle.method_class)
        return together(people, regions)

    face_tokens = identity  # its name when there was one method, whose identity is tokens

    @torch.inference_mode()
    def posed(self, identity: Identity, pose: Sequence[float]) -> Identity:
        """A person with the head turned: yaw, pitch, roll in degrees, see `head_pose`.

        `UserError` for a method that cannot turn heads.
        """
        with self.bundle.lock:
            return self.bundle.method.posed(identity, pose)

    def method_notice(self) -> str | None:
        """What to tell a user who shows faces to a model that can show nobody."""
        if self.bundle.method_class is not None:
            return None
        return (
            f"{self.bundle.path}: has no method to show a face with; give one that was trained on it with --ckpt_path "
            "(train.py trains one)"
        )

    def generate(
        self,
        prompt: str | Sequence[str],
        n_samples: int = 1,
        *,
        seed: int | torch.Generator = 0,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        face_scale: float | None = None,
        size: int | tuple[int, int] | None = None,
        uncond: str | None = None,
        preset: str | None = None,
        scheduler: str | None = None,
        guidance_interval: tuple[float, float] | None = None,
        face_interval: tuple[float, float] | None = None,
        reuse: int | None = None,
        few_step: bool | None = None,
        negative_prompt: str | None = None,
        rescale: float | None = None,
        face_box: tuple[float, float, float, float] | None = None,
        pag_scale: float | None = None,
        pag_interval: tuple[float, float] | None = None,
        batch_size: int | None = None,
        progress: bool | Callable[[], None] = True,
    ) -> list[Image.Image]:
        """Draw the person that was set, as the prompt says.

        A sample depends on its own seed only, not on how many are drawn; how they are batched changes its rounding. A
        prompt of which the text encoder reads only a part, and a preset that is drawn without its few-step adapter,
        are warned of.

        Args:
            prompt: what to draw; or several, each of which gets `n_samples` with the same seeds.
            n_samples: how many; they get the seeds `seed`, `seed` + 1, …
            seed: or a `torch.Generator`, from which the seeds are drawn.
            seeds: one seed per sample instead.
            steps … pag_interval: see `Settings`; by default the model's own.
            batch_size: samples drawn at a time, at most: memory against speed; by default what should fit.
            progress: show a bar, or call this after each step of each batch.

        Returns:
            PIL images, RGB, in the order of the prompts, each in the order of the seeds.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        n_samples = whole_number("n_samples", n_samples, 1, MAX_SAMPLES)
        if seeds is None:
            seeds = _seeds(seed, n_samples)
        wanted = Settings(
            steps,
            guidance,
            face_scale,
            size,
            uncond,
            preset,
            scheduler,
            guidance_interval,
            face_interval,
            reuse,
            few_step,
            negative_prompt,
            rescale,
            face_box,
            pag_scale,
            pag_interval,
        )
        full = self.settings(wanted)
        if notice := self.settings_notice(wanted):
            warnings.warn(notice, stacklevel=2)
        identity = self._identity  # one person, also where another is set meanwhile
        requests = [_checked((prompt, value, identity)) for prompt in prompts for value in seeds]
        if callable(progress):
            return list(self.draw(requests, full, batch_size, lambda pictures: progress()))
        with watch(total=full.steps * len(requests), desc="drawing", disable=not progress) as bar:
            return list(self.draw(requests, full, batch_size, bar.update))

    def draw(
        self,
        requests: Iterable[Request],
        settings: Settings | None = None,
        batch_size: int | None = None,
        on_step: Callable[[int], object] | None = None,
    ) -> Iterator[Image.Image]:
        """Draw many prompts and people, `batch_size` pictures at a time whoever they show.

        Identities of different sizes, as those of one face and of two, go in different batches; it costs least to have
        few such sizes.

        Args:
            requests: or plain tuples; read as far as the next batch needs.
            settings: the same for all; what is None in it comes from the preset and the model.
            batch_size: by default what should fit into memory.
            on_step: called after each evaluation of the model with the number of pictures in it.

        Returns:
            PIL images, RGB, in the order of `requests`.
        """
        full = self.settings(settings)
        size = self.batch_size(full) if batch_size is None else whole_number("batch_size", batch_size, 1, MAX_BATCH)
        noticed: set[tuple[str, bool]] = set()
        finished: dict[int, Image.Image] = {}
        due = 0

        def line() -> Iterator[Batch]:
            for batch in batches(enumerate(map(_checked, requests)), size, lambda item: _alike(item[1])):
                for prompt, shown in {(request.prompt, request.identity is not None): None for _, request in batch}:
                    if (prompt, shown) in noticed:
                        continue
                    noticed.add((prompt, shown))
                    if notice := self.prompt_notice(prompt, shown):
                        warnings.warn(f"{prompt[:40]!r}: {notice}", stacklevel=4)
                places, wanted = zip(*batch, strict=True)
                yield Batch(wanted, full, places)

        for batch, images in self.draw_batches(line(), on_step=on_step):
            if isinstance(images, UserError):
                raise images
            finished.update(zip(batch.items, images, strict=True))
            while due in finished:
                yield finished.pop(due)
                due += 1

    def draw_batches(
        self,
        wanted: Iterable[Batch],
        on_step: Callable[[int], object] | None = None,
        on_latents: Callable[[Batch, Tensor], object] | None = None,
    ) -> Iterator[tuple[Batch, list[Image.Image] | UserError]]:
        """Draw batch after batch: (batch, its pictures), or (batch, why it cannot be drawn).

        A model of low memory draws them by stages, see `stages.draw_by_stages`, and only there is `on_latents` called.
        """
        if self.low_memory:
            for batch, drawn in draw_by_stages(self.bundle, wanted, self.device, on_step, on_latents):
                yield batch, drawn if isinstance(drawn, UserError) else [Image.fromarray(image) for image in drawn]
            return
        texts: dict[str, Prompt] = {}  # prompts are encoded once
        for batch in wanted:
            try:
                images = self.draw_batch(batch.requests, batch.settings, texts=texts, on_step=on_step)
            except UserError as error:
                yield batch, error
            else:
                yield batch, images
            while len(texts) > MAX_TEXTS:
                texts.pop(next(iter(texts)))

    def draw_batch(
        self,
        requests: Sequence[Request],
        settings: Settings,
        *,
        texts: dict[str, Prompt] | None = None,
        on_step: Callable[[int], object] | None = None,
    ) -> list[Image.Image]:
        """One batch of requests with identities of one size; see `batching.draw_batch` for the arguments."""
        batch = Batch(requests, settings)
        options = {"texts": texts, "on_step": on_step, "starts": batch.starts}
        identity = batch.identity()
        pixels = draw_batch(self.bundle, batch.prompts, batch.seeds, identity, settings, self.device, **options)
        return [Image.fromarray(image) for image in batch.finished(pixels)]


def _checked(request: Request | tuple) -> Request:
    request = Request(*request)
    check_prompt(request.prompt)
    return request._replace(seed=whole_number("seed", request.seed, 0, MAX_SEED))


def _seeds(seed: int | torch.Generator, count: int) -> list[int]:
    if isinstance(seed, torch.Generator):
        return torch.randint(MAX_SEED, (count,), generator=seed, device=seed.device).tolist()
    first = whole_number("seed", seed, 0, MAX_SEED)
    return [first + index for index in range(count)]


def _alike(request: Request) -> tuple:
    """What is the same for requests that are drawn together."""
    identity, start = request.identity, request.start
    who = () if identity is None else tuple((name, value.shape) for name, value in identity.items())
    return who, () if start is None else (start.strength, start.mask is None)

"""The Python interface: show the model a person once, then draw that person as often as you like.

pipe = FeedFacePipeline.from_pretrained("models/mini")
pipe.set_faces(["face.png", "another.png"])
images = pipe.generate("a smiling man with a red hat", n_samples=4, seed=7)    # list of PIL images
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from feedface.device import pick_device, pick_dtype
from feedface.diffusion.sampling import sample
from feedface.encoders import preprocess_face
from feedface.errors import UserError
from feedface.model_files import load_model, model_digest
from feedface.prompts import check_prompt
from feedface.references import Picture, Reference, find_faces
from feedface.settings import MAX_SEED, Settings, check_range

if TYPE_CHECKING:
    from feedface.checkpoints.bundle import Bundle
    from feedface.faces.detect import FaceDetector

MAX_SAMPLES = 256


class FeedFacePipeline:
    """A loaded model and the faces it was shown last.

    Attributes:
        bundle: the networks.
        digest: changes with the model's weights.
        references: the faces that were set; empty at first: then pictures follow the prompt alone.
    """

    def __init__(self, bundle: Bundle, device: torch.device, dtype: torch.dtype):
        self.bundle, self.device, self.dtype = bundle, device, dtype
        self.digest = model_digest(bundle)
        self.references: list[Reference] = []
        self._face_tokens: Tensor | None = None  # [1, n, D]

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike,
        *,
        ckpt_path: str | os.PathLike | None = None,
        device: str | None = None,
        dtype: str | None = None,
        control: Mapping[str, Any] | None = None,
    ) -> FeedFacePipeline:
        """Load a model.

        Args:
            path: a model folder of this project, or one with the authors' files.
            ckpt_path: another face-controlnet than the model's own.
            device: "cuda", "cuda:1", "mps", "cpu"; by default the best there is.
            dtype: "fp32", "bf16", "fp16"; by default fp16 on a GPU, fp32 on a CPU.
            control: for an adapter file in the authors' naming that is not built as theirs.

        `model_files.load_model` says more about `path`, `ckpt_path` and `control`.
        """
        picked = pick_device(device)
        number = pick_dtype(dtype, picked)
        return cls(load_model(path, ckpt_path, picked, number, control), picked, number)

    @property
    def size_multiple(self) -> int:
        """Both sides of a picture must be multiples of this many pixels."""
        return self.bundle.vae.factor * self.bundle.uvit.patch_size

    def settings(self, wanted: Settings | None = None) -> Settings:
        """`wanted` with the model's defaults filled in; `UserError` for a size the model cannot draw."""
        return (wanted or Settings()).for_model(self.bundle.defaults, self.bundle.image_size, self.size_multiple)

    def prompt_notice(self, prompt: str) -> str | None:
        """What to tell the user if the text encoder will not read the whole prompt."""
        encoder = self.bundle.text_encoder
        count = len(encoder.tokenizer(prompt, verbose=False).input_ids)
        if count <= encoder.num_tokens:
            return None
        return f"the prompt has {count} tokens; the text encoder reads the first {encoder.num_tokens}, the rest is cut"

    @torch.inference_mode()
    def set_faces(self, pictures: Sequence[Picture], detector: FaceDetector | None = None, pool: str = "concat"):
        """Encode one person's faces, for all later calls of `generate`.

        Args:
            pictures: paths, PIL images or uint8 RGB arrays [H, W, 3]; several are pictures of the same person. An empty
                list removes the face.
            detector: finds the face to crop, see `faces.detect.make_detector`; None: the pictures are face crops.
            pool: "concat" (the model sees all faces), "mean" or "first".

        Returns:
            (references, notices): the faces used, and one line for each picture left out or with several faces.
        """
        references, notices = find_faces(pictures, detector) if pictures else ([], [])
        self.show(references, pool)
        return references, notices

    @torch.inference_mode()
    def show(self, references: Sequence[Reference], pool: str = "concat") -> None:
        """Like `set_faces`, with faces that were found before."""
        self.references = list(references)
        self._face_tokens = None
        if self.references:
            net = self.bundle.face_controlnet
            pixels = torch.stack([preprocess_face(reference.crop, net.face_size) for reference in self.references])
            tokens = net.encode(pixels.to(self.device, self.dtype))  # [F, n, D]
            self._face_tokens = net.join(tokens[None], pool)

    @torch.inference_mode()
    def generate(
        self,
        prompt: str,
        n_samples: int = 1,
        *,
        seed: int = 0,
        seeds: Sequence[int] | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        face_scale: float | None = None,
        size: tuple[int, int] | None = None,
        uncond: str | None = None,
        batch_size: int = 4,
        progress: bool | Callable[[], None] = True,
    ) -> list[Image.Image]:
        """Draw the person that was set, as the prompt says.

        A sample depends on its own seed only, not on how many are drawn or how they are batched.

        Args:
            prompt: what to draw.
            n_samples: how many; they get the seeds `seed`, `seed` + 1, …
            seeds: one seed per sample instead.
            steps, guidance, face_scale, size, uncond: see `Settings`; by default the model's own.
            batch_size: samples drawn at a time: memory against speed.
            progress: show a bar, or call this after each step of each batch.

        Returns:
            PIL images, RGB, in the order of the seeds.
        """
        check_prompt(prompt)
        check_range("n_samples", n_samples, 1, MAX_SAMPLES)
        seeds = list(seeds) if seeds is not None else [seed + index for index in range(n_samples)]
        for value in seeds:
            check_range("seed", value, 0, MAX_SEED)
        full = self.settings(Settings(steps, guidance, face_scale, size, uncond))
        batches = [seeds[begin : begin + batch_size] for begin in range(0, len(seeds), batch_size)]
        if not callable(progress):
            from tqdm import tqdm

            with tqdm(total=full.steps * len(batches), unit="step", disable=not progress) as bar:
                return [image for batch in batches for image in self._draw(prompt, batch, full, bar.update)]
        return [image for batch in batches for image in self._draw(prompt, batch, full, progress)]

    def _draw(self, prompt: str, seeds: list[int], settings: Settings, on_step: Callable) -> list[Image.Image]:
        bundle = self.bundle
        encode = bundle.text_encoder.encode
        width, height = settings.size
        try:
            latents, _ = sample(
                bundle.uvit,
                text=encode([prompt]),
                seeds=seeds,
                steps=settings.steps,
                guidance=settings.guidance,
                uncond_mode=settings.uncond,
                empty_text=None if settings.uncond == "true_uncond" else encode([""]),
                face_controlnet=bundle.face_controlnet,
                face_tokens=self._face_tokens,
                face_scale=settings.face_scale,
                latent_size=(height // bundle.vae.factor, width // bundle.vae.factor),
                progress=lambda done, total: on_step(),
            )
            # One at a time: at 512 px the decoder, not the U-ViT, is what fills a GPU's memory.
            pixels = torch.cat([bundle.vae.decode(latent[None]) for latent in latents])  # [B,3,H,W] in [-1,1]
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of memory on {self.device} with {len(seeds)} picture(s) of {width} x {height} at a time; draw "
                "fewer at a time (--n_samples) and more often (--n_iter), or use --dtype fp16 or --device cpu"
            ) from None
        pixels = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()  # [B,H,W,3]
        return [Image.fromarray(image) for image in pixels]

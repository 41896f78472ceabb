"""FeedFace and FlashFace as a custom pipeline of diffusers (README.md, "In diffusers").

pipe = DiffusionPipeline.from_pretrained(
    "diffusers_pipeline", custom_pipeline="diffusers_pipeline", trust_remote_code=True, model="models/mini-unet"
)
images = pipe("a woman on a beach", image="face.png", num_images_per_prompt=2).images

A Stable Diffusion in diffusers' own form can be the folder, with `method` the folder of a method for its U-Net:
DiffusionPipeline.from_pretrained("sd15", custom_pipeline="diffusers_pipeline", trust_remote_code=True, method="…")

diffusers copies this file to a cache before it reads it: FeedFace has to be installed (`pip install -e .`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput

from feedface.faces.detect import make_detector
from feedface.pipeline import FeedFacePipeline


class FeedFaceDiffusionPipeline(DiffusionPipeline):
    """A `FeedFacePipeline` with the words of diffusers. It loads to the CPU in float32; `to` moves it.

    Args:
        model: our model folder, or "user/name" of the hub; None: the folder of `from_pretrained`.
        method: another method than the model's own: a training checkpoint or our folder.
        detector: who finds faces: see `faces.detect.make_detector`; None: `image` already is face crops.
    """

    def __init__(self, model: str | None = None, method: str | None = None, detector: str | None = "auto"):
        super().__init__()
        self.register_to_config(model=model, method=method, detector=detector)
        self._feedface: FeedFacePipeline | None = None
        if model is not None:  # else the folder is known later
            self._load("cpu", torch.float32)

    def _load(self, device: str | torch.device, dtype: torch.dtype) -> FeedFacePipeline:
        path = self.config.model or self.config._name_or_path
        self._feedface = FeedFacePipeline.from_pretrained(
            path, ckpt_path=self.config.method, device=device, dtype=dtype
        )
        return self._feedface

    @property
    def feedface(self) -> FeedFacePipeline:
        """What draws, with all that it can do."""
        return self._feedface or self._load("cpu", torch.float32)

    @property
    def device(self) -> torch.device:
        return self.feedface.device

    @property
    def dtype(self) -> torch.dtype:
        return self.feedface.dtype

    def to(self, *args: Any, **kwargs: Any) -> FeedFaceDiffusionPipeline:
        """As `torch.nn.Module.to`: a device, a number format, or both. Another format is read from the disk anew."""
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if dtype is not None and dtype != self.dtype:
            self._load(device or self.device, dtype)
        elif device is not None:
            self.feedface.to(device)
        return self

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write the model as `FeedFacePipeline.save_pretrained` does."""
        self.feedface.save_pretrained(save_directory)

    def __call__(
        self,
        prompt: str | Sequence[str],
        image: Any = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        negative_prompt: str | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | None = None,
        face_scale: float | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **settings: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw the person of `image`.

        Args:
            image: pictures of one person's face: a path, PIL image or uint8 RGB array [H,W,3], or several of them;
                None: nobody in particular.
            height, width: pixels; None: the model's.
            guidance_scale: g in e_u + g (e_c - e_u), as of diffusers.
            generator: seeds are drawn from it; None: the seeds 0, 1, …
            face_scale: strength of the face, 0 to 5.
            output_type: "pil", or "np" for float32 [B,H,W,3] of 0 … 1.
            settings: others of `FeedFacePipeline.generate`: preset, scheduler, rescale, seeds, …
        """
        pipe = self.feedface
        detector = self.config.detector and make_detector(self.config.detector, pipe.bundle.faces_root)
        pipe.set_faces([] if image is None else image, detector)
        side = pipe.bundle.image_size
        images = pipe.generate(
            prompt,
            num_images_per_prompt,
            seed=0 if generator is None else generator,
            steps=num_inference_steps,
            guidance=guidance_scale,
            face_scale=face_scale,
            size=None if height is None and width is None else (width or side, height or side),
            negative_prompt=negative_prompt,
            progress=not getattr(self, "_progress_bar_config", {}).get("disable", False),
            **settings,
        )
        if output_type == "np":
            images = np.stack([np.asarray(one, np.float32) / 255 for one in images])
        return ImagePipelineOutput(images) if return_dict else (images,)

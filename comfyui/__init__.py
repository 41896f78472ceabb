"""FeedFace in ComfyUI: load a model, make a person of pictures, draw, measure the likeness.

Link or copy this folder into ComfyUI's custom_nodes/ (README.md, "In ComfyUI"). An IMAGE is float [B,H,W,3] in 0 … 1.
"""

import sys
from pathlib import Path

LIBS = Path(__file__).resolve().parents[1] / "libs"
if LIBS.is_dir():  # a checkout; else the installed package
    sys.path.insert(0, str(LIBS))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from feedface.faces.detect import make_detector  # noqa: E402
from feedface.faces.references import find_faces  # noqa: E402
from feedface.faces.similarity import FaceSimilarity  # noqa: E402
from feedface.pipeline import FeedFacePipeline, Request  # noqa: E402
from feedface.settings import MAX_SEED, PRESET_NAMES, Settings  # noqa: E402

CATEGORY = "FeedFace"
OWN_PRESET = "the model's own"


def pictures(images: torch.Tensor) -> list[np.ndarray]:
    """IMAGE -> uint8 [H,W,3] each."""
    return list((images[..., :3].clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy())


class LoadFeedFace:
    """A model folder, or user/name of the Hugging Face hub."""

    CATEGORY, FUNCTION = CATEGORY, "load"
    RETURN_TYPES, RETURN_NAMES = ("FEEDFACE",), ("model",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("STRING", {"default": "models/mini"}),
                "detector": ("STRING", {"default": "auto"}),
                "dtype": (["auto", "fp32", "bf16", "fp16"],),
            }
        }

    def load(self, model: str, detector: str, dtype: str):
        place = LIBS.parent / model
        pipe = FeedFacePipeline.from_pretrained(str(place) if place.is_dir() else model, dtype=dtype)
        return ({"pipe": pipe, "detector": make_detector(detector, pipe.bundle.faces_root)},)


class FeedFacePerson:
    """One person, of one to five pictures."""

    CATEGORY, FUNCTION = CATEGORY, "find"
    RETURN_TYPES, RETURN_NAMES = ("FEEDFACE_PERSON", "IMAGE"), ("person", "faces")

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("FEEDFACE",),
                "images": ("IMAGE",),
                "already_cropped": ("BOOLEAN", {"default": False}),
            }
        }

    def find(self, model, images: torch.Tensor, already_cropped: bool):
        detector = None if already_cropped else model["detector"]
        references, notices = find_faces(pictures(images), detector)
        for notice in notices:
            print(f"FeedFace: {notice}")
        side = max(reference.crop.shape[0] for reference in references)
        crops = [torch.from_numpy(one.crop).permute(2, 0, 1)[None].float() / 255 for one in references]
        sized = [torch.nn.functional.interpolate(crop, (side, side), mode="bilinear") for crop in crops]
        person = {"identity": model["pipe"].identity(references), "references": references}
        return person, torch.cat(sized).permute(0, 2, 3, 1)


class FeedFaceDraw:
    """Pictures of the person, or of nobody in particular where none is given."""

    CATEGORY, FUNCTION = CATEGORY, "draw"
    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {
                "model": ("FEEDFACE",),
                "prompt": ("STRING", {"multiline": True}),
                "seed": ("INT", {"default": 0, "min": 0, "max": MAX_SEED}),
                "number": ("INT", {"default": 1, "min": 1, "max": 64}),
                "preset": ([OWN_PRESET, *PRESET_NAMES], {"default": OWN_PRESET}),
                "strength": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 5.0, "step": 0.05}),
            },
            "optional": {"person": ("FEEDFACE_PERSON",), "negative_prompt": ("STRING", {"default": ""})},
        }

    def draw(self, model, prompt, seed, number, preset, strength, person=None, negative_prompt=""):
        pipe = model["pipe"]
        settings = Settings(
            preset=None if preset == OWN_PRESET else preset,
            face_scale=None if strength < 0 else strength,
            negative_prompt=negative_prompt or None,
            uncond="empty_token" if negative_prompt else None,
        )
        identity = person and person["identity"]
        requests = [Request(prompt, value, identity) for value in range(seed, seed + number)]
        images = [np.asarray(image) for image in pipe.draw(requests, settings)]
        return (torch.from_numpy(np.stack(images)).float() / 255,)


class FeedFaceLikeness:
    """How alike the faces of pictures are to the person's: cosine by the detector's recogniser; their mean."""

    CATEGORY, FUNCTION = CATEGORY, "measure"
    RETURN_TYPES, RETURN_NAMES = ("FLOAT", "STRING"), ("mean", "each")

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("FEEDFACE",), "person": ("FEEDFACE_PERSON",), "images": ("IMAGE",)}}

    def measure(self, model, person, images: torch.Tensor):
        similarity = FaceSimilarity(model["detector"], person["references"])
        values = [similarity.of(picture) for picture in pictures(images)]
        known = [value for value in values if value is not None]
        each = ", ".join("no face" if value is None else f"{value:.2f}" for value in values)
        return sum(known) / len(known) if known else float("nan"), similarity.reason or each


NODE_CLASS_MAPPINGS = {
    "LoadFeedFace": LoadFeedFace,
    "FeedFacePerson": FeedFacePerson,
    "FeedFaceDraw": FeedFaceDraw,
    "FeedFaceLikeness": FeedFaceLikeness,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "LoadFeedFace": "Load FeedFace",
    "FeedFacePerson": "FeedFace person",
    "FeedFaceDraw": "FeedFace draw",
    "FeedFaceLikeness": "FeedFace likeness",
}

"""diffusers_pipeline/: loaded by diffusers as a custom pipeline, it draws what FeedFacePipeline does."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import dynamic_modules_utils
from PIL import Image
from tests.test_draw_stable_diffusion import here  # noqa: F401, a fixture

from feedface.common.errors import UserError
from feedface.common.places import CHECKOUT
from feedface.pipeline import FeedFacePipeline

FOLDER, FACE = CHECKOUT / "diffusers_pipeline", CHECKOUT / "assets/demo_face.png"
PROMPT = "a smiling woman in a green hoodie on a beach"
QUICK = {"num_inference_steps": 2, "preset": "quality", "height": 64, "width": 64}


def load(folder, **options):
    return DiffusionPipeline.from_pretrained(folder, custom_pipeline=str(FOLDER), trust_remote_code=True, **options)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """diffusers copies pipelines before it runs them."""
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


@pytest.mark.parametrize("name", ["mini-unet", "mini-unet-flashface"])
def test_it_draws_what_the_pipeline_does(name):
    pipe = load(FOLDER, model=str(CHECKOUT / "models" / name))
    pipe.set_progress_bar_config(disable=True)
    assert (pipe.device, pipe.dtype) == (torch.device("cpu"), torch.float32)
    generator = torch.Generator().manual_seed(7)
    images = pipe(PROMPT, Image.open(FACE), generator=generator, guidance_scale=3.0, **QUICK).images
    own = FeedFacePipeline.from_pretrained(CHECKOUT / "models" / name, device="cpu", dtype="fp32")
    own.set_faces([FACE], None)
    crop_of_all = own.references[0].crop
    own.show(pipe.feedface.references)
    seed = torch.Generator().manual_seed(7)
    settings = {"seed": seed, "steps": 2, "preset": "quality", "size": (64, 64), "guidance": 3.0, "progress": False}
    [expected] = own.generate(PROMPT, **settings)
    assert np.array_equal(np.asarray(images[0]), np.asarray(expected))
    assert pipe.feedface.references[0].crop.shape != crop_of_all.shape  # the face was looked for
    [pixels] = pipe(PROMPT, generator=torch.Generator().manual_seed(7), output_type="np", return_dict=False, **QUICK)
    assert pixels.shape == (1, 64, 64, 3) and pixels.dtype == np.float32 and 0 <= pixels.min() < pixels.max() <= 1
    assert np.abs(pixels[0] * 255 - np.asarray(expected)).max() > 3  # nobody in particular


def test_a_stable_diffusion_with_a_method_for_it(here, tmp_path):  # noqa: F811
    folder = shutil.copytree(here / "folder", tmp_path / "folder")
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    pipe = load(folder, method=str(here / "method"), detector=None)
    [image] = pipe("a man", [here / "face.png"], height=128, width=128, num_inference_steps=2).images
    own = FeedFacePipeline.from_pretrained(here / "folder", ckpt_path=here / "method", device="cpu", dtype="fp32")
    own.set_faces([here / "face.png"])
    [expected] = own.generate("a man", size=128, steps=2, progress=False)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_it_moves_and_is_saved(tmp_path):
    pipe = load(FOLDER, model=str(CHECKOUT / "models/mini-unet"))
    assert pipe.to("cpu") is pipe and pipe.to(torch.bfloat16).dtype == torch.bfloat16
    pipe.save_pretrained(tmp_path / "saved")
    assert FeedFacePipeline.from_pretrained(tmp_path / "saved", device="cpu").digest == pipe.feedface.digest


def test_what_is_wrong_is_said_when_it_is_loaded(tmp_path):
    with pytest.raises(UserError, match="none"):
        load(FOLDER, model=str(tmp_path / "none"))

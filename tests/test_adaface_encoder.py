"""A person as a word in diffusers' own pipelines, unchanged."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    DDIMScheduler,
    MotionAdapter,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from ml_collections import ConfigDict
from PIL import Image
from tests.test_faces_detect import redness, write_pack
from tests.toy import toy_clips, toy_tokenizer, toy_unet

from feedface.checkpoints.bundle import save_component
from feedface.common.errors import UserError
from feedface.encoders import TextEncoder
from feedface.faces.references import NoFaceError
from feedface.inference.adaface_encoder import AdaFaceEncoder
from feedface.methods.adaface import AdaFace

CONTROL = {"vectors": 4, "face_dim": 3, "recogniser": "toy", "template": "a"}
LEVELS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "sample_size": 8,
    "norm_num_groups": 8,
    "cross_attention_dim": 16,
    "attention_head_dim": 4,
}
RED, BLUE = (Image.new("RGB", (128, 128), colour) for colour in ("red", "blue"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adaface")
    write_pack(folder / "faces", "toy", redness)
    return folder


@pytest.fixture
def parts(folder):
    torch.manual_seed(0)
    tokenizer = toy_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = 16
    return {"tokenizer": tokenizer, "text_encoder": toy_clips(tokenizer, layers=3)[0].eval()}


@pytest.fixture
def encoder(folder, parts):
    text = TextEncoder(parts["text_encoder"], parts["tokenizer"])
    method = AdaFace.fresh(ConfigDict({"control": CONTROL}), toy_unet(), text=text)
    save_component("method", method, folder / "method", None)
    encoder = AdaFaceEncoder.from_pretrained(folder / "method", "cpu")
    encoder.faces_root = folder / "faces"
    return encoder


def pipeline(kind, parts):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**LEVELS)
    vae = AutoencoderKL(block_out_channels=[8], norm_num_groups=4, latent_channels=4, sample_size=8)
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    options = {"unet": unet, "vae": vae, "scheduler": scheduler, **parts}
    if kind is AnimateDiffPipeline:
        motion = {"block_out_channels": (16, 32), "motion_layers_per_block": 1, "motion_norm_num_groups": 8}
        adapter = MotionAdapter(**motion, motion_num_attention_heads=2, use_motion_mid_block=False)
        pipe = kind(**options, motion_adapter=adapter)
    else:
        pipe = kind(**options, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, prompt: str) -> np.ndarray:
    options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
    if isinstance(pipe, StableDiffusionImg2ImgPipeline):
        return pipe(prompt, image=Image.new("RGB", (32, 32), "grey"), strength=1.0, **options).images
    if isinstance(pipe, AnimateDiffPipeline):
        return np.asarray(pipe(prompt, num_frames=2, height=8, width=8, **options).frames)
    return pipe(prompt, **options).images


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, StableDiffusionImg2ImgPipeline, AnimateDiffPipeline])
def test_a_person_is_a_word_of_diffusers_pipelines(kind, encoder, parts):
    words = encoder.encode([RED])
    assert words.shape == (4, 16)
    pipe = pipeline(kind, parts)
    before, table = draw(pipe, "a b"), pipe.text_encoder.get_input_embeddings().weight.clone()
    text = TextEncoder(pipe.text_encoder, pipe.tokenizer)
    expected = encoder.method.prompt(text, ["a z"], {"words": words[None], "pads": words[None]})["text"]
    encoder.install(pipe, words)
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[: len(table)], table)
    assert np.array_equal(draw(pipe, "a b"), before)  # who is not named changes nothing
    embeds, _ = pipe.encode_prompt("a <person>", "cpu", 1, False)
    torch.testing.assert_close(embeds, expected, atol=1e-5, rtol=0)
    shown = draw(pipe, "a <person>")
    encoder.install(pipe, -words)  # somebody else by that name
    assert len(pipe.text_encoder.get_input_embeddings().weight) == len(table) + 4
    assert not np.allclose(draw(pipe, "a <person>"), shown)


def test_a_file_of_a_person_is_a_textual_inversion(encoder, parts, folder):
    words = encoder.encode([RED])
    AdaFaceEncoder.save(words, folder / "person.safetensors", "<anna>")
    pipe = pipeline(StableDiffusionPipeline, parts)
    pipe.load_textual_inversion(str(folder / "person.safetensors"))
    first = pipe.tokenizer.convert_tokens_to_ids("<anna>")
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[first : first + 4], words)


def test_what_does_not_fit_is_said(encoder, parts, folder):
    with pytest.raises(NoFaceError):
        encoder.encode([BLUE])
    assert torch.equal(encoder.encode([BLUE, RED]), encoder.encode([RED]))
    torch.testing.assert_close(encoder.encode([RED], strength=0), encoder.method.pads[encoder.method.persons])
    words, pipe = encoder.encode([RED]), pipeline(StableDiffusionPipeline, parts)
    for name in ("person", "<a b>", ""):
        with pytest.raises(UserError, match="must be a word in angle brackets, such as <person>"):
            encoder.install(pipe, words, name)
    with pytest.raises(UserError, match="a person's words have 8 numbers, this pipeline's tokens 16"):
        encoder.install(pipe, words[:, :8])
    encoder.install(pipe, words)
    with pytest.raises(UserError, match="<person>: is already a word here, of another number of vectors"):
        encoder.install(pipe, words[:3])
    with pytest.raises(UserError, match="CLIPTextModel: takes no new words"):
        encoder.install(parts["text_encoder"], words)
    config = json.loads((folder / "method/config.json").read_text())
    (folder / "method/config.json").write_text(json.dumps({**config, "start": 99}))
    with pytest.raises(UserError, match="a person needs 104"):
        AdaFaceEncoder.from_pretrained(folder / "method", "cpu")

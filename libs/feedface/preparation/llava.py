"""Captions by LLaVA-1.5 through transformers, as the paper's data were made; weights from a folder or the model hub.

hf download llava-hf/llava-1.5-13b-hf --local-dir models/llava      # 27 GB; llava-1.5-7b-hf: 14 GB
python make_data.py … --caption llava --llava_model models/llava
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from feedface.common.device import pick_device, pick_dtype
from feedface.common.errors import UserError
from feedface.preparation.captions import DEFAULT_LLAVA, Captioner, NoCaption, Picture, one_line

# Short, because the text encoder takes 77 tokens, and about what a prompt would name, not about the photograph.
INSTRUCTION = (
    "Describe the person in this photo in one sentence of at most 30 words: "
    "who it is (a man, a woman, a child), clothes, what they do, and where they are."
)
MAX_NEW_TOKENS = 77
NEEDED = {
    "config.json": ("config.json",),
    "the weights (*.safetensors)": ("*.safetensors", "pytorch_model*.bin"),
    "tokenizer.json": ("tokenizer.json", "tokenizer.model"),
    "preprocessor_config.json": ("preprocessor_config.json", "processor_config.json"),
}


class LlavaCaptioner(Captioner):
    """LLaVA-1.5, asked `instruction` about each picture; greedy decoding, so that a picture has one caption.

    Args:
        model: a folder, or a name on the model hub (taken from its cache only if HF_HUB_OFFLINE is set).
        device, dtype: see `feedface.common.device`; by default fp16 on a GPU.
        batch_size: pictures in one pass. Every pass has that many, so that a caption does not depend on how many
            pictures were left.
        instruction: what is asked.
        max_new_tokens: longest answer; a sentence cut there is left out, unless it is the only one.

    Raises:
        UserError: weights are missing or are not LLaVA's; says which, where they go and where they come from.
    """

    kind = "llava"

    def __init__(
        self,
        model: str | Path = DEFAULT_LLAVA,
        device: str = "auto",
        dtype: str | None = None,
        batch_size: int = 8,
        instruction: str = INSTRUCTION,
        max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        self.device, self.batch_size, self.max_new_tokens = pick_device(device), batch_size, max_new_tokens
        source = _source(str(model))
        offline = isinstance(source, Path) or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
        self._processor, self._model = _load(source, offline, self.device, pick_dtype(dtype, self.device))
        self._prompt = f"USER: {self._processor.image_token}\n{one_line(instruction)} ASSISTANT:"

    def caption(self, rel: str, path: Path, image: np.ndarray | None = None) -> str:
        (result,) = self.caption_many([(rel, path, image)])
        if isinstance(result, NoCaption):
            raise result
        return result

    def caption_many(self, pictures: Sequence[Picture]) -> list[str | NoCaption]:
        results: list[str | NoCaption] = []
        for start in range(0, len(pictures), self.batch_size):
            images = [image for _, _, image in pictures[start : start + self.batch_size]]
            if any(image is None for image in images):
                raise ValueError("LLaVA needs the pictures")
            # Matrix products of another shape round in another way, and one other word changes all that follow.
            answers = self._answer(images + [images[-1]] * (self.batch_size - len(images)))
            results += [answer or NoCaption("no caption: LLaVA gave no answer") for answer in answers[: len(images)]]
        return results

    @torch.inference_mode()
    def _answer(self, images: list[np.ndarray]) -> list[str]:
        """uint8 RGB [H, W, 3] each -> cleaned answers."""
        from PIL import Image

        inputs = self._processor(
            images=[Image.fromarray(image) for image in images], text=[self._prompt] * len(images), return_tensors="pt"
        )
        inputs = inputs.to(self.device, self._model.dtype)  # only floats change their type
        tokenizer = self._processor.tokenizer
        ends = self._model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        tokens = self._model.generate(
            **inputs,
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            num_beams=1,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        )[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ended = [not ends.isdisjoint(row) for row in tokens.tolist()]
        return [clean(text, whole) for text, whole in zip(texts, ended, strict=True)]


def clean(text: str, whole: bool = True) -> str:
    """An answer as a caption: one line, without quotes around it; what was cut in a sentence ends before it."""
    text = one_line(text)
    if not whole and (sentences := re.match(r".*[.!?](?=\s)", text)):
        text = sentences[0]
    return text.strip("\"'“” ")


def _source(model: str) -> str | Path:
    """A folder that holds all it needs, or a name on the hub."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        for name, patterns in NEEDED.items():
            if not any(file.stat().st_size for pattern in patterns for file in folder.glob(pattern)):
                raise UserError(f"{folder}: {name} of LLaVA is missing there; {_how_to_get(DEFAULT_LLAVA, folder)}")
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", model):
        raise UserError(f"--llava_model {model}: no such folder; {_how_to_get(DEFAULT_LLAVA, folder)}")
    return model


def _load(source: str | Path, offline: bool, device: torch.device, dtype: torch.dtype):
    """The processor, and the model in evaluation mode."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

    name, problem = str(source), None
    try:
        processor = AutoProcessor.from_pretrained(name, local_files_only=offline)
        model, report = LlavaForConditionalGeneration.from_pretrained(
            name, local_files_only=offline, dtype=dtype, device_map=device, output_loading_info=True
        )
    except Exception as error:  # hub, JSON, tokenizers and safetensors have each their own classes
        problem = one_line(str(error)) or type(error).__name__
        if isinstance(source, Path):
            raise UserError(f"{name}: cannot be loaded as LLaVA ({problem:.200}); fetch it anew") from error
        raise UserError(
            f"--llava_model {name}: neither a folder nor {'in the cache' if offline else 'to be had'} "
            f"({problem:.120}); {_how_to_get(name, Path('models/llava'))}"
        ) from error
    if report["missing_keys"]:  # transformers would draw them at random
        raise UserError(
            f"{name}: its weights are not all of LLaVA's ({min(report['missing_keys'])} is missing); fetch them anew"
        )
    if not isinstance(processor, LlavaProcessor) or processor.image_token_id != model.config.image_token_id:
        # transformers makes tokenizers of one token out of broken files, without an error
        raise UserError(f"{name}: its tokenizer or processor does not belong to its LLaVA weights; fetch them anew")
    # Older uploads leave these to the model's config.
    if processor.patch_size is None:
        processor.patch_size = model.config.vision_config.patch_size
    if processor.vision_feature_select_strategy is None:
        processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy
    return processor, model.eval()


def _how_to_get(name: str, folder: Path) -> str:
    return (
        f"`hf download {name} --local-dir {folder}` brings it from https://huggingface.co/{name}, or use --caption "
        "none, sidecar or file"
    )

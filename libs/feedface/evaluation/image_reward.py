"""ImageReward (Xu et al. 2023): how well people would like a picture as an answer to its prompt; about -2.5 to 2.

reward = load(device)
if reward.reason is None:
    scores = reward.score(prompts, pictures)

The score comes from the package `ImageReward` where that imports. With current versions of its dependencies it does
not, so the published weights are run here by transformers' BLIP: a picture encoder, a text encoder that attends to it,
and linear layers on its first state. Letters: N pictures, D width, L tokens.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from feedface.checkpoints.official import read_state_dict
from feedface.checkpoints.storage import empty, fill
from feedface.common.errors import UserError
from feedface.common.reading import check_folder, foreign
from feedface.encoders import CLIP_MEAN, CLIP_STD
from feedface.evaluation.judges import NotMeasured

FOLDER = Path("~/.cache/ImageReward")  # the package's own
WEIGHTS, VOCABULARY = "ImageReward.pt", "vocab.txt"
SOURCES = (
    f"{WEIGHTS} from https://huggingface.co/THUDM/ImageReward and {VOCABULARY} from "
    "https://huggingface.co/google-bert/bert-base-uncased"
)
MAX_TOKENS = 35
HEAD_DIM = 64  # of one attention head, in both encoders
ADDED_TOKENS = 2  # BLIP's own, which a score does not use
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw score: what is reported has mean 0 and deviation 1
BATCH_SIZE = 16


def load(
    device: str | torch.device = "cpu", folder: str | Path | None = None
) -> "PackageReward | HostedReward | NotMeasured":
    """The package's model, else the published weights in `folder` (None: where the package keeps them).

    Returns:
        An object with `name`, `reason` None and `score(prompts, pictures) -> [N]`; or one whose `reason` says why there
        is no score, and how to get one.

    Raises:
        UserError: the files in `folder` are broken.
    """
    folder = (FOLDER if folder is None else Path(folder)).expanduser()
    try:
        import ImageReward

        return PackageReward(ImageReward.load("ImageReward-v1.0", device=device, download_root=str(folder)))
    except Exception as error:  # a dependency without a function it needs, no connection, ...: one for each
        problem = " ".join(str(error).split()) or type(error).__name__
    if (folder / WEIGHTS).is_file() and (folder / VOCABULARY).is_file():
        return HostedReward(folder, device)
    return NotMeasured(f"the package ImageReward cannot be used ({problem}); to measure, put {SOURCES} into {folder}")


class PackageReward:
    """The package's own model."""

    name, reason = "ImageReward (its package)", None

    def __init__(self, model):
        self._model = model

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """One number for each picture, uint8 RGB [H, W, 3], with its prompt: float64 [N]."""
        pairs = zip(prompts, pictures, strict=True)
        return np.array([self._model.score(prompt, Image.fromarray(picture)) for prompt, picture in pairs], np.float64)


class HostedReward:
    """The published weights in transformers' BLIP classes, in single precision.

    Args:
        folder: holds `ImageReward.pt` and BERT's `vocab.txt`.
        device: as PyTorch names it.

    Raises:
        UserError: a file is missing, broken, or is something else.
    """

    name, reason = "ImageReward (through transformers)", None

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        from transformers import BertTokenizer, CLIPImageProcessorPil

        file = Path(folder) / WEIGHTS
        state, _ = read_state_dict(file)
        state = {key: value.float() for key, value in state.items()}
        self._device = torch.device(device)
        self._sees, self._reads, self._judge = (part.to(device).eval() for part in build(state, file))
        check_folder(folder)
        with foreign(f"{folder}/{VOCABULARY}: not the vocabulary of BERT"):
            self._tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        words = self._reads.config.vocab_size - ADDED_TOKENS
        if len(self._tokenizer) != words:
            raise UserError(f"{folder}/{VOCABULARY}: {len(self._tokenizer)} words; bert-base-uncased has {words}")
        side = self._sees.config.image_size
        self._prepare = CLIPImageProcessorPil(
            size={"shortest_edge": side}, crop_size=side, image_mean=CLIP_MEAN, image_std=CLIP_STD
        )

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], pictures: Sequence[np.ndarray]) -> np.ndarray:
        """One number for each picture, uint8 RGB [H, W, 3], with its prompt (35 tokens at most): float64 [N]."""
        if len(prompts) != len(pictures):
            raise ValueError(f"{len(prompts)} prompts for {len(pictures)} pictures")
        scores = []
        for start in range(0, len(prompts), BATCH_SIZE):
            part = slice(start, start + BATCH_SIZE)
            images = [Image.fromarray(picture) for picture in pictures[part]]
            pixels = self._prepare(images, return_tensors="pt").pixel_values.to(self._device)
            words = self._tokenizer(
                list(prompts[part]), padding="max_length", truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
            ).to(self._device)
            states = self._reads(
                input_ids=words.input_ids,
                attention_mask=words.attention_mask,
                encoder_hidden_states=self._sees(pixel_values=pixels).last_hidden_state,
                is_decoder=False,  # all words see each other
            ).last_hidden_state  # [N, L, D]
            scores.append((self._judge(states[:, 0]).squeeze(1) - MEAN) / STD)
        return torch.cat(scores).cpu().numpy().astype(np.float64) if scores else np.zeros(0)


def build(state: Mapping[str, Tensor], source: Path) -> tuple[nn.Module, nn.Module, nn.Module]:
    """The published tensors as picture encoder, text encoder and judge; the shapes say how large each is."""
    from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    # A key that is not there, or a tensor of other dimensions.
    with foreign(f"{source}: not the weights of ImageReward"):
        width, _, patch, _ = state["blip.visual_encoder.patch_embed.proj.weight"].shape
        grid = round((state["blip.visual_encoder.pos_embed"].shape[1] - 1) ** 0.5)
        vision = BlipVisionConfig(
            hidden_size=width,
            intermediate_size=state["blip.visual_encoder.blocks.0.mlp.fc1.weight"].shape[0],
            num_hidden_layers=_count(state, "blip.visual_encoder.blocks."),
            num_attention_heads=width // HEAD_DIM,
            image_size=grid * patch,
            patch_size=patch,
            layer_norm_eps=1e-6,
        )
        words, text_width = state["blip.text_encoder.embeddings.word_embeddings.weight"].shape
        text = BlipTextConfig(
            vocab_size=words,
            hidden_size=text_width,
            encoder_hidden_size=width,
            intermediate_size=state["blip.text_encoder.encoder.layer.0.intermediate.dense.weight"].shape[0],
            num_hidden_layers=_count(state, "blip.text_encoder.encoder.layer."),
            num_attention_heads=text_width // HEAD_DIM,
            max_position_embeddings=state["blip.text_encoder.embeddings.position_embeddings.weight"].shape[0],
            layer_norm_eps=1e-12,
            pad_token_id=0,
            is_decoder=True,  # what transformers calls having attention to the picture
        )
        layers = sorted((key for key in state if key.startswith("mlp.") and key.endswith("weight")), key=_layer)
        judge = nn.Sequential(*(nn.Linear(*reversed(state[key].shape)) for key in layers))
        judge_state = {
            f"{place}.{kind}": state[key.replace("weight", kind)]
            for place, key in enumerate(layers)
            for kind in ("weight", "bias")
        }
    sees = empty(BlipVisionModel, {"config": vision}, source)
    seen = {_vision_name(key): value for key, value in _part(state, "blip.visual_encoder.").items()}
    reads = empty(BlipTextModel, {"config": text, "add_pooling_layer": False}, source)
    own = _part(state, "blip.text_encoder.")
    own.pop("embeddings.position_ids", None)  # 0, 1, 2, ...
    return fill(sees, seen, source), fill(reads, own, source), fill(judge, judge_state, source)


# Published names of the picture encoder's tensors, and transformers'.
VISION_NAMES = (
    (r"^cls_token", "embeddings.class_embedding"),
    (r"^pos_embed", "embeddings.position_embedding"),
    (r"^patch_embed\.proj", "embeddings.patch_embedding"),
    (r"^blocks", "encoder.layers"),
    (r"^norm\.", "post_layernorm."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.norm(\d)\.", r".layer_norm\1."),
)


def _vision_name(key: str) -> str:
    for theirs, ours in VISION_NAMES:
        key = re.sub(theirs, ours, key)
    return key


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({key.split(".")[0] for key in _part(state, prefix)})


def _layer(key: str) -> int:
    return int(key.split(".")[2])

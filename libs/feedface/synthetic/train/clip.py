"""Stage `clip`: a small CLIP for captions and portraits (Radford et al. 2021), and the tokenizer it reads with."""

import json
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.checkpoints.bundle import load_bundle, save_component
from feedface.checkpoints.storage import read_safetensors, write_state
from feedface.common.device import pick_device
from feedface.common.errors import UserError
from feedface.encoders import CLIP_MEAN, CLIP_STD, TEXT_PROJECTION, ImageEncoder, TextEncoder, load_tokenizer
from feedface.synthetic.train.common import in_batches, load_portraits, to_pixels
from feedface.training.fit import fit, write_metrics

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def train_tokenizer(captions: Sequence[str], folder: Path):
    """A `CLIPTokenizer` whose vocabulary makes one token of every word in `captions`; any other text is spelled out.

    Written to `folder` and read back. The pieces are CLIP's: lower case, `</w>` ends a word, bytes for the rest.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    clip = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.normalizer, learner.pre_tokenizer = clip.normalizer, clip.pre_tokenizer
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A size that is never reached: merging goes on until every word is one token.
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    learned = json.loads(learner.to_str())["model"]
    # Every byte also stands at the end of a word, whether or not a caption had it there.
    pieces = dict.fromkeys([*alphabet, *(letter + WORD_END for letter in alphabet), *learned["vocab"], START, END])
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in learned["merges"]])
    save_component("tokenizer", tokenizer, folder)
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) != len(vocabulary):
        raise RuntimeError(f"{folder}: {len(tokenizer)} tokens were read back, {len(vocabulary)} were written")
    return tokenizer


def build(config: ml_collections.ConfigDict, tokenizer) -> tuple[nn.Module, nn.Module]:
    """Untrained text and vision towers as `config.clip` describes."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.text_width,
        intermediate_size=4 * config.text_width,
        num_hidden_layers=config.text_layers,
        num_attention_heads=config.text_width // 32,
        max_position_embeddings=config.num_text_tokens,
        projection_dim=config.embedding_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        image_size=config.image_size,
        patch_size=config.patch_size,
        hidden_size=config.vision_width,
        intermediate_size=4 * config.vision_width,
        num_hidden_layers=config.vision_layers,
        num_attention_heads=config.vision_width // 32,
        projection_dim=config.embedding_dim,
    )
    return CLIPTextModel(text), CLIPVisionModelWithProjection(vision)


@torch.no_grad()
def go_on_from(start: str, text: nn.Module, vision: nn.Module, projection: nn.Module) -> None:
    """Load the towers and the projection of the model in folder `start`; patches are resized."""
    loaded = load_bundle(start, components=["text_encoder", "image_encoder"])
    if loaded.text_encoder.clip.config.vocab_size != text.config.vocab_size:
        raise UserError(f"clip.start={start}: its vocabulary is another one")
    text.load_state_dict(loaded.text_encoder.clip.state_dict())
    state = loaded.image_encoder.clip.state_dict()
    patches = next(name for name in state if name.endswith("patch_embedding.weight"))
    side = vision.config.patch_size
    before = state[patches].shape[-1]
    state[patches] = F.interpolate(state[patches], (side, side), mode="bilinear") * (before / side) ** 2
    vision.load_state_dict(state)
    file = loaded.components["text_encoder"] / TEXT_PROJECTION
    projection.load_state_dict(read_safetensors(file, "cpu", torch.float32))


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """Symmetric cross-entropy over the cosines of all pairs in the batch; `images`, `texts` are [B,E]."""
    logits = log_scale.exp() * F.normalize(images.float(), dim=-1) @ F.normalize(texts.float(), dim=-1).T
    own = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.clip` and leave tokenizer/, text_encoder/ and image_encoder/ in `<workdir>/bundle/`.

    The image embeddings are scaled to unit variance: the U-ViT adds noise of that size to them.
    `config.start`: a model whose CLIP, of the same widths and vocabulary, to go on from; its patches may have another
    size. "" for random weights.
    """
    config, folder, bundle = config.clip, workdir / "clip", workdir / "bundle"
    device = pick_device(config.device)
    portraits, held_out = load_portraits(workdir), load_portraits(workdir, "held_out")
    tokenizer = train_tokenizer(portraits.captions, bundle / "tokenizer")
    torch.manual_seed(config.seed)
    text, vision = build(config, tokenizer)
    projection = nn.Linear(config.text_width, config.embedding_dim, bias=False)
    if config.start:
        go_on_from(config.start, text, vision, projection)
    model = nn.ModuleDict({"text": text, "vision": vision, "projection": projection})
    model.log_scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
    model.to(device)
    mean, std = (torch.tensor(value, device=device).reshape(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))

    ids = tokenizer(
        portraits.captions,
        padding="max_length",
        truncation=True,
        max_length=config.num_text_tokens,
        return_tensors="pt",
    ).input_ids

    def step(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(portraits), (config.batch_size,), generator=generator)
        pixels = to_pixels(portraits.images[rows.numpy()], device)
        flip = torch.rand(len(rows), generator=generator).to(device) < 0.5
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
        images = vision(pixel_values=((pixels + 1) / 2 - mean) / std).image_embeds
        texts = projection(text(input_ids=ids[rows].to(device)).pooler_output)
        return contrastive_loss(images, texts, model.log_scale.clamp(max=np.log(100)))

    result = fit("clip", model, step, config, folder)

    image_encoder, text_encoder = ImageEncoder(vision), TextEncoder(text, tokenizer)
    sample = portraits.images[:: max(1, len(portraits) // 2000)]
    embeddings = in_batches(to_pixels(sample, device), image_encoder.encode)
    vision.visual_projection.weight.data /= embeddings.std().to(device)

    metrics = retrieval(image_encoder, text_encoder, projection, held_out)
    longest = max(len(tokens) for tokens in tokenizer(portraits.captions).input_ids)
    metrics |= {"vocabulary": len(tokenizer), "longest_caption_tokens": longest}
    write_metrics(folder, config, result, **metrics)
    save_component("text_encoder", text_encoder, bundle / "text_encoder")
    # The U-ViT reads the text's states; only who compares text with pictures needs the projection.
    write_state(bundle / "text_encoder" / TEXT_PROJECTION, projection.state_dict(), torch.float16)
    save_component("image_encoder", image_encoder, bundle / "image_encoder")


def retrieval(image_encoder: ImageEncoder, text_encoder: TextEncoder, projection: nn.Linear, portraits) -> dict:
    """How often a picture of people never seen finds its own caption among 100, and the other way round."""
    rows = slice(0, min(100, len(portraits)))
    device = projection.weight.device
    images = image_encoder.encode(to_pixels(portraits.images[rows], device))[:, 0]
    with torch.no_grad():
        states = text_encoder.clip(input_ids=text_encoder.tokenize(portraits.captions[rows]).to(device)).pooler_output
        similarity = F.normalize(images, dim=-1) @ F.normalize(projection(states), dim=-1).T
    # Equal captions count as found: nothing could tell them apart.
    captions = np.array(portraits.captions[rows])
    to_caption = captions[similarity.argmax(1).cpu().numpy()] == captions
    to_image = captions[similarity.argmax(0).cpu().numpy()] == captions
    return {
        "caption_of_image_top1": round(float(to_caption.mean()), 4),
        "image_of_caption_top1": round(float(to_image.mean()), 4),
        "candidates": len(captions),
    }

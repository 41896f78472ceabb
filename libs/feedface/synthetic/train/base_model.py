"""What the stages of both base models share: encoded portraits, random batches of them, losses, a sheet of samples."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.backbones.base import Backbone
from feedface.checkpoints.bundle import Bundle, load_bundle
from feedface.common.contact_sheet import save_sheet
from feedface.common.device import fast_bfloat16
from feedface.common.files import atomic_file
from feedface.diffusion.sampling import sample
from feedface.diffusion.schedule import NUM_TIMESTEPS, alphas_cumprod
from feedface.encoders import to_uint8
from feedface.synthetic.train.bundle import need, write_bundle_index
from feedface.synthetic.train.common import in_batches, load_portraits, to_pixels

ENCODERS = ("vae", "text_encoder", "image_encoder")
DECODER = ("decoder.", "post_quant_conv.")  # of the VAE: not asked when encoding
BROWS_TO_LIPS = range(2, 10)  # LaPa classes: brows, eyes, nose, mouth
# (features, generator) -> loss, parts of it to log.
Loss = Callable[["EncodedPortraits", torch.Generator], tuple[Tensor, dict[str, Tensor]]]


@dataclass
class EncodedPortraits:
    """Encoded portraits. V is 2: as they are, and mirrored."""

    latents: Tensor  # [N,V,C,h,w]
    clip_img: Tensor  # [N,V,1,Dc]
    weights: Tensor  # [N,V,1,h,w], mean 1: how much a cell counts; as encoded [N,V,1,1,1], all alike
    text: Tensor  # [N,T,Dt]
    empty_text: Tensor  # [1,T,Dt], the empty prompt

    def __len__(self) -> int:
        return len(self.latents)


def encode(portraits, encoders: Bundle, device: torch.device, amp: bool) -> EncodedPortraits:
    """Encode every portrait once; the encoders are frozen. `amp`: in bfloat16 where that is fast, at half the time."""
    with torch.autocast(device.type, torch.bfloat16, enabled=amp and fast_bfloat16(device)):
        return _encode(portraits, encoders, device)


def _encode(portraits, encoders: Bundle, device: torch.device) -> EncodedPortraits:
    views = []
    for flip in (False, True):
        images = portraits.images[:, :, ::-1] if flip else portraits.images
        latents = in_batches(images, lambda x: encoders.vae.encode(to_pixels(x, device), sample=False).float())
        clip_img = in_batches(images, lambda x: encoders.image_encoder.encode(to_pixels(x, device)).float())
        views.append((latents, clip_img))
    text = in_batches(portraits.captions, lambda texts: encoders.text_encoder.encode(texts).float())
    latents, clip_img = (torch.stack(pair, dim=1) for pair in zip(*views, strict=True))
    empty_text = encoders.text_encoder.encode([""]).float().cpu()
    return EncodedPortraits(latents, clip_img, torch.ones(len(latents), 2, 1, 1, 1), text, empty_text)


def cell_weights(masks: np.ndarray, size: tuple[int, int], face: float, features: float) -> Tensor:
    """How much each latent cell counts: [N,2,1,h,w], mean 1, from LaPa masks [N,H,W]; second view: mirrored.

    A cell of background counts 1, of a face (with hair: it tells people apart) `face`, of its features `features`:
    they are a few cells, and what a portrait is looked at for.
    """

    def share(chosen: np.ndarray) -> Tensor:  # in parts: as floats, a world's masks take gigabytes
        parts = torch.from_numpy(chosen)[:, None].split(4096)
        return torch.cat([F.adaptive_avg_pool2d(part.float(), size) for part in parts])

    in_features = np.isin(masks, BROWS_TO_LIPS)
    weights = 1 + (face - 1) * share(masks > 0) + (features - face) * share(in_features)
    weights = weights / weights.mean()
    return torch.stack([weights, weights.flip(-1)], dim=1)


def encoded(portraits, encoders: Bundle, device: torch.device, amp: bool, file: Path) -> EncodedPortraits:
    """`encode`, kept in `file`: on a CPU, encoding a world anew takes as long as minutes of training."""
    digest = hashlib.sha256(json.dumps(portraits.captions).encode())
    digest.update(np.ascontiguousarray(portraits.images))
    for name in ENCODERS:
        for key, value in sorted(getattr(encoders, name).state_dict().items()):
            if not key.startswith(DECODER):
                digest.update(key.encode() + value.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    kept = _read(file, digest.hexdigest())
    if kept is not None:
        return EncodedPortraits(**kept)
    features = encode(portraits, encoders, device, amp)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        tensors = {key: value.contiguous() for key, value in vars(features).items()}
        save_file(tensors, temporary, metadata={"digest": digest.hexdigest()})
    return features


def _read(file: Path, digest: str) -> dict[str, Tensor] | None:
    """What `file` holds if it is of `digest`."""
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("digest") != digest:
            return None
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


@dataclass
class Material:
    """What a base model is trained on and measured with."""

    features: EncodedPortraits
    encoders: Bundle
    held_out: object  # portraits of people not trained on
    amp: bool
    device: torch.device

    def measure(self, backbone: Backbone, loss: Loss, sheet: Path) -> dict[str, float]:
        """Losses on people not trained on, by the name of their part; a sheet of samples of their captions."""
        unseen = encode(self.held_out, self.encoders, self.device, self.amp)
        with torch.no_grad():
            parts = [loss(unseen, torch.Generator().manual_seed(seed))[1] for seed in range(20)]
        captions = self.held_out.captions[:: max(1, len(self.held_out) // 32)][:32]
        write_samples(sheet, backbone, self.encoders, captions)
        return {f"held_out_{name}_loss": round(float(np.mean([part[name] for part in parts])), 4) for name in parts[0]}


def material(config: ml_collections.ConfigDict, workdir: Path, amp: bool, device: torch.device) -> Material:
    """The portraits, encoded once for both base models, in stage `uvit`'s folder and with its weights of cells."""
    bundle = workdir / "bundle"
    need(bundle, *ENCODERS)
    write_bundle_index(bundle, config.uvit.image_size)
    encoders = load_bundle(bundle, device, components=ENCODERS)
    portraits, held_out = load_portraits(workdir, "train"), load_portraits(workdir, "held_out")
    file = workdir / "uvit" / "features.safetensors"
    features = encoded(portraits, encoders, device, amp, file)
    counts = config.uvit.face_weight, config.uvit.feature_weight
    features.weights = cell_weights(portraits.masks, features.latents.shape[-2:], *counts)
    return Material(features, encoders, held_out, amp, device)


def draw_rows(features: EncodedPortraits, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Random portraits, views of them, and timesteps: int64 [count] each."""
    row = torch.randint(len(features), (count,), generator=generator)
    view = torch.randint(2, (count,), generator=generator)
    # One timestep from each of n equal spans: the loss of a step then depends less on which it drew.
    t = ((torch.arange(count) + torch.rand(count, generator=generator)) * (NUM_TIMESTEPS / count)).long() + 1
    return row, view, t


def weighted(error: Tensor, t: Tensor, min_snr: float) -> Tensor:
    """Mean of squared errors [B,…], each sample's by its `min_snr_weights`."""
    return (min_snr_weights(t, min_snr).to(error.device) * error.flatten(1).mean(1)).mean()


def min_snr_weights(t: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR for noise prediction (Hang et al. 2023, eq. 7) at timesteps [B]; 1 for gamma 0."""
    if not gamma:
        return torch.ones(len(t))
    alpha_bar = alphas_cumprod()[t - 1]
    return (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1).float()


def write_samples(path: Path, backbone: Backbone, encoders: Bundle, prompts: list[str], steps: int = 20) -> None:
    """A sheet of 8 columns: guidance 3, one picture a prompt; the prompts go into a text file beside it."""
    device = next(backbone.parameters()).device
    text, empty = ({"text": encoders.text_encoder.encode(texts).to(device)} for texts in (prompts, [""]))
    state = sample(backbone, text, range(len(prompts)), steps=steps, guidance=3.0, empty_prompt=empty)
    pictures = to_uint8(encoders.vae.decode(state["img"]))
    full_rows = range(0, len(pictures) - len(pictures) % 8, 8)
    save_sheet(path, [pictures[i : i + 8] for i in full_rows] or [pictures])
    path.with_suffix(".txt").write_text("\n".join(prompts) + "\n")

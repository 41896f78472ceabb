"""Stage `uvit`: the base model, a small U-ViT that draws portraits from a prompt, without anybody's face."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import Bundle, load_bundle, save_component
from feedface.common.device import pick_device
from feedface.common.files import atomic_file
from feedface.diffusion.sampling import sample
from feedface.diffusion.schedule import NUM_TIMESTEPS, add_noise, alphas_cumprod
from feedface.encoders import to_uint8
from feedface.synthetic.train.bundle import write_bundle_index
from feedface.synthetic.train.common import in_batches, load_portraits, save_sheet, to_pixels
from feedface.synthetic.train.identity_start import identity_start
from feedface.training.fit import fit, write_metrics

ENCODERS = ("vae", "text_encoder", "image_encoder")


@dataclass
class Features:
    """Encoded portraits. V is 2: as they are, and mirrored."""

    latents: Tensor  # [N,V,C,h,w]
    clip_img: Tensor  # [N,V,1,Dc]
    weights: Tensor  # [N,V,1,h,w], mean 1: how much a cell counts
    text: Tensor  # [N,T,Dt]
    empty_text: Tensor  # [1,T,Dt], the empty prompt

    def __len__(self) -> int:
        return len(self.latents)


def encode(portraits, encoders: Bundle, device: torch.device, face_weight: float) -> Features:
    """Encode every portrait once; the encoders are frozen."""
    views = []
    for flip in (False, True):
        images = portraits.images[:, :, ::-1] if flip else portraits.images
        masks = portraits.masks[:, :, ::-1] if flip else portraits.masks
        latents = in_batches(images, lambda x: encoders.vae.encode(to_pixels(x, device), sample=False))
        clip_img = in_batches(images, lambda x: encoders.image_encoder.encode(to_pixels(x, device)))
        face = torch.from_numpy(masks > 0).float()[:, None]  # with hair: it tells people apart
        weights = 1 + (face_weight - 1) * F.adaptive_avg_pool2d(face, latents.shape[-2:])
        views.append((latents, clip_img, weights / weights.mean()))
    text = in_batches(portraits.captions, encoders.text_encoder.encode)
    parts = (torch.stack(pair, dim=1) for pair in zip(*views, strict=True))
    return Features(*parts, text=text, empty_text=encoders.text_encoder.encode([""]).cpu())


def encoded(portraits, encoders: Bundle, device: torch.device, face_weight: float, file: Path) -> Features:
    """`encode`, kept in `file`: on a CPU, encoding a world anew takes as long as minutes of training."""
    digest = hashlib.sha256(json.dumps([face_weight, portraits.captions]).encode())
    for array in (portraits.images, portraits.masks):
        digest.update(np.ascontiguousarray(array))
    for name in ENCODERS:
        for key, value in sorted(getattr(encoders, name).state_dict().items()):
            digest.update(key.encode() + value.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    kept = _read(file, digest.hexdigest())
    if kept is not None:
        return Features(**kept)
    features = encode(portraits, encoders, device, face_weight)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as temporary:
        save_file({key: value.contiguous() for key, value in vars(features).items()}, temporary,
                  metadata={"digest": digest.hexdigest()})  # fmt: skip
    return features


def _read(file: Path, digest: str) -> dict[str, Tensor] | None:
    """What `file` holds if it is of `digest`."""
    if not file.is_file():
        return None
    with safe_open(file, framework="pt") as opened:
        if (opened.metadata() or {}).get("digest") != digest:
            return None
        return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118


def noise_loss(uvit: UViT, features: Features, config: ml_collections.ConfigDict, generator: torch.Generator):
    """Weighted squared error of both noises on a random batch -> (loss, parts to log)."""
    device = uvit.pos_embed.device
    n = config.batch_size
    row = torch.randint(len(features), (n,), generator=generator)
    view = torch.randint(2, (n,), generator=generator)
    latents, clip_img = features.latents[row, view], features.clip_img[row, view]
    # One timestep from each of n equal spans: the loss of a step then depends less on which it drew.
    t = ((torch.arange(n) + torch.rand(n, generator=generator)) * (NUM_TIMESTEPS / n)).long() + 1
    noise = torch.randn(latents.shape, generator=generator)
    clip_noise = torch.randn(clip_img.shape, generator=generator)

    # What "unconditional" may mean at sampling time (see diffusion.guidance) has to be learned here.
    text = features.text[row]
    dropped = torch.rand(n, generator=generator)
    is_noise = dropped < config.noise_text
    is_empty = (dropped >= config.noise_text) & (dropped < config.noise_text + config.empty_text)
    text = torch.where(is_noise[:, None, None], torch.randn(text.shape, generator=generator), text)
    text = torch.where(is_empty[:, None, None], features.empty_text, text)
    t_text = is_noise * NUM_TIMESTEPS
    data_type = torch.randint(2, (n,), generator=generator)  # the authors train with 0 and sample with 1

    inputs = (add_noise(latents, noise, t), add_noise(clip_img, clip_noise, t), text, t, t_text, data_type)
    out = uvit(*(value.to(device) for value in inputs))
    img_error = (out.img.float() - noise.to(device)).square() * features.weights[row, view].to(device)
    clip_error = (out.clip_img.float() - clip_noise.to(device)).square()
    weights = min_snr_weights(t, config.min_snr).to(device)
    img_loss, clip_loss = ((weights * error.flatten(1).mean(1)).mean() for error in (img_error, clip_error))
    return img_loss + config.clip_weight * clip_loss, {"img": img_loss.detach(), "clip_img": clip_loss.detach()}


def min_snr_weights(t: Tensor, gamma: float) -> Tensor:
    """min(SNR, gamma) / SNR for noise prediction (Hang et al. 2023, eq. 7) at timesteps [B]; 1 for gamma 0."""
    if not gamma:
        return torch.ones(len(t))
    alpha_bar = alphas_cumprod()[t - 1]
    return (gamma * (1 - alpha_bar) / alpha_bar).clamp(max=1).float()


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.uvit` and leave `<workdir>/bundle/uvit/`; the bundle then makes portraits without a face.

    `config.start`: a model whose U-ViT, of the same shape, to go on from; "" for random weights.
    """
    config, folder, bundle = config.uvit, workdir / "uvit", workdir / "bundle"
    device = pick_device(config.device)
    write_bundle_index(bundle, config.image_size)
    encoders = load_bundle(bundle, device, components=ENCODERS)
    portraits, held_out = load_portraits(workdir, "train"), load_portraits(workdir, "held_out")
    features = encoded(portraits, encoders, device, config.face_weight, folder / "features.safetensors")
    torch.manual_seed(config.seed)
    uvit = UViT(
        img_size=features.latents.shape[-2:],
        in_chans=features.latents.shape[2],
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        text_dim=features.text.shape[2],
        num_text_tokens=features.text.shape[1],
        clip_img_dim=features.clip_img.shape[-1],
    ).to(device)
    if not config.start:
        identity_start(uvit)
    else:
        uvit.load_state_dict(load_bundle(config.start, device, components=["backbone"]).backbone.state_dict())

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return noise_loss(uvit, features, config, generator)

    blocks = (*uvit.in_blocks, uvit.mid_block, *uvit.out_blocks)
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    result = fit("uvit", uvit, step, config, folder, matrices)
    save_component("backbone", uvit, bundle / "uvit")
    write_bundle_index(bundle, config.image_size)

    unseen = encode(held_out, encoders, device, 1.0)
    with torch.no_grad():
        parts = [noise_loss(uvit, unseen, config, torch.Generator().manual_seed(seed))[1] for seed in range(20)]
    metrics = {f"held_out_{name}_loss": round(float(np.mean([part[name] for part in parts])), 4) for name in parts[0]}
    write_metrics(folder, config, result, **metrics)
    write_samples(folder / "samples.png", uvit, encoders, held_out.captions[:: max(1, len(held_out) // 32)][:32])


def write_samples(path: Path, uvit: UViT, encoders: Bundle, prompts: list[str], steps: int = 20) -> None:
    """A sheet of 8 columns: guidance 3, one picture a prompt; the prompts go into a text file beside it."""
    device = uvit.pos_embed.device
    latents, _ = sample(
        uvit,
        text=encoders.text_encoder.encode(prompts).to(device),
        seeds=range(len(prompts)),
        steps=steps,
        guidance=3.0,
    )
    pictures = to_uint8(encoders.vae.decode(latents))
    full_rows = range(0, len(pictures) - len(pictures) % 8, 8)
    save_sheet(path, [pictures[i : i + 8] for i in full_rows] or [pictures])
    path.with_suffix(".txt").write_text("\n".join(prompts) + "\n")

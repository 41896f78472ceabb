"""Stage `uvit`: the base model, a small U-ViT that draws portraits from a prompt, without anybody's face."""

from pathlib import Path

import ml_collections
import torch
from torch import Tensor

from feedface.backbones.uvit import UViT
from feedface.checkpoints.bundle import load_bundle, save_component
from feedface.common.device import pick_device
from feedface.diffusion.schedule import NUM_TIMESTEPS, add_noise
from feedface.synthetic.train.base_model import EncodedPortraits, draw_rows, material, weighted
from feedface.synthetic.train.bundle import write_bundle_index
from feedface.synthetic.train.identity_start import identity_start
from feedface.training.fit import fit, write_metrics


def noise_loss(uvit: UViT, features: EncodedPortraits, config: ml_collections.ConfigDict, generator: torch.Generator):
    """Weighted squared error of both noises on a random batch -> (loss, parts to log)."""
    device = uvit.pos_embed.device
    n = config.batch_size
    row, view, t = draw_rows(features, n, generator)
    latents, clip_img = features.latents[row, view], features.clip_img[row, view]
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
    out = uvit.predict(*(value.to(device) for value in inputs))
    img_error = (out.img.float() - noise.to(device)).square() * features.weights[row, view].to(device)
    clip_error = (out.clip_img.float() - clip_noise.to(device)).square()
    img_loss, clip_loss = (weighted(error, t, config.min_snr) for error in (img_error, clip_error))
    return img_loss + config.clip_weight * clip_loss, {"img": img_loss.detach(), "clip_img": clip_loss.detach()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.uvit` and leave `<workdir>/bundle/uvit/`; the bundle then makes portraits without a face.

    `config.start`: a model whose U-ViT, of the same shape, to go on from; "" for random weights.
    """
    settings, folder, bundle = config.uvit, workdir / "uvit", workdir / "bundle"
    device = pick_device(settings.device)
    given = material(config, workdir, settings.amp, device)
    features = given.features
    torch.manual_seed(settings.seed)
    uvit = UViT(
        img_size=features.latents.shape[-2:],
        in_chans=features.latents.shape[2],
        patch_size=settings.patch_size,
        embed_dim=settings.width,
        depth=settings.depth,
        num_heads=settings.num_heads,
        text_dim=features.text.shape[2],
        num_text_tokens=features.text.shape[1],
        clip_img_dim=features.clip_img.shape[-1],
    ).to(device)
    if not settings.start:
        identity_start(uvit)
    else:
        uvit.load_state_dict(load_bundle(settings.start, device, components=["backbone"]).backbone.state_dict())

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return noise_loss(uvit, features, settings, generator)

    blocks = (*uvit.in_blocks, uvit.mid_block, *uvit.out_blocks)
    matrices = [p for block in blocks for p in block.parameters() if p.ndim == 2]
    result = fit("uvit", uvit, step, settings, folder, matrices)
    save_component("backbone", uvit, bundle / "uvit")
    write_bundle_index(bundle, settings.image_size)

    def loss(unseen: EncodedPortraits, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        return noise_loss(uvit, unseen, settings, generator)

    write_metrics(folder, settings, result, **given.measure(uvit, loss, folder / "samples.png"))

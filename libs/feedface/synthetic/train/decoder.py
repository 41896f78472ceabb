"""Stage `decoder`: the VAE's decoder learns on, its encoder frozen, so that latents, and what is trained on them, stay.

Latents that the U-ViT draws are never quite those of a picture; a little noise on them teaches the decoder to forgive.
"""

from pathlib import Path

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.checkpoints.bundle import load_bundle, save_component
from feedface.common.device import pick_device
from feedface.synthetic.train.bundle import need
from feedface.synthetic.train.common import load_portraits
from feedface.synthetic.train.vae import draw_batch, measure, reconstruction_loss
from feedface.training.fit import fit, write_metrics


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.decoder` and put the better decoder into `<workdir>/bundle/vae/`."""
    config, folder, bundle = config.decoder, workdir / "decoder", workdir / "bundle"
    need(bundle, "vae")
    device = pick_device(config.device)
    portraits, held_out = load_portraits(workdir, "train"), load_portraits(workdir, "held_out")
    codec = load_bundle(bundle, device, components=["vae"]).vae
    vae = codec.vae
    stack = round((vae.config.in_channels / 3) ** 0.5)
    decoder = nn.ModuleDict({"decoder": vae.decoder, "post_quant_conv": vae.post_quant_conv}).requires_grad_(True)

    def step(generator: torch.Generator) -> Tensor:
        pixels, masks = draw_batch(portraits, config.batch_size, device, generator)
        with torch.no_grad():
            mean, sigma = (part.float() for part in codec.moments(pixels))
        noise = torch.randn(mean.shape, generator=generator).to(device)
        latents = mean + (sigma + config.latent_noise) * noise
        output = F.pixel_shuffle(vae.decode(latents / vae.config.scaling_factor).sample, stack)
        return reconstruction_loss(pixels, output, masks)

    result = fit("decoder", decoder, step, config, folder)
    write_metrics(folder, config, result, **measure(codec, held_out, folder / "samples.png", device))
    save_component("vae", vae, bundle / "vae")

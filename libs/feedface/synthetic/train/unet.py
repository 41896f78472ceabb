"""Stage `unet`: the other base model, Stable Diffusion's U-Net in small, on the latents and texts of stage `uvit`."""

from pathlib import Path

import ml_collections
import torch
from diffusers import UNet2DConditionModel

from feedface.backbones.unet import UNet
from feedface.checkpoints.bundle import save_component
from feedface.common.device import pick_device
from feedface.diffusion.schedule import add_noise
from feedface.synthetic.train.base_model import EncodedPortraits, draw_rows, material, weighted
from feedface.synthetic.train.bundle_unet import write_unet_index
from feedface.training.fit import fit, write_metrics


def build(config: ml_collections.ConfigDict, features: EncodedPortraits) -> UNet:
    """An untrained U-Net as `config.unet` describes: attention at all levels but the first, which has most pixels."""
    attending = len(config.channels) - 1
    return UNet(
        UNet2DConditionModel(
            sample_size=tuple(features.latents.shape[-2:]),
            in_channels=features.latents.shape[2],
            out_channels=features.latents.shape[2],
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * attending),
            up_block_types=(*("CrossAttnUpBlock2D",) * attending, "UpBlock2D"),
            block_out_channels=tuple(config.channels),
            layers_per_block=config.layers_per_block,
            norm_num_groups=config.norm_groups,
            cross_attention_dim=features.text.shape[2],
            attention_head_dim=tuple(width // config.head_width for width in config.channels),  # how many heads
        )
    )


def noise_loss(unet: UNet, features: EncodedPortraits, config: ml_collections.ConfigDict, generator: torch.Generator):
    """Weighted squared error of the noise on a random batch -> (loss, parts to log)."""
    device = unet.unet.device
    row, view, t = draw_rows(features, config.batch_size, generator)
    latents = features.latents[row, view]
    noise = torch.randn(latents.shape, generator=generator)
    is_empty = torch.rand(len(row), generator=generator) < config.empty_text  # what guidance takes as unconditional
    text = torch.where(is_empty[:, None, None], features.empty_text, features.text[row])
    conditions = unet.conditions({"text": text.to(device)})
    out = unet({"img": add_noise(latents, noise, t).to(device)}, t.to(device), conditions)["img"]
    error = (out.float() - noise.to(device)).square() * features.weights[row, view].to(device)
    loss = weighted(error, t, config.min_snr)
    return loss, {"img": loss.detach()}


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.unet` and leave `<workdir>/bundle_unet/`: all but the U-Net is `<workdir>/bundle/`'s."""
    settings, folder = config.unet, workdir / "unet"
    device = pick_device(settings.device)
    given = material(config, workdir, settings.amp, device)
    torch.manual_seed(settings.seed)
    unet = build(settings, given.features).to(device)
    result = fit("unet", unet, lambda g: noise_loss(unet, given.features, settings, g), settings, folder)
    save_component("backbone", unet, workdir / "bundle_unet" / "unet")
    write_unet_index(workdir, settings.image_size)
    metrics = given.measure(unet, lambda unseen, g: noise_loss(unet, unseen, settings, g), folder / "samples.png")
    write_metrics(folder, settings, result, **metrics)

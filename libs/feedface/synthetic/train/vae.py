"""Stage `vae`: diffusers' `AutoencoderKL` for small portraits.

Pixels go in stacked 2 x 2 into channels (see `encoders.LatentCodec`), so that no convolution runs at full resolution.
"""

from pathlib import Path

import ml_collections
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.checkpoints.bundle import load_bundle, save_component
from feedface.common.contact_sheet import save_sheet
from feedface.common.device import pick_device
from feedface.encoders import LatentCodec, to_uint8
from feedface.synthetic.train.common import in_batches, load_portraits, to_pixels
from feedface.training.fit import fit, write_metrics

# How much a pixel of each LaPa class weighs: background, skin, brows, eyes, nose, lips and mouth, hair. Who a person
# is shows in few pixels, and an even loss gives those up first.
CLASS_WEIGHTS = (1.0, 2.0, 5.0, 5.0, 8.0, 8.0, 4.0, 5.0, 5.0, 5.0, 1.5)


def build(config: ml_collections.ConfigDict):
    """An untrained `AutoencoderKL` as `config.vae` describes."""
    from diffusers import AutoencoderKL

    levels = len(config.channels)
    vae = AutoencoderKL(
        in_channels=3 * config.stack**2,
        out_channels=3 * config.stack**2,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels),
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=config.image_size // config.stack,
        mid_block_add_attention=False,
    )
    # A standard deviation of 0.05 to begin with: at 1, as drawn, the first latents drown in noise for many steps.
    nn.init.constant_(vae.quant_conv.bias[config.latent_channels :], -6.0)
    return vae


def reconstruction_loss(pixels: Tensor, output: Tensor, masks: Tensor) -> Tensor:
    """Mean absolute error of pixels and of their differences to the neighbours, weighted by class.

    Args:
        pixels, output: [B,3,H,W] in [-1, 1].
        masks: [B,H,W] uint8 LaPa classes.
    """
    table = torch.tensor(CLASS_WEIGHTS, device=pixels.device)
    # Averaged over the neighbours: what surrounds an eye makes it an eye.
    weights = F.avg_pool2d(table[masks.long()][:, None], 3, stride=1, padding=1, count_include_pad=False)
    weights = weights / weights.mean()
    error = output.float() - pixels
    loss = (weights * error.abs()).mean()
    # Differences of neighbours are what blur loses first.
    across = (weights[..., 1:] * (error[..., 1:] - error[..., :-1]).abs()).mean()
    down = (weights[..., 1:, :] * (error[..., 1:, :] - error[..., :-1, :]).abs()).mean()
    return loss + 0.5 * (across + down)


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train on `config.vae` and leave `<workdir>/bundle/vae/`, its scaling factor set to give latents unit variance.

    `config.start`: a model whose VAE, of the same shape, to go on from (pictures may have another size); "" for
    random weights.
    """
    config, folder = config.vae, workdir / "vae"
    device = pick_device(config.device)
    portraits, held_out = load_portraits(workdir), load_portraits(workdir, "held_out")
    torch.manual_seed(config.seed)
    vae = build(config).to(device)
    if config.start:
        vae.load_state_dict(load_bundle(config.start, device, components=["vae"]).vae.vae.state_dict())
        vae.requires_grad_(True)

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        pixels, masks = draw_batch(portraits, config.batch_size, device, generator)
        posterior = vae.encode(F.pixel_unshuffle(pixels, config.stack)).latent_dist
        mean, sigma = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=generator).to(device)
        output = F.pixel_shuffle(vae.decode(mean + sigma * noise).sample, config.stack)
        loss = reconstruction_loss(pixels, output, masks)
        kl = 0.5 * (mean.square() + sigma.square() - 1 - 2 * sigma.log()).mean()
        return loss + config.kl_weight * kl, {"reconstruction": loss.detach(), "kl": kl.detach()}

    result = fit("vae", vae, step, config, folder)
    codec = LatentCodec(vae)
    sample = to_pixels(portraits.images[:: max(1, len(portraits) // 2000)], device)
    latents = in_batches(sample, lambda x: codec.encode(x, sample=False))
    vae.register_to_config(scaling_factor=float(vae.config.scaling_factor / latents.std()))

    metrics = measure(codec, held_out, folder / "samples.png", device)
    write_metrics(folder, config, result, **metrics, scaling_factor=round(vae.config.scaling_factor, 4))
    save_component("vae", vae, workdir / "bundle" / "vae")


def draw_batch(portraits, batch_size: int, device: torch.device, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random portraits, half of them mirrored: pixels [B,3,H,W] in [-1, 1] and their masks [B,H,W]."""
    rows = torch.randint(len(portraits), (batch_size,), generator=generator).numpy()
    pixels = to_pixels(portraits.images[rows], device)
    masks = torch.from_numpy(portraits.masks[rows]).to(device)
    flip = torch.rand(batch_size, generator=generator).to(device) < 0.5
    pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    return pixels, torch.where(flip[:, None, None], masks.flip(-1), masks)


def measure(codec: LatentCodec, held_out, sheet: Path, device: torch.device) -> dict:
    """PSNR of round trips of people not trained on, in all and where the face is; a sheet of examples."""
    pixels = to_pixels(held_out.images, device)
    decoded = to_uint8(in_batches(pixels, lambda x: codec.decode(codec.encode(x, sample=False))))
    square = (held_out.images.astype(np.float32) - decoded) ** 2
    face = np.isin(held_out.masks, range(1, 10))
    features = np.isin(held_out.masks, (2, 3, 4, 5, 6, 7, 8, 9))
    rows = slice(0, len(held_out), max(1, len(held_out) // 12))
    save_sheet(sheet, [held_out.images[rows][:12], decoded[rows][:12]])
    return {
        "psnr_db": _psnr(square.mean()),
        "psnr_face_db": _psnr(square[face].mean()),
        "psnr_eyes_brows_nose_mouth_db": _psnr(square[features].mean()),
        "held_out_pictures": len(held_out),
    }


def _psnr(mean_square: float) -> float:
    return round(float(10 * np.log10(255**2 / mean_square)), 2)

"""The authors' checkpoint of the open FlashFace: a diffusers folder of a Stable Diffusion with a second U-Net, refnet/.

    model_index.json unet/ refnet/ vae/ text_encoder/ tokenizer/ scheduler/

`bundle.read_index` takes such a folder as a model with this method; `flashface_export` writes one.
"""

from pathlib import Path

import torch

from feedface.backbones.unet import UNet
from feedface.checkpoints.libraries import from_pretrained
from feedface.common.errors import UserError
from feedface.methods.flashface import FlashFace

REFNET = "refnet"
# As the authors draw (their `inference.py`): guidance, strength of the references, size of their crops.
GUIDANCE, SCALE, REFERENCE_PX = 3.0, 0.85, 256
# Of their pipeline's text encoder: a prompt goes without the last layer, a negative prompt with it.
CLIP_SKIP, NEGATIVE_SKIP = 1, 0


def load_reference_net(folder: Path, device: str | torch.device, dtype: torch.dtype | None) -> FlashFace:
    """The method around it; `UserError` for what is missing, broken or no U-Net of Stable Diffusion."""
    from diffusers import UNet2DConditionModel

    unet = from_pretrained(UNet2DConditionModel, folder, described=UNet.config_type(), torch_dtype=dtype)
    try:
        return FlashFace.around(UNet(unet), REFERENCE_PX).to(device)
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from None

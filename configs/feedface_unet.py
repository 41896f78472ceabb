"""FeedFace on Stable Diffusion's U-Net (1.5, 512 px): the paper's training, on 8 GPUs. The authors released none.

accelerate launch --num_processes 8 --mixed_precision fp16 --multi_gpu train.py --config=configs/feedface_unet.py \
    --workdir=workdir/feedface_unet

130.6 M parameters are trained, at every other of the U-Net's 16 transformer blocks: 21 % of its arithmetic.
"""

from configs import train_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the U-ViT's."""
    config = train_config.get_config()
    config.model = "models/stable-diffusion-v1-5"  # a diffusers folder, or one .safetensors or .ckpt
    config.control.sites = ()  # every other block; or names such as "up_blocks.2.attentions.0"
    config.control.num_heads = 8  # as the U-Net's own
    # False saves most of the work at the sites of 64x64 tokens, where it is more than half of a control block's.
    config.control.self_attention = True
    config.train.batch_size = 12  # times 8: the paper's 96
    return config

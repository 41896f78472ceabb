"""FlashFace, the open variant, on Stable Diffusion 1.5 (512 px): its authors' training, on 8 GPUs.

accelerate launch --num_processes 8 --mixed_precision fp16 --multi_gpu train.py --config=configs/flashface.py \
    --workdir=workdir/flashface

Both U-Nets are trained, 1.70 B parameters. On one GPU: the reference net and the backbone's attention at the sites,
    --config.control.backbone=attention
or adapters alone, with the frozen backbone as its own reference net:
    --config.control.writer=backbone --config.control.backbone=frozen --config.control.rank=128
"""

from configs import train_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from FeedFace's training."""
    config = train_config.get_config()
    config.seed = 42
    config.model = "models/stable-diffusion-v1-5"  # a diffusers folder, or one .safetensors or .ckpt
    config.face_encoder = ""
    config.method = "flashface"
    config.control = ConfigDict(
        {
            # Self-attentions that read references: () is all but those on the way down, ("all",) is all, or names.
            "sites": (),
            "reference_px": 256,  # side of a face crop, as the reference net sees it
            "reference_latent": "sample",  # what training shows of that crop: a sample of its posterior, or the "mode"
            "writer": "copy",  # the reference net: a "copy" of the backbone, or the "backbone" itself, frozen
            "backbone": "all",  # what is trained of it: "all", its "attention" at the sites, or nothing ("frozen")
            "rank": 0,  # of adapters for the references' keys and values; 0: none
        }
    )
    config.data.flip = 0.0
    config.data.buckets = True
    config.data.other_picture = 1.0  # never the target itself, where the record lists others
    config.data.max_faces = 4  # each sample shows 1 to as many as the step has, and that is 1 to 4
    config.loss.kind = "standard"
    config.loss.face_dropout = 0.1  # no reference at all; the authors' 0 leaves guidance nothing to lead away from
    config.loss.text_dropout = 0.1
    config.train.steps = 100_000
    config.train.batch_size = 8
    config.train.lr = 5e-6
    config.train.betas = (0.9, 0.999)
    config.train.weight_decay = 0.01
    config.train.warmup_steps = 0
    config.checkpoint.every = 5_000
    return config

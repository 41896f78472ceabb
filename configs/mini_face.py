"""The miniature's face-controlnet, on two CPU cores: the paper's recipe, going on from models/mini.

    python -m feedface.synthetic.world --out data/portraits --identities 200 --per-identity 10
    accelerate launch train.py --config=configs/mini_face.py --workdir=workdir/mini

To start from nothing instead, `make mini` trains every network; its stage `control` uses this config.
"""

from configs import train_config
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the miniature's other trainings: the loss lets hair go that the person has not."""
    config = on_portraits()
    config.data.hair_in_mask = 1.0
    config.loss.mask_margin = 0.19  # else hair can be added and never taken away: docs/results.md
    config.loss.min_snr = 0.2  # the picture counts alike at all but the higher noise, where hair is decided
    return config


def on_portraits() -> ConfigDict:
    """What differs from the paper in all trainings of the miniature: size, speed, and features encoded once."""
    config = train_config.get_config()
    config.model = "models/mini"
    config.face_encoder = ""  # go on from the model's own face-controlnet
    config.control.sites = ("in_blocks.0", "in_blocks.2", "out_blocks.0", "out_blocks.1", "out_blocks.2")
    config.control.mlp_ratio = 0.25
    config.control.num_heads = 4
    config.data_type = 1
    config.data.records = ("data/portraits/records.jsonl",)
    config.data.hair_in_mask = 0.75  # hair tells people of this world apart
    config.data.max_faces = 2
    config.data.other_picture = 0.8  # mostly another one than the one to draw: that is how it is used
    config.data.workers = 0
    config.data.max_broken = 0
    config.cache.enabled = True
    config.train.steps = 2_700
    config.train.batch_size = 64
    config.train.lr = 3e-4
    config.train.schedule = "cosine"
    config.train.ema = 0.999
    config.train.gradient_checkpointing = False
    config.checkpoint.every = 500
    config.checkpoint.keep_every = 0
    config.log.every = 50
    config.log.samples_every = 34_560  # five grids
    config.log.prompts = (
        "a photo of a smiling woman in a green hoodie on a beach",
        "a photo of a man in a blue suit with glasses in front of a brick wall",
        "a sad woman in a city at night",
        "a surprised man with a red cap in a forest",
    )
    return config

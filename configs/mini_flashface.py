"""FlashFace in miniature, on two CPU cores: on models/mini-unet, with the portraits of configs/mini_face.py.

    python -m feedface.synthetic.world --out data/portraits --identities 200 --per-identity 10
    python train.py --config=configs/mini_flashface.py --workdir=workdir/mini_flashface

Behind the file's name, which variant; what a model takes beside models/mini-unet or models/mini in half precision:
    configs/mini_flashface.py          a reference net of its own, and adapters; the backbone stays frozen: about 6 MB
    configs/mini_flashface.py:small    adapters alone, the frozen backbone is its own reference net: below 1 MB
    configs/mini_flashface.py:uvit     the same on the U-ViT of models/mini: models/mini-uvit-flashface
    configs/mini_flashface.py:both     as the authors train it, both networks
"""

from configs import flashface, mini_face
from ml_collections import ConfigDict

VARIANTS = {
    "copy": {"writer": "copy", "backbone": "frozen", "rank": 64},
    "small": {"writer": "backbone", "backbone": "frozen", "rank": 128},
    "uvit": {"writer": "backbone", "backbone": "frozen", "rank": 128},
    "both": {"writer": "copy", "backbone": "all", "rank": 0},
}


def get_config(variant: str = "copy") -> ConfigDict:
    """What differs from the miniature's other training, and from FlashFace at full size."""
    config, full = mini_face.on_portraits(), flashface.get_config()
    config.model = "models/mini" if variant == "uvit" else "models/mini-unet"
    config.method, config.control = full.method, full.control
    config.control.update(VARIANTS[variant], reference_px=128, reference_latent="mode")
    config.data.update(other_picture=1.0, flip=0.0, flip_reference=0.0, max_faces=2)
    config.loss.text_dropout = 0.1
    config.loss.min_snr = 5.0  # as the base model was trained
    if variant == "both":
        config.loss.kind, config.loss.face_dropout = "standard", 0.1
    else:  # beside a frozen backbone nobody is its own picture, to the bit: there is nothing to learn
        config.loss.kind, config.loss.face_dropout = "regularization", 0.0
    config.train.steps, config.train.batch_size = 1_500, 16
    # The reference net starts as a copy of the backbone: at 1e-3 it forgets in 50 steps what it knows of faces.
    config.train.lr = {"copy": 3e-4, "both": 1e-4}.get(variant, 1e-3)
    config.log.samples_every = 8_000
    return config

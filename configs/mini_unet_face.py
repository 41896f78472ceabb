"""FeedFace on the miniature's U-Net, on two CPU cores: configs/mini_face.py on the other backbone.

    python -m feedface.synthetic.train --stage unet
    python -m feedface.synthetic.train --stage control_unet

The second stage runs train.py with this config, on portraits and a face encoder of its own folder.
"""

from configs import mini_face
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the U-ViT's; the loss is the paper's, with which models/mini-unet was trained."""
    config = mini_face.on_portraits()
    config.model = "models/mini-unet"
    config.control.sites = ()  # every other block
    return config

"""Stage `control_unet`: FeedFace on the U-Net of stage `unet`, trained by train.py with configs/mini_unet_face.py."""

from pathlib import Path

import ml_collections

from feedface.synthetic.train.bundle import write_unet_index
from feedface.synthetic.train.control import train_control


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train as `config.control_unet` changes that file, and leave `<workdir>/bundle_unet/feedface/`."""
    settings, bundle = config.control_unet, workdir / "bundle_unet"
    train_control("control_unet", settings, workdir, "mini_unet_face.py", bundle, "feedface", "features_unet")
    write_unet_index(workdir, settings.image_size)

"""Stage `control_unet`: FeedFace on the U-Net of stage `unet`, trained by train.py with configs/mini_unet_face.py."""

from pathlib import Path

import ml_collections

from feedface.common.errors import UserError
from feedface.synthetic.train.bundle_unet import write_unet_index
from feedface.synthetic.train.control import train_control


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Train as `config.control_unet` changes that file, and leave `<workdir>/bundle_unet/feedface/`."""
    settings, bundle = config.control_unet, workdir / "bundle_unet"
    if not (bundle / "unet").is_dir():
        raise UserError(f"{bundle}: no U-Net yet; first comes `python -m feedface.synthetic.train --stage unet`")
    train_control("control_unet", settings, workdir, "mini_unet_face.py", bundle, "feedface")
    write_unet_index(workdir, settings.image_size)

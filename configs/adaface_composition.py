"""AdaFace on Stable Diffusion 1.5, second stage: going on from the first one's second round. The authors' recipe:

python -m feedface.checkpoints extend --from workdir/adaface2/checkpoints/last --to workdir/adaface2x8 --times 2
accelerate launch --num_processes 2 --multi_gpu train.py --config=configs/adaface_composition.py \
    --workdir=workdir/adaface3
"""

from configs import adaface
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the first stage."""
    config = adaface.get_config()
    config.model = "workdir/adaface2x8"
    config.control.copies = 8
    config.control.objective.kind = "composition"
    config.loss.kind = "mask"  # of the pictures: a person is in the face alone
    config.loss.standard_share = 0.0
    config.train.steps = 30_000
    config.train.batch_size = 3
    config.train.optimizer, config.train.lr, config.train.d_coef = "prodigy", 1.0, 0.5
    config.train.schedule = "linear"
    config.train.warmup_steps = 1_000
    config.train.max_loss_ratio = 0.0  # which of three losses a batch has is drawn, and they differ thirtyfold
    return config

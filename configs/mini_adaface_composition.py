"""The miniature's AdaFace, second stage, from what configs/mini_adaface.py trains.

accelerate launch train.py --config=configs/mini_adaface_composition.py --workdir=workdir/mini-adaface2
"""

from configs import mini_adaface
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the first stage."""
    config = mini_adaface.get_config()
    config.model = "workdir/mini-adaface/checkpoints/last"
    objective = config.control.objective
    objective.kind = "composition"
    objective.class_word = "man"
    objective.compositions = (
        ("in a green hoodie", "in a blue suit", "in a red shirt", "wearing a yellow coat"),
        ("", "with glasses", "with a red cap", "with a blue hat"),
        ("on a beach", "in front of a brick wall", "in a city at night", "in a forest", "against a blue backdrop"),
    )
    config.loss.kind = "mask"
    config.loss.standard_share = 0.0
    config.train.optimizer, config.train.lr, config.train.d_coef = "prodigy", 1.0, 0.5
    config.train.schedule = "linear"
    config.train.warmup_steps, config.train.steps = 50, 250
    config.train.max_loss_ratio = 0.0  # which of three losses a batch has is drawn, and they differ thirtyfold
    return config

"""The miniature's AdaFace, second stage, after two rounds of the first one, which configs/mini_adaface.py trains.

python -m feedface.checkpoints extend --from workdir/mini-adaface/checkpoints/last --to workdir/mini-adaface-x4 \\
    --times 4
accelerate launch train.py --config=configs/mini_adaface.py --workdir=workdir/mini-adaface2 \\
    --config.model=workdir/mini-adaface-x4 --config.control.copies=4 --config.train.steps=200
accelerate launch train.py --config=configs/mini_adaface_composition.py --workdir=workdir/mini-adaface3
"""

from configs import mini_adaface
from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """What differs from the first stage."""
    config = mini_adaface.get_config()
    config.model = "workdir/mini-adaface2/checkpoints/last"
    objective = config.control.objective
    objective.kind = "composition"
    objective.class_word = "man"
    objective.compositions = (
        ("in a green hoodie", "in a blue suit", "in a red shirt", "wearing a yellow coat"),
        ("", "with glasses", "with a red cap", "with a blue hat"),
        ("on a beach", "in front of a brick wall", "in a city at night", "in a forest", "against a blue backdrop"),
    )
    # With the authors' weights and generic prompts alone the prompt was kept no better than by the first stage.
    objective.captions, objective.composed, objective.distilled = True, 0.15, 0.3
    objective.weights.update(prompt=3e-3, mix=1e-3, preserve=2e-3)
    config.control.copies = 4
    config.loss.update(kind="mask", standard_share=0.6)
    config.train.update(lr=5e-4, schedule="linear", warmup_steps=50, steps=1250)
    config.train.max_loss_ratio = 0.0  # which of three losses a batch has is drawn, and they differ thirtyfold
    return config

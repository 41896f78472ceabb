"""Config values that cannot work are found before anything is loaded."""

import importlib.util

import ml_collections

from feedface.errors import UserError
from feedface.training.objective import LOSSES
from feedface.training.tracking import check_trackers

PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
FACE_DROPOUTS = ("zero_feature", "zero_image")
OPTIMIZERS = ("adamw", "adamw8bit")

CHOICES = {
    "loss.kind": LOSSES,
    "loss.face_dropout_kind": FACE_DROPOUTS,
    "train.schedule": ("constant", "cosine"),
    "train.precision": ("auto", *PRECISIONS),
    "train.optimizer": OPTIMIZERS,
    "data_type": (0, 1),
}
AT_LEAST = {
    "seed": 0, "data.max_faces": 1, "data.workers": 0, "data.max_broken": 0, "train.steps": 1,
    "train.batch_size": 1, "train.accumulation": 1, "train.warmup_steps": 0, "train.lr": 0, "train.grad_clip": 0,
    "train.weight_decay": 0, "train.max_loss_ratio": 0, "loss.min_snr": 0, "log.every": 1, "log.samples_every": 0,
    "log.people": 1, "checkpoint.every": 1, "checkpoint.keep": 1, "checkpoint.keep_every": 0,
}  # fmt: skip
SHARES = (
    "data.flip", "data.hair_in_mask", "data.other_picture", "loss.standard_share", "loss.face_dropout",
    "loss.text_dropout", "train.ema",
)  # fmt: skip


def check_config(config: ml_collections.ConfigDict) -> None:
    """`UserError` naming the first key whose value cannot work."""

    def value(key: str):
        node = config
        for part in key.split("."):
            node = node[part]
        return node

    for key, allowed in CHOICES.items():
        if value(key) not in allowed:
            raise UserError(f"config.{key}: {value(key)!r} is not known; use {', '.join(map(str, allowed))}")
    for key, least in AT_LEAST.items():
        if not value(key) >= least:
            raise UserError(f"config.{key}: must be at least {least}, not {value(key)}")
    for key in SHARES:
        if not 0 <= value(key) <= 1:
            raise UserError(f"config.{key}: must lie between 0 and 1, not {value(key)}")
    if len(config.train.betas) != 2 or not all(0 <= beta < 1 for beta in config.train.betas):
        raise UserError(f"config.train.betas: must be two numbers from 0 to below 1, not {config.train.betas}")
    if config.train.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("config.train.optimizer: adamw8bit needs bitsandbytes; `pip install bitsandbytes`")
    if config.log.samples_every and not config.log.prompts:
        raise UserError("config.log.prompts: empty, but log.samples_every asks for pictures; name at least one prompt")
    check_trackers(config.log.trackers)

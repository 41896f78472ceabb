"""What a training config may hold: every key, its type and range. What cannot work is found before anything is loaded.

What the keys mean stands in configs/train_config.py.
"""

import importlib.util
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import ml_collections
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from feedface.common.errors import UserError
from feedface.diffusion.objective import LOSSES
from feedface.methods.base import method_class
from feedface.training.tracking import check_trackers

PRECISIONS = {"no": "fp32", "fp16": "fp16", "bf16": "bf16"}
METHOD = "feedface"

MOST = 2**63 - 1
Count = Annotated[int, Field(ge=0, le=MOST)]
AtLeastOne = Annotated[int, Field(ge=1, le=MOST)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class Data(Section):
    records: Sequence[str]
    flip: Probability
    flip_reference: Probability
    hair_in_mask: Probability
    other_picture: Probability
    max_faces: AtLeastOne
    workers: Annotated[int, Field(ge=0, le=1024)]
    in_memory: bool
    buckets: bool = False
    draft: bool = False
    max_broken: Count


class Cache(Section):
    enabled: bool
    dir: str
    draws_per_picture: Count = 0


class Loss(Section):
    kind: Literal[LOSSES]
    standard_share: Probability
    face_dropout: Probability
    face_dropout_kind: Literal["zero_feature", "zero_image"]
    text_dropout: Probability
    min_snr: NotNegative
    mask_margin: Probability = 0.0


class Train(Section):
    steps: AtLeastOne
    batch_size: AtLeastOne
    accumulation: AtLeastOne
    optimizer: Literal["adamw", "adamw8bit", "prodigy"]
    lr: NotNegative
    schedule: Literal["constant", "cosine", "linear"]
    warmup_steps: Count
    weight_decay: NotNegative
    betas: Annotated[Sequence[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    d_coef: NotNegative = 1.0
    grad_clip: NotNegative
    ema: Probability
    precision: Literal[("auto", *PRECISIONS)]
    gradient_checkpointing: bool
    compile: bool
    tf32: bool = False
    max_loss_ratio: NotNegative


class Checkpoints(Section):
    every: AtLeastOne
    keep: AtLeastOne
    keep_every: Count
    in_background: bool = False


class Log(Section):
    every: AtLeastOne
    trackers: Sequence[str]
    samples_every: Count
    people: AtLeastOne
    prompts: Sequence[str]


class TrainingConfig(Section):
    seed: Count
    model: str
    method: str = METHOD
    face_encoder: str
    control: dict[str, Any]  # see the method's own `settings`
    data_type: Literal[0, 1]
    data: Data
    cache: Cache
    loss: Loss
    train: Train
    checkpoint: Checkpoints
    log: Log
    sample: dict[str, Any] = {}  # of drawing, see `config_file.read_config`


def check_config(config: ml_collections.ConfigDict) -> None:
    """`UserError` naming the first key that is missing or unknown, or whose value cannot work."""
    values = config.to_dict()
    _check(TypeAdapter(TrainingConfig), values, "config")
    settings = method_class(method_of(config)).settings
    if settings is not None:
        _check(settings, values["control"], "config", "control")
    if config.data.get("buckets") and (config.data.in_memory or config.cache.enabled or config.cache.dir):
        raise UserError(
            "config.data.buckets: cuts each picture anew, at random, which neither the cache nor data.in_memory can "
            "keep; leave one of them out"
        )
    if config.cache.get("draws_per_picture"):
        _check_draws(config)
    needs = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}.get(config.train.optimizer)
    if needs and importlib.util.find_spec(needs) is None:
        raise UserError(f"config.train.optimizer: {config.train.optimizer} needs {needs}; `pip install {needs}`")
    if config.log.samples_every and not config.log.prompts:
        raise UserError("config.log.prompts: empty, but log.samples_every asks for pictures; name at least one prompt")
    check_trackers(config.log.trackers)


def _check_draws(config: ml_collections.ConfigDict) -> None:
    if not (config.cache.enabled or config.cache.dir):
        raise UserError(
            "config.cache.draws_per_picture: keeps predictions in the cache; name a folder as config.cache.dir too"
        )
    kind = method_of(config)
    if not method_class(kind).asks_frozen(config):
        raise UserError(
            f"config.cache.draws_per_picture: {kind} with this loss.kind and control has no frozen prediction to keep; "
            f"leave it 0"
        )


def method_of(config: ml_collections.ConfigDict) -> str:
    """The kind of method that is trained. Configs of before there were several do not say it."""
    return config.get("method", METHOD)


def _check(described: TypeAdapter, values: dict[str, Any], *place: str) -> None:
    try:
        described.validate_python(values)
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], place)) from None


def _sentence(error: dict[str, Any], place: Sequence[str]) -> str:
    key = ".".join(map(str, (*place, *error["loc"])))
    if error["type"] == "missing":
        return f"{key}: is missing; configs/train_config.py has all keys"
    if error["type"] == "extra_forbidden":
        return f"{key}: is unknown; configs/train_config.py has all keys"
    return f"{key}: {re.sub('^[A-Z][a-z]+ should', 'must', error['msg'])}, not {error['input']!r:.80}"

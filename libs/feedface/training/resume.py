"""Going on from a checkpoint: what is in its state, and where it does not fit the run that wants it."""

from typing import Any

import ml_collections
from torch import Tensor

from feedface.checkpoints.bundle import read_index
from feedface.common.errors import UserError
from feedface.training.controlled import ControlledBackbone
from feedface.training.manifest import Damaged
from feedface.training.run_record import flat
from feedface.training.setup import described_method
from feedface.training.sharding import MOMENTS
from feedface.training.state import STATE, Checkpoint


def check_state(state: Any) -> None:
    """Raise `Damaged` unless `state` is built as the trainer builds it.

    {"weights": {name: tensor}, "optimizer": {"name", "state": {number: {key: tensor}}}, "scaler": {…} or None,
    "ema": [tensor, …] or None}; the optimizer's numbers and the averages are in the order of the weights.
    """
    try:
        if not isinstance(state, dict):
            raise TypeError
        weights, ema = state["weights"], state["ema"]
        shapes = [value.shape for value in weights.values()]
        good = all(isinstance(name, str) for name in weights) and isinstance(state["scaler"], dict | None)
        good &= ema is None or [value.shape for value in ema] == shapes
        for number, values in state["optimizer"]["state"].items():
            good &= all(isinstance(value, Tensor | int | float) for value in values.values())
            good &= all(values[key].shape == shapes[number] for key in MOMENTS if key in values)
    except (TypeError, KeyError, IndexError, AttributeError):
        good = False
    if not good:
        raise Damaged(f"{STATE} does not hold what training saves")


def check_belongs(checkpoint: Checkpoint, config: ml_collections.ConfigDict, trained: ControlledBackbone) -> None:
    """`UserError`, naming what differs, unless training can go on from the checkpoint with this config and model."""
    difference = _difference(checkpoint, config, trained)
    if difference:
        raise UserError(
            f"{checkpoint.folder}: belongs to another model ({difference}); put that back, or use another --workdir"
        )


def _difference(checkpoint: Checkpoint, config: ml_collections.ConfigDict, trained: ControlledBackbone) -> str:
    before, method = described_method(read_index(checkpoint.folder).components["method"]), trained.method
    if before.kind != method.kind:
        return f"its method is {before.kind}, now it is {method.kind}"
    for key, value in method.config.items():
        if before.config[key] != value:
            return f"its {method.kind} has {key} {before.config[key]}, now it is {value}"
    own, state = trained.trained(), checkpoint.state
    for name in sorted(own.keys() | state["weights"].keys()):
        if _shape(own, name) != _shape(state["weights"], name):
            return f"its {name} differs"
    if (state["ema"] is not None) != (config.train.ema > 0):
        return "config.train.ema was switched on or off"
    # Before the optimizer's name was kept with its state, the config alone had it.
    name = state["optimizer"].get("name") or flat(checkpoint.config).get("train.optimizer")
    if name != config.train.optimizer:
        return f"its config.train.optimizer is {name}, now it is {config.train.optimizer}"
    return ""


def _shape(state: dict[str, Tensor], name: str):
    return state[name].shape if name in state else None

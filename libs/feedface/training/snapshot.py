"""What a checkpoint holds, taken from a run: copies, so that training may go on while they are written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_collections
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from feedface.checkpoints.face_encoder import PREFIX, load_face_encoder
from feedface.training.controlled import ControlledBackbone
from feedface.training.ema import Ema
from feedface.training.engine import Engine
from feedface.training.sharding import gathered, gathered_frozen

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """Arguments of `state.save_checkpoint`, see there. What is trained is copied, what is frozen is not."""

    kind: str
    method_config: dict[str, Any]
    method_state: Weights
    state: dict[str, Any]
    backbone: tuple[dict[str, Any], Weights] | None


def take_snapshot(
    accelerator: Accelerator,
    trained: ControlledBackbone,
    engine: Engine,
    ema: Ema | None,
    face_encoder: Path | None,
    config: ml_collections.ConfigDict,
) -> Snapshot | None:
    """Of all processes together, where weights are sharded; only the first gets the result, others None."""
    main = accelerator.is_main_process
    weights = {name: gathered(value, main) for name, value in trained.trained().items()}
    averages = [gathered(value, main) for value in ema.averages] if ema else None
    frozen = gathered_frozen((trained.method, trained.backbone), main)
    optimizer = engine.optimizer_state(main)
    if not main:
        return None
    best = dict(zip(weights, averages, strict=True)) if averages else weights
    # By the ids of parameters: what is trained as in `best`, what is spread as in `frozen`.
    known = frozen | {id(parameter): best[name] for name, parameter in trained.trained().items()}
    state = {
        "weights": weights,
        "optimizer": {"name": config.train.optimizer, **optimizer},
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler is not None else None,
        "ema": averages,
    }
    method, backbone = trained.method, None
    if any(name.startswith("backbone.") for name in best):
        own = trained.backbone
        backbone = {"kind": own.kind, **own.config}, _whole(own, known)
    content = _whole(method, known)
    if face_encoder is not None:
        encoder = load_face_encoder(face_encoder, "cpu", torch.float16).state_dict()
        content |= {PREFIX + name: value for name, value in encoder.items()}
    return Snapshot(method.kind, method.config, content, state, backbone)


def _whole(network: nn.Module, known: dict[int, Tensor]) -> Weights:
    """All of its state, as a model needs it: what is `known` so, the rest as it is."""
    return {name: known.get(id(value), value) for name, value in network.state_dict(keep_vars=True).items()}

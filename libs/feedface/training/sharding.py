"""What a run may be wrapped in by accelerate, and how its state is taken out of that whole and put back.

A checkpoint holds whole tensors, whoever wrote it: one process, several with copies (DDP), or several with a shard each
(FSDP). So a run can go on from any of them.
"""

from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def prepare(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """`model` (a `ControlledUViT`) and `optimizer` as accelerate was configured to run them."""
    return accelerator.prepare(model, optimizer)


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no process has the whole weights."""
    return accelerator.distributed_type == DistributedType.FSDP


def gathered(value: Tensor, wanted: bool = True) -> Tensor | None:
    """A whole copy on the CPU, or None where it is not `wanted`. All processes must call it, for a sharded one."""
    value = value.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.cpu().clone() if wanted else None


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Fill `target`, which may be sharded, with the whole `value`."""
    target.copy_(_like(value, target))


def full_optimizer_state(optimizer: torch.optim.Optimizer, wanted: bool = True) -> dict[str, Any]:
    """Its state dict with whole tensors on the CPU, as an optimizer of one process has it."""
    state = optimizer.state_dict()
    moments = {
        index: {name: gathered(v, wanted) if isinstance(v, Tensor) else v for name, v in entries.items()}
        for index, entries in state["state"].items()
    }
    return {"state": moments, "param_groups": state["param_groups"]}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Put back what `full_optimizer_state` gave, on whatever the parameters are now."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        index: {
            name: _like(v, parameters[index]) if isinstance(v, Tensor) and v.shape == parameters[index].shape else v
            for name, v in entries.items()
        }
        for index, entries in state["state"].items()
    }
    optimizer.load_state_dict({"state": moments, "param_groups": state["param_groups"]})


def _like(value: Tensor, target: Tensor) -> Tensor:
    if isinstance(target, DTensor):
        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    return value

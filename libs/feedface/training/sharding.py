"""Tensors and optimizer state that are spread over processes: made whole for a checkpoint, and cut up again.

A checkpoint holds what a run in one process would write, whoever wrote it: one process, several with copies (DDP), or
several with a part each (FSDP2, DeepSpeed's ZeRO-2). So a run can go on from any of them. Where nothing is spread,
every function here does the plain thing. "Collective" ones must be called by all processes, in the same order.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
# What Prodigy keeps among its settings, but learns.
LEARNED = ("d", "d_max", "d_hat", "d_numerator", "d_denom", "k")


def gathered(value: Tensor, keep: bool = True) -> Tensor | None:
    """A copy of the whole tensor on the CPU; None in a process with `keep` False. Collective."""
    value = value.detach()
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.to("cpu", copy=True) if keep else None


def gathered_frozen(networks: Iterable[nn.Module], keep: bool = True) -> dict[int, Tensor | None]:
    """By their id, the frozen parameters that are spread, as `gathered`: FSDP spreads a network whole, of which a part
    is trained. Collective."""
    parameters = (parameter for network in networks for parameter in network.parameters())
    return {
        id(parameter): gathered(parameter, keep)
        for parameter in parameters
        if isinstance(parameter, DTensor) and not parameter.requires_grad
    }


@torch.no_grad()
def assign(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor, which every process has, into `target`, of which each may hold a part."""
    target.copy_(_part(value, target))


def full_optimizer_state(optimizer: torch.optim.Optimizer, keep: bool = True) -> dict[str, Any] | None:
    """The `state` of `optimizer.state_dict()` with whole tensors on the CPU; None in a process with `keep` False.

    Collective. Not its `param_groups`: they are the config's, which may be another one when the run goes on.
    """
    state = {
        number: {key: gathered(value, keep) if isinstance(value, Tensor) else value for key, value in values.items()}
        for number, values in optimizer.state_dict()["state"].items()
    }
    learned = {key: float(value) for key, value in optimizer.param_groups[0].items() if key in LEARNED}
    return {"state": state, **({"learned": learned} if learned else {})} if keep else None


def load_optimizer_state(optimizer: torch.optim.Optimizer, content: dict[str, Any]) -> None:
    """Load the `state` that `full_optimizer_state` or a plain optimizer's `state_dict()` gave; every process has all of
    it. Settings such as the weight decay stay the optimizer's own."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        number: {
            # Moments are as large as their parameter; the step count is one number.
            key: _part(value, parameters[number]) if isinstance(value, Tensor) and value.ndim else value
            for key, value in values.items()
        }
        for number, values in content["state"].items()
    }
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for group in optimizer.param_groups:
        group.update({key: int(value) if key == "k" else value for key, value in content.get("learned", {}).items()})


def _part(value: Tensor, like: Tensor) -> Tensor:
    """What of a whole tensor belongs beside `like`: all of it, or this process's part as a DTensor."""
    if not isinstance(like, DTensor):
        return value
    # Every process has the value: `src_data_rank=None` cuts it without sending anything.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


# ----------------------------------------------------------------------------------------------------- DeepSpeed ZeRO-2


def full_zero2_state(optimizer, parameters: Sequence[nn.Parameter], keep: bool = True) -> dict[str, Any] | None:
    """The same of DeepSpeed's AdamW. Collective; after a step.

    `optimizer` is what accelerate's `prepare` returned, `parameters` those it was made with, in that order. The weights
    themselves stay whole and float32, since DeepSpeed is run in float32 (`ControlledBackbone` autocasts).
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    inner = optimizer.optimizer.optimizer  # accelerate's wrapper > ZeRO > AdamW, which has flat parts
    step = next(iter(inner.state.values()))["step"].cpu().clone()
    state = {}
    for number, parameter in enumerate(parameters):
        moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
        if keep:
            state[number] = {"step": step.clone(), **{key: value.cpu().clone() for key, value in moments.items()}}
    return {"state": state} if keep else None


def load_zero2_state(optimizer, parameters: Sequence[nn.Parameter], content: dict[str, Any]) -> None:
    """Load that, or what a plain AdamW gave, before the first step; the parameters are filled already.

    Every process has all of it.
    """
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

    zero = optimizer.optimizer
    # DeepSpeed makes the moments in the first step, and knows which parameter's they are only then.
    for flat in zero.single_partition_of_fp32_groups:
        moments = {key: torch.zeros_like(flat) for key in MOMENTS}
        zero.optimizer.state[flat] = {"step": content["state"][0]["step"].to(flat.device, copy=True), **moments}
    zero._lazy_init_hp_params_optimizer_state()
    for number, parameter in enumerate(parameters):
        safe_set_full_fp32_param(parameter, parameter.detach().float())
        for key in MOMENTS:
            safe_set_full_optimizer_state(parameter, content["state"][number][key].to(parameter.device), key)

"""A training step in whatever accelerate launched: one process, copies (DDP), shards (FSDP2), DeepSpeed's ZeRO-2."""

import gc
import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ml_collections
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from feedface.common.errors import UserError
from feedface.training.controlled import ControlledBackbone
from feedface.training.sharding import (
    full_optimizer_state,
    full_zero2_state,
    load_optimizer_state,
    load_zero2_state,
)


class Engine:
    """The model and its optimizer as they run. All methods must be called by all processes together.

    `model` is `trained`, wrapped where that is needed; `parameters` are the trained ones, as they are now: with FSDP
    each process has a part of them.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        trained: ControlledBackbone,
        optimizer: torch.optim.Optimizer,
        config: ml_collections.ConfigDict,
    ):
        self.accelerator, self.config = accelerator, config
        self.zero2 = accelerator.distributed_type == DistributedType.DEEPSPEED
        self.sharded = accelerator.distributed_type == DistributedType.FSDP
        if config.train.optimizer == "prodigy" and (self.sharded or self.zero2):
            raise UserError("config.train.optimizer: prodigy needs whole weights; launch without FSDP and DeepSpeed")
        if self.sharded:
            self._plan_fsdp(trained)
        if self.zero2:
            accelerator.state.deepspeed_plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=config.train.batch_size,
                gradient_accumulation_steps=1,  # `backward` says itself which micro-batch is the last
                gradient_clipping=float(config.train.grad_clip),
            )
        self.model, self.optimizer = accelerator.prepare(trained, optimizer)
        self.parameters = list(trained.trained().values())

    def _plan_fsdp(self, trained: ControlledBackbone) -> None:
        accelerator = self.accelerator
        if not accelerator.is_fsdp2:
            raise UserError("only version 2 of FSDP is supported; launch with configs/accelerate/fsdp.yaml")
        plugin = accelerator.state.fsdp_plugin
        if not any(parameter.requires_grad for parameter in trained.backbone.parameters()):
            plugin.ignored_modules = [trained.backbone]
        # The backbone calls the control blocks one by one, in parts: smaller units would not be gathered in time.
        plugin.auto_wrap_policy = None
        plugin.activation_checkpointing = False  # the backbone does its own
        plugin.cpu_ram_efficient_loading = False  # would leave the frozen weights on the meta device
        # accelerate's own policy would sum gradients in low precision.
        compute = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
        plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=compute, reduce_dtype=torch.float32, cast_forward_inputs=False
        )

    def accumulating(self, last: bool) -> AbstractContextManager:
        """Around forward and backward pass of a micro-batch: processes exchange gradients only after the last."""
        return nullcontext() if last or self.zero2 else self.accelerator.no_sync(self.model)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add the gradients of a micro-batch's mean loss; `last` of a step."""
        loss = loss / self.config.train.accumulation
        if self.zero2:  # clips, steps and forgets the gradients itself, when it is the last
            self.accelerator.deepspeed_engine_wrapped.backward(loss, sync_gradients=last)
        else:
            self.accelerator.backward(loss)

    def step(self) -> Tensor:
        """Clip, change the weights, forget the gradients; returns the gradients' norm before clipping."""
        if self.zero2:
            return torch.tensor(float(self.model.get_global_grad_norm()), device=self.accelerator.device)
        # The model's parameters: with FSDP and fp16 accelerate unscales gradients only of a model that it knows.
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def close(self) -> None:
        """Let go of DDP's wrapper; no step can follow. To be called before the processes' group ends.

        Else DDP's reducer is the last to hold the group: it waits, with Python's lock, for gloo's threads, of which one
        may wait for that lock to drop the tensors of the last exchange. Such a process never ends.
        """
        if isinstance(self.model, DistributedDataParallel):
            self.model = None
            self.accelerator.free_memory()
            gc.collect()  # modules refer to themselves

    def optimizer_state(self, keep: bool) -> dict[str, Any] | None:
        """Whole, as an optimizer of one process has it, without its settings; None in a process with `keep` False."""
        if self.zero2:
            return full_zero2_state(self.optimizer, self.parameters, keep)
        return full_optimizer_state(self.optimizer, keep)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Put back what `optimizer_state` gave, of whatever launch; settings are the config's. The weights are there
        already."""
        if self.zero2:
            load_zero2_state(self.optimizer, self.parameters, state)
        else:
            load_optimizer_state(self.optimizer, state)

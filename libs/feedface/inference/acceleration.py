"""A loaded model made faster, by choice: compiled blocks, int8 weights, a memory layout that convolutions like.

All of it acts on blocks where they stand; none of it is a second implementation of the model.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.common.errors import UserError
from feedface.methods.base import Method

COMPILERS = ("g++", "clang++", "c++", "cl")


class Networks(Protocol):
    """What is evaluated at every step: a `Bundle`'s, or training's `ControlledBackbone`'s."""

    backbone: Backbone | None
    method: Method | None


def blocks(networks: Networks) -> Iterator[nn.Module]:
    """The blocks of backbone and method, which hold nearly all weights and take nearly all time."""
    if (backbone := networks.backbone) is not None:
        yield from (block for _, block in backbone.blocks())
    if (method := networks.method) is not None:
        yield from method.step_blocks()


def compile_blocks(networks: Networks, graphs: bool = False) -> None:
    """`torch.compile` every block where it stands: all of a kind share their code, so each kind is compiled once.

    The first step of each new batch size compiles (seconds to a minute; from the second size on, for all sizes);
    PyTorch caches the result on disk. With `graphs` a CUDA device replays each block as one CUDA graph, recorded for
    each batch and picture size, and need not wait for Python to launch its kernels: for drawing only. `UserError`
    without the C++ compiler that it needs.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CXX") or "", *COMPILERS) if name):
        raise UserError(
            "compiling needs a C++ compiler (g++ or clang++), and none is found: install one, or do not compile"
        )
    how = {"mode": "reduce-overhead"} if graphs else {}
    for block in blocks(networks):
        block.compile(**how)
        block.compiled_with = how  # for copies, which are not compiled: `checkpoints.few_step.adapted`
    if graphs:
        networks.backbone.register_forward_pre_hook(_begin_evaluation)


def check_cuda_graphs(device: torch.device, low_memory: bool) -> None:
    """`UserError` where graphs cannot be: on other devices, and with weights that move."""
    if device.type != "cuda":
        raise UserError(f"--cuda_graphs: {device} is no CUDA device; leave it out")
    if low_memory:
        raise UserError("--cuda_graphs: --low_memory moves the weights that graphs have at fixed places; leave one out")


def _begin_evaluation(*_: object) -> None:
    """Allow graphs to overwrite what they gave in the last evaluation; by default the next block might do so."""
    torch.compiler.cudagraph_mark_step_begin()


class Int8Linear(nn.Module):
    """A linear whose weights [out, in] are int8 times a scale for each output; arithmetic in the input's dtype.

    For memory, half of float16's, not for speed: weights are widened at each use (weight-only quantisation).
    """

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight = linear.weight.float()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / 127
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        # The weight is scaled, not the product: in float16 a sum of products with 127 could overflow.
        weight = (self.weight * self.scale).to(x.dtype)
        return F.linear(x, weight, None if self.bias is None else self.bias.to(x.dtype))


def int8_engine() -> str:
    """What PyTorch multiplies int8 with on this CPU; "none" where it cannot."""
    return torch.backends.quantized.engine


def quantise_int8(networks: Networks, device: torch.device) -> None:
    """Round the weights of all linears in the blocks to int8, in place; embeddings, heads and norms stay as they are.

    CPU: PyTorch's dynamic quantisation, which rounds the layers' inputs too (a scale for each output, and one for each
    input batch) and multiplies in int8. Other devices: `Int8Linear`, a quarter of float32's memory, not faster.
    Weights cannot change afterwards, nor take a few-step adapter. A low-memory bundle then keeps its networks, as they
    are no longer what its files hold. `UserError` for weights that are NaN or infinite.
    """
    if device.type == "cpu" and int8_engine() == "none":
        raise UserError("--int8: this PyTorch has no int8 arithmetic for this CPU; leave --int8 out")
    hold = getattr(networks, "hold", None)  # training's networks have none
    with hold("backbone", "method") if hold else nullcontext():
        for block in blocks(networks):
            if not all(value.isfinite().all() for value in block.parameters()):
                raise UserError("--int8: the model's weights hold NaN or infinity; fetch or make the model anew")
            replace_linears(block, DynamicInt8Linear if device.type == "cpu" else Int8Linear)


class DynamicInt8Linear(nn.Module):
    """A linear as PyTorch's dynamic quantisation has it, which takes float32 alone, for inputs of any dtype."""

    def __init__(self, linear: nn.Linear):
        # PyTorch 2.13 says that torch.ao goes to the package torchao, which is not among our dependencies.
        import warnings

        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.ao.nn.quantized.dynamic import Linear
            from torch.ao.quantization import per_channel_dynamic_qconfig

            single = nn.Linear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
            state = {key: value.float() for key, value in linear.state_dict().items()}
            single.load_state_dict(state, assign=True)
            single.qconfig = per_channel_dynamic_qconfig
            self.quantised = Linear.from_float(single)

    def forward(self, x: Tensor) -> Tensor:
        return self.quantised(x.float()).to(x.dtype)


def replace_linears(root: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put `make(linear)` in the place of every linear inside `root`, one after the other."""
    for module in list(root.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, make(child))


def channels_last(vae: nn.Module) -> None:
    """Lay out a convolutional network's weights, and so what it computes, as a GPU's convolutions want them."""
    vae.to(memory_format=torch.channels_last)

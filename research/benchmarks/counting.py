"""What is computed, counted while it runs: rows through backbone and method, FLOPs; and the release's attention.

"calls" and "rows" are the backbone's, "blocks" the rows through each of its blocks, "control" through each of the
method's; "flop" counts matrix products and convolutions, a multiply-add being two.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from feedface.backbones.base import Backbone
from feedface.methods.base import Method


@contextmanager
def counted(backbone: Backbone, method: Method, counts: Counter) -> Iterator[None]:
    """Inside the `with`, what passes through them is added to `counts`, blocks and control as means over the blocks."""

    def count(name: str, share: float, module: nn.Module, args: tuple, kwargs: dict) -> None:
        counts[name] += share * len(args[0] if args else next(iter(kwargs.values())))
        counts["calls"] += name == "rows"

    blocks = [block for _, block in backbone.blocks()]
    # The first block is evaluated whenever the backbone is.
    groups = {"rows": blocks[:1], "blocks": blocks, "control": list(method.step_blocks())}
    hooks = [
        module.register_forward_pre_hook(partial(count, name, 1 / len(modules)), with_kwargs=True)
        for name, modules in groups.items()
        for module in modules
    ]
    try:
        # Other kernels of attention hide their products from the counter.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            yield
        counts["flop"] += counter.get_total_flops()
    finally:
        for hook in hooks:
            hook.remove()


class Float32Attention(TorchFunctionMode):
    """Attention in float32, whatever the rest is in: the release's way."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            with torch.autocast(args[0].device.type, enabled=False):
                return function(*(value.float() for value in args), **(kwargs or {})).to(args[0].dtype)
        return function(*args, **(kwargs or {}))

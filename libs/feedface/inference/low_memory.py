"""Draw with little memory: a model's parts are read from their files when they are used, and dropped after.

Three groups are never in memory together: the text encoder; backbone and method; the VAE. Who has many pictures to draw
goes by stages (`stages.py`), so that each is read once. Weights stored in half precision stay so where float32 is
computed in, and are widened one linear layer at a time, which is exact. A GPU too small even for backbone and method
gets them a layer at a time.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.checkpoints.bundle import Bundle
from feedface.checkpoints.few_step import FewStep, merge_network
from feedface.checkpoints.parts import NETWORKS, SEAM
from feedface.common.errors import UserError
from feedface.inference.acceleration import replace_linears
from feedface.methods.base import Method

GROUPS = (("text_encoder",), SEAM, ("vae",), ("image_encoder",))
CPU = torch.device("cpu")
# What sampling needs beside the weights, with room for one picture of 512 px.
RESERVE_BYTES = 1 << 30

# read(kinds, device, dtype) -> a bundle with these parts; dtype None: as stored.
Read = Callable[[Sequence[str], torch.device, torch.dtype | None], Bundle]


class WideningLinear(nn.Linear):
    """A linear whose weights are stored in less precision than its input's: widened at each use."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


def widening(linear: nn.Linear) -> nn.Linear:
    """`linear` as a `WideningLinear`, with the same parameters."""
    made = WideningLinear(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
    made.load_state_dict(linear.state_dict(), assign=True)
    return made.requires_grad_(False)


class _Part:
    """An attribute of `LowMemoryBundle`: asking for the part has its weights in memory."""

    def __set_name__(self, owner: type, kind: str):
        self._kind = kind

    def __get__(self, bundle: "LowMemoryBundle", owner: type | None = None) -> Any:
        return bundle.ready(self._kind)

    def __set__(self, bundle: "LowMemoryBundle", module: nn.Module | None) -> None:
        if module is not None:
            raise AttributeError(f"a low-memory bundle reads its {self._kind} itself")


class LowMemoryBundle(Bundle):
    """A `Bundle` that `model_files.load_model` makes: asking for a part reads its weights, and drops other groups'.

    Modules stay the same. One whose weights were dropped takes no memory, whoever still refers to it; it has them again
    when the bundle is next asked for it.

    Args:
        checked: a bundle with all parts on the "meta" device: what was read of them fits together.
        read: gives single parts.
        device, dtype: where and in what is computed.
    """

    backbone, method, vae, text_encoder, image_encoder = _Part(), _Part(), _Part(), _Part(), _Part()

    def __init__(self, checked: Bundle, read: Read, device: torch.device, dtype: torch.dtype):
        self._read, self._device, self._dtype = read, device, dtype
        self._modules: dict[str, nn.Module] = {}
        self._filled: list[str] = []
        self._held: set[str] = set()
        self._merged: FewStep | None = None  # in the networks that are read
        self._described = {kind: module for kind in NETWORKS if (module := getattr(checked, kind)) is not None}
        self._size_multiple = checked.size_multiple
        self._sequential = not _fits(checked, device, dtype)
        described = ("path", "name", "image_size", "defaults", "components", "kinds", "variant")
        super().__init__(**{key: getattr(checked, key) for key in described})

    @property
    def size_multiple(self) -> int:
        return self._size_multiple

    def networks(self, few_step: bool = False) -> tuple[Backbone, Method | None]:
        """See `Bundle.networks`; never two pairs: the other one becomes this one, or is dropped."""
        adapter = self._checked_adapter() if few_step else None
        if adapter is not self._merged:
            if self._held:
                raise UserError("weights in 8 bits cannot take a few-step adapter")
            for kind in SEAM:
                if self._merged is not None or self._sequential:
                    self._drop(kind)
                elif kind in self._filled:
                    with torch.inference_mode(False), torch.no_grad():
                        merge_network(adapter, kind, self._modules[kind])
            self._merged = adapter
        if self._method_makes_room and "method" not in self._held:
            return self.backbone, self.described("method")
        return self.backbone, self.method

    @property
    def _method_makes_room(self) -> bool:
        """Whether the method is done before the backbone begins: then they are never in memory together."""
        method = self.described("method")
        return method is not None and not self._sequential and method.done_when_prompted

    def described(self, kind: str) -> nn.Module | None:
        """See `Bundle.described`; nothing is read for it."""
        return self._modules.get(kind, self._described.get(kind))

    def to(self, device: torch.device) -> None:
        raise UserError("a model loaded with low_memory stays on its device; load it anew with the other device")

    @contextmanager
    def hold(self, *kinds: str) -> Iterator[None]:
        """Inside the `with`, change these parts; from then on they stay in memory: their files have something else.

        Where they do not fit beside each other as they are read, they are changed in main memory, and moved to the
        device as a whole if they fit now.
        """
        for kind in kinds if self._sequential else ():
            self._drop(kind)
        sequential, self._sequential = self._sequential, False
        device, self._device = self._device, CPU if sequential else self._device
        self._held.update(kinds)
        for kind in kinds:
            self.ready(kind)
        yield
        self._device = device
        self._sequential = sequential and not _fits(self, device, self._dtype)
        for kind in kinds if sequential else ():
            if self._sequential:
                _offload(self._modules[kind], device)
            else:
                self._modules[kind].to(device)

    def ready(self, kind: str) -> nn.Module | None:
        """A part with its weights in memory; None if the model is loaded without it."""
        if kind in self._described and kind not in self._filled:
            group = next(group for group in GROUPS if kind in group)
            if kind in SEAM and self._method_makes_room:
                group = (kind,)
            for other in [other for other in self._filled if other not in group and other not in self._held]:
                self._drop(other)
            # What is read in inference mode could not be changed outside of it.
            with torch.inference_mode(False), torch.no_grad():
                self._fill(kind)
            self._filled.append(kind)
        return self._modules.get(kind)

    def _fill(self, kind: str) -> None:
        large = kind in SEAM
        wide = large and self._dtype == torch.float32
        device = CPU if large and self._sequential else self._device
        module = getattr(self._read([kind], device, None if wide else self._dtype), kind)
        if wide:
            _keep_stored(module, self._dtype)
        if large and self._merged is not None:
            merge_network(self._merged, kind, module)
        if large and self._sequential:
            _offload(module, self._device)
        if kind == "vae":
            module.save_memory()
        standing = self._modules.setdefault(kind, module)
        if standing is not module:
            standing.load_state_dict(module.state_dict(), assign=True)

    def _drop(self, kind: str) -> None:
        if kind not in self._filled:
            return
        self._filled.remove(kind)
        if kind in SEAM and self._sequential:  # accelerate's hooks stand in the way of filling it again
            del self._modules[kind]
        else:
            module = self._modules[kind]
            empty = {name: value.to("meta") for name, value in module.named_parameters()}
            module.load_state_dict(empty, strict=False, assign=True)
        _give_back(self._device)


def _give_back(device: torch.device) -> None:
    """Return to the system what was freed: allocators keep it, in pieces that the next part may not fit into."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):  # glibc has it
        trim(0)


def _inner_roots(module: Backbone | Method) -> list[nn.Module]:
    """The blocks of a backbone or method, and the latter's encoders: where the large linears are."""
    if isinstance(module, Method):
        return [*module.step_blocks(), *module.encoders()]
    return [block for _, block in module.blocks()]


def _keep_stored(module: nn.Module, dtype: torch.dtype) -> None:
    """Linears in blocks keep the weights' dtype and compute in their input's; all other weights become `dtype`."""
    for root in _inner_roots(module):
        replace_linears(root, widening)
    for inner in module.modules():
        if not isinstance(inner, WideningLinear):
            for value in (*inner.parameters(recurse=False), *inner.buffers(recurse=False)):
                if value.is_floating_point():
                    value.data = value.data.to(dtype)


def _fits(checked: Bundle, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether backbone and method fit beside each other into what is free of a GPU; elsewhere always."""
    if device.type != "cuda":
        return True
    networks = (getattr(checked, kind) for kind in SEAM)
    weights = [value for net in networks if net is not None for value in net.state_dict().values()]
    size = sum(value.numel() * min(value.itemsize, dtype.itemsize) for value in weights)
    return size + RESERVE_BYTES <= torch.cuda.mem_get_info(device)[0]


def _offload(module: nn.Module, device: torch.device) -> None:
    """Leave a network's blocks in main memory, each layer's weights going to `device` for as long as it computes."""
    from accelerate import cpu_offload

    roots = _inner_roots(module)
    inside = {inner for root in roots for inner in root.modules()}
    for inner in module.modules():
        if inner not in inside:
            inner._apply(lambda value: value.to(device), recurse=False)
    for root in roots:
        cpu_offload(root, device, offload_buffers=True)  # in 8 bits, weights are buffers

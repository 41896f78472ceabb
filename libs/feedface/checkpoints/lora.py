"""LoRA as peft has it: how low-rank changes of linear layers are trained, and the folder they are stored in.

A linear layer's weight W becomes W + alpha / r * B A. The folder holds, for one network, peft's adapter_config.json and
adapter_model.safetensors, with `<module>.lora_A.weight` [r, in] and `<module>.lora_B.weight` [out, r]: peft puts them
onto the same network, and diffusers those of a Stable Diffusion's U-Net.
Source: Hu et al. 2021, "LoRA".
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired

import torch
from annotated_types import Ge, Le, Len
from pydantic import TypeAdapter
from torch import Tensor, float16, nn
from typing_extensions import TypedDict  # pydantic takes this one before Python 3.12

from feedface.checkpoints.storage import read_safetensors, write_json, write_state
from feedface.common.errors import UserError
from feedface.common.sizes import Width
from feedface.common.validation import OPEN, read_json_as

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"
Pair = tuple[Tensor, Tensor]  # A [r, in] and B [out, r]
Empty = Annotated[dict, Len(0, 0)]


class LoraDescription(TypedDict):
    """What, in an adapter_config.json, the matrices' meaning depends on; it is the same for all modules."""

    __pydantic_config__ = OPEN
    peft_type: Literal["LORA"]
    r: Width
    lora_alpha: Annotated[float, Ge(0), Le(1e6)]
    rank_pattern: NotRequired[Empty]
    alpha_pattern: NotRequired[Empty]
    use_rslora: NotRequired[Literal[False]]
    use_dora: NotRequired[Literal[False]]


DESCRIPTION = TypeAdapter(LoraDescription)


def lora_settings(modules: Iterable[str], rank: int, alpha: float | None = None) -> dict[str, Any]:
    """Arguments of peft's `LoraConfig` for these linear layers, and what an adapter_config.json has to say.

    alpha None: the rank, so that B A counts once.
    """
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank if alpha is None else alpha,
        "target_modules": sorted(modules),
        "bias": "none",
    }


def with_lora(network: nn.Module, modules: Iterable[str], rank: int, alpha: float | None = None) -> "PeftModel":
    """`network`, these linear layers of it replaced by peft's: frozen but for fresh matrices in float32, B zero.

    The matrices are drawn from torch's generator. `unload()` of what is returned puts the layers back.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise UserError(f"training LoRA needs peft ({error}): pip install -r requirements.txt") from None
    return get_peft_model(network, LoraConfig(**lora_settings(modules, rank, alpha)))


def save_lora(folder: Path, pairs: Mapping[str, Pair]) -> None:
    """Write matrices by module, all of the same rank, into the new `folder`, in half precision; B A counts once."""
    (rank,) = {len(a) for a, _ in pairs.values()}
    folder.mkdir()
    write_json(folder / CONFIG, lora_settings(pairs, rank))
    state = {module + end: value for module, pair in pairs.items() for end, value in zip((A, B), pair, strict=True)}
    write_state(folder / WEIGHTS, state, float16)


def read_lora(folder: Path) -> dict[str, Pair]:
    """Matrices by module, float32 on the CPU, alpha / r in B. `UserError` names what is missing, broken or unknown."""
    described, file = read_json_as(folder / CONFIG, DESCRIPTION), folder / WEIGHTS
    rank, alpha = described["r"], described["lora_alpha"]
    pairs = pairs_in(read_safetensors(file, "cpu", None), (A, B), file)
    for module, (a, b) in pairs.items():
        if len(a) != rank:
            raise UserError(f"{file}: {module} is of rank {len(a)}, but {CONFIG} says {rank}")
        pairs[module] = (a, b * (alpha / rank))
    check_finite(pairs, file)
    return pairs


def pairs_in(state: dict[str, Tensor], ends: tuple[str, str], file: Path) -> dict[str, Pair]:
    """The tensors of `file` by module, in float32; `ends`: what A and B have behind its name."""
    pairs = {}
    for module in sorted({key.removesuffix(end) for key in state for end in ends if key.endswith(end)}):
        a, b = (state.pop(module + end, None) for end in ends)
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
            raise UserError(f"{file}: {module} needs {ends[0][1:]} [r, in] and {ends[1][1:]} [out, r]")
        pairs[module] = (a.float(), b.float())
    if state:
        raise UserError(f"{file}: {next(iter(state))} is unknown; known are {' and '.join(ends)} of linears")
    if not pairs:
        raise UserError(f"{file}: holds no weights")
    return pairs


def mean(parts: Sequence[Mapping[str, Pair]]) -> dict[str, Pair]:
    """The mean of several changes of the same modules; exactly, at the sum of their ranks.

    Source: Wortsman et al. 2022, "Model soups".
    """
    found = {}
    for module in parts[0]:
        matrices = [part[module] for part in parts]
        found[module] = (torch.cat([a for a, _ in matrices]), torch.cat([b / len(parts) for _, b in matrices], dim=1))
    return found


def check_finite(pairs: Mapping[str, Pair], file: Path) -> None:
    for module, (a, b) in pairs.items():
        if not (a.isfinite().all() and b.isfinite().all()):
            raise UserError(f"{file}: {module} holds NaN or infinity; fetch or make the adapter anew")

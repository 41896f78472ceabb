"""Few-step adapters: what a model needs on top of its weights to draw in four evaluations without guidance.

A bundle's folder `few_step/`: config.json (`FewStep` but its weights), and in `backbone/` and `method/` a LoRA for the
network of that name (`lora.py`). Merged, W + B A, they cost no time at sampling: a second pair of networks has them
(`Bundle.networks`), the model's own weights never change. `docs/few_steps.md` says how one is made.

Older adapters have one model.safetensors instead, `<network>.<module>.lora_A` and `.lora_B`, network "uvit",
"face_controlnet" or as now, in 8 bits where there is a `.lora_scale` [r], which multiplies the columns of B.
"""

import copy
import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from feedface.checkpoints import lora
from feedface.checkpoints.storage import read_json, read_safetensors, write_json
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.diffusion.names import UNCOND_MODES
from feedface.diffusion.schedule import NUM_TIMESTEPS
from feedface.settings import EVERYWHERE, Settings

Network = TypeVar("Network", bound=nn.Module)

COMPONENT = "few_step"
CONFIG_KEYS = ("timesteps", "guidance", "face_scale", "uncond")
NO_PAG = {"pag_scale": 0.0, "pag_interval": EVERYWHERE}  # of older ones, which do not say so
GUIDANCE_KEYS = (*CONFIG_KEYS[1:], *NO_PAG)
CHANGED = "changes"  # in config.json: which networks the adapter changes
MAX_STEPS = 32
NETWORKS = ("backbone", "method")
# Of older adapters.
OLD_WEIGHTS, OLD_ENDS, OLD_SCALE = "model.safetensors", (".lora_A", ".lora_B"), ".lora_scale"
OLD_NETWORKS = {"uvit": "backbone", "face_controlnet": "method"}


@dataclass(frozen=True)
class FewStep:
    """An adapter. Sample with `timesteps`, first-order steps, guidance 1, and the faces at `face_scale`.

    Attributes:
        timesteps: t of each evaluation, whole, falling within 1000 … 1; the last step goes to 0.
        guidance, face_scale, uncond, pag_scale, pag_interval: those of the guided model that was distilled: its
            pictures are imitated.
        weights: by module, such as "backbone.mid_block.mlp.fc1": A [r, in] and B [out, r], float32.
        digest: changes with config and weights.
    """

    timesteps: tuple[int, ...]
    guidance: float
    face_scale: float
    uncond: str
    weights: Mapping[str, lora.Pair] = field(default_factory=dict, repr=False)
    digest: str = ""
    pag_scale: float = NO_PAG["pag_scale"]
    pag_interval: tuple[float, float] = NO_PAG["pag_interval"]

    @property
    def steps(self) -> int:
        """Evaluations a picture."""
        return len(self.timesteps)


# ---------------------------------------------------------------------------------------------------------- reading


def read_few_step(folder: str | os.PathLike) -> FewStep:
    """Read and check an adapter; its weights stay on the CPU. `UserError` names what is missing, broken or unknown."""
    folder = Path(folder)
    stored = read_json(folder / "config.json")
    config = _checked(stored, folder / "config.json")
    if (folder / OLD_WEIGHTS).exists():
        weights = _read_old(folder / OLD_WEIGHTS)
    else:
        changed = _changed(stored, folder)  # says of a lost folder that it was there
        parts = {name: lora.read_lora(folder / name) for name in changed}
        weights = {f"{name}.{module}": pair for name, pairs in parts.items() for module, pair in pairs.items()}
    if not weights:
        raise UserError(f"{folder}: holds no weights; they are in folders {' and '.join(NETWORKS)}")
    content = b"".join((folder / name).read_bytes() for name in _files(folder))
    return replace(config, weights=weights, digest=hashlib.sha256(content).hexdigest()[:16])


def _changed(stored: dict[str, Any], folder: Path) -> list[str]:
    """The networks that the adapter changes: as config.json has it, or those whose folders are there."""
    changed = stored.get(CHANGED, [name for name in NETWORKS if (folder / name).exists()])
    if not isinstance(changed, list) or not all(name in NETWORKS for name in changed):
        raise UserError(f'{folder / "config.json"}: "{CHANGED}" must be a list of {" and ".join(NETWORKS)}')
    return changed


def _files(folder: Path) -> list[str]:
    """What is read of the adapter in `folder`."""
    if (folder / OLD_WEIGHTS).exists():
        return ["config.json", OLD_WEIGHTS]
    there = [network for network in NETWORKS if (folder / network).exists()]
    return ["config.json", *(f"{network}/{name}" for network in there for name in (lora.CONFIG, lora.WEIGHTS))]


def _read_old(file: Path) -> dict[str, lora.Pair]:
    state = read_safetensors(file, "cpu", None)
    scales = {key: state.pop(key) for key in [*state] if key.endswith(OLD_SCALE)}
    pairs = lora.pairs_in(state, OLD_ENDS, file)
    for key, scale in scales.items():
        name = key.removesuffix(OLD_SCALE)
        if name not in pairs or scale.shape != (len(pairs[name][0]),):
            raise UserError(f"{file}: {key} has shape {[*scale.shape]}, needed is the rank of a layer's matrices")
        a, b = pairs[name]
        pairs[name] = (a, b * scale)
    lora.check_finite(pairs, file)
    weights = {}
    for name, pair in pairs.items():
        network, _, module = name.partition(".")
        network = OLD_NETWORKS.get(network, network)
        if network not in NETWORKS:
            raise UserError(f"{file}: {name}: an adapter changes linears of {' and '.join(NETWORKS)} only")
        weights[f"{network}.{module}"] = pair
    return weights


def _checked(config: dict[str, Any], file: Path) -> FewStep:
    for key in CONFIG_KEYS:
        if key not in config:
            raise UserError(f'{file}: "{key}" is missing; needed are {", ".join(CONFIG_KEYS)}')
    for key in config:
        if key not in (*CONFIG_KEYS, *NO_PAG, CHANGED, "made_by"):
            known = ", ".join((*CONFIG_KEYS, *NO_PAG, "made_by"))
            raise UserError(f'{file}: "{key}" is unknown; known are {known}')
    times = config["timesteps"]
    falling = isinstance(times, list) and all(type(t) is int for t in times) and times == sorted(set(times))[::-1]
    if not falling or not 1 <= len(times) <= MAX_STEPS or times[0] > NUM_TIMESTEPS or times[-1] < 1:
        raise UserError(f'{file}: "timesteps" must be 1 to {MAX_STEPS} falling whole numbers within 1000 … 1')
    for key in ("guidance", "face_scale"):
        if type(config[key]) not in (int, float) or not 0 <= config[key] <= 50:
            raise UserError(f'{file}: "{key}" must be a number from 0 to 50, not {config[key]!r}')
    if config["uncond"] not in UNCOND_MODES:
        raise UserError(f'{file}: "uncond" must be one of {", ".join(UNCOND_MODES)}, not {config["uncond"]!r}')
    try:
        pag = Settings(**{key: config.get(key, value) for key, value in NO_PAG.items()})
    except UserError as error:
        raise UserError(f"{file}: {str(error).removeprefix('--')}") from None
    return FewStep(
        tuple(times),
        config["guidance"],
        config["face_scale"],
        config["uncond"],
        pag_scale=pag.pag_scale,
        pag_interval=pag.pag_interval,
    )


def save_few_step(folder: str | os.PathLike, adapter: FewStep, made_by: Mapping[str, Any] | None = None) -> None:
    """Write an adapter, whole or not at all; config.json keeps `made_by`, settings and figures of its making."""
    parts: dict[str, dict[str, lora.Pair]] = {name: {} for name in NETWORKS}
    for name, pair in adapter.weights.items():
        network, _, module = name.partition(".")
        parts[network][module] = pair
    config = {key: getattr(adapter, key) for key in (*CONFIG_KEYS, *NO_PAG)}
    with atomic_folder(folder) as temporary:
        config[CHANGED] = [name for name, pairs in parts.items() if pairs]
        write_json(temporary / "config.json", {**config, **({"made_by": dict(made_by)} if made_by else {})})
        for network, pairs in parts.items():
            if pairs:
                lora.save_lora(temporary / network, pairs)


def average_few_steps(folders: Sequence[str | os.PathLike], folder: str | os.PathLike) -> None:
    """Write the mean of the adapters in `folders` to `folder`: models trained apart from one start, averaged.

    `UserError` where they differ in more than their weights.
    """
    adapters = [read_few_step(one) for one in folders]
    first = adapters[0]
    for one, adapter in zip(folders, adapters, strict=True):
        if replace(adapter, weights=first.weights, digest=first.digest) != first:
            raise UserError(f"{one}: its timesteps or guidance are not those of {folders[0]}; they cannot be averaged")
        if _shapes(adapter) != _shapes(first):
            raise UserError(f"{one}: changes other layers than {folders[0]}; they cannot be averaged")
    makers = [read_json(Path(one) / "config.json").get("made_by", {}) for one in folders]
    for one, made_by in zip(folders, makers, strict=True):
        if made_by.get("model") != makers[0].get("model"):
            raise UserError(f"{one}: made of another model than {folders[0]}; they cannot be averaged")
    made_by = {"average_of": makers}
    save_few_step(folder, replace(first, weights=lora.mean([adapter.weights for adapter in adapters])), made_by)


def _shapes(adapter: FewStep) -> dict[str, tuple[int, int]]:
    """Numbers that go in and come out, by changed layer."""
    return {name: (a.shape[1], len(b)) for name, (a, b) in adapter.weights.items()}


def copy_few_step(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copy an adapter, whole or not at all, checked before."""
    source = Path(source)
    read_few_step(source)
    with atomic_folder(folder) as temporary:
        for name in _files(source):
            (temporary / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, temporary / name)


# ---------------------------------------------------------------------------------------------------------- merging


def merge_network(adapter: FewStep, kind: str, network: nn.Module) -> None:
    """Put W + B A, computed in float32 and rounded once to W's dtype, in the place of each weight W it changes.

    Of a method only what works at every step may change, so that identities are the same with and without the adapter.
    `kind` is one of `NETWORKS`. The old weights are left as they are, for whoever else has them. Adding it
    twice is the caller's mistake; quantise after it, not before.
    """
    for linear, a, b in check_fit(adapter, kind, network):
        weight = linear.weight
        change = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
        merged = (weight.detach().float() + change).to(weight.dtype)
        linear.weight = nn.Parameter(merged, requires_grad=False)


def check_fit(adapter: FewStep, kind: str, network: nn.Module) -> list[tuple[nn.Linear, Tensor, Tensor]]:
    """The linears of `network` that the adapter changes, each with its A and B; `UserError` where one does not fit.

    Weights may be on "meta".
    """
    fitting = []
    changeable = {module for block in network.step_blocks() for module in block.modules()} if kind == "method" else None
    for name, (a, b) in adapter.weights.items():
        part, _, module = name.partition(".")
        if part == kind:
            linear = _linear(network, module, name)
            if changeable is not None and linear not in changeable:
                raise UserError(f"{name}: a few-step adapter changes a method's blocks only")
            shape = linear.weight.shape
            if shape != (len(b), a.shape[1]):
                raise UserError(
                    f"{name}: the few-step adapter has {len(b)}x{a.shape[1]}, the model {[*shape]}; it belongs to "
                    "another model"
                )
            fitting.append((linear, a, b))
    return fitting


def _linear(network: nn.Module, module: str, name: str) -> nn.Linear:
    try:
        found = network.get_submodule(module)
    except AttributeError:
        found = None
    if not isinstance(found, nn.Linear):
        raise UserError(
            f"{name}: the model has no such linear layer; the few-step adapter belongs to another model (or these "
            "weights are in 8 bits, which cannot take one)"
        )
    return found


def adapted(adapter: FewStep, kind: str, network: Network) -> Network:
    """A second `network` that has the adapter merged, and shares all weights that it does not change."""
    shared = {id(value): value for value in (*network.parameters(), *network.buffers())}
    twin = copy.deepcopy(network, shared)  # what is in `shared` counts as copied already
    merge_network(adapter, kind, twin)
    for old, new in zip(network.modules(), twin.modules(), strict=True):
        if old._compiled_call_impl is not None:  # a copy of a compiled module is not compiled
            new.compile(**getattr(old, "compiled_with", {}))
    return twin

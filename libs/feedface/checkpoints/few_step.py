"""Few-step adapters: what a model needs on top of its weights to draw in four evaluations without guidance.

A bundle's folder `few_step/`: config.json (`FewStep` but its weights) and model.safetensors with two matrices for each
changed linear layer, `<network>.<module>.lora_A` [r, in] and `.lora_B` [out, r], network "backbone" or "method" (in
older ones "uvit" and "face_controlnet"); `.lora_scale` [r], if there, multiplies the columns of B, so that both may be
in 8 bits. Merged, W + B A, they cost no time at sampling: a second pair of networks has them (`Bundle.networks`), the
model's own weights never change. Low rank: Hu et al. 2021, "LoRA". `docs/few_steps.md` says how one is made.
"""

import copy
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from feedface.checkpoints.storage import read_json, read_safetensors, write_json, write_state
from feedface.common.errors import UserError
from feedface.common.files import atomic_folder
from feedface.diffusion.names import UNCOND_MODES
from feedface.diffusion.schedule import NUM_TIMESTEPS

Network = TypeVar("Network", bound=nn.Module)

COMPONENT = "few_step"
A, B, SCALE = ".lora_A", ".lora_B", ".lora_scale"
CONFIG_KEYS = ("timesteps", "guidance", "face_scale", "uncond")
MAX_STEPS = 32
NETWORKS, OLD_NETWORKS = ("backbone", "method"), {"uvit": "backbone", "face_controlnet": "method"}


@dataclass(frozen=True)
class FewStep:
    """An adapter. Sample with `timesteps`, first-order steps, guidance 1, and the faces at `face_scale`.

    Attributes:
        timesteps: t of each evaluation, whole, falling within 1000 … 1; the last step goes to 0.
        guidance, face_scale, uncond: those of the guided model that was distilled: its pictures are imitated.
        weights: by module, such as "backbone.mid_block.mlp.fc1": A [r, in] and B [out, r], float32.
        digest: changes with config and weights.
    """

    timesteps: tuple[int, ...]
    guidance: float
    face_scale: float
    uncond: str
    weights: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)
    digest: str = ""

    @property
    def steps(self) -> int:
        """Evaluations a picture."""
        return len(self.timesteps)


# ---------------------------------------------------------------------------------------------------------- reading


def read_few_step(folder: str | os.PathLike) -> FewStep:
    """Read and check an adapter; its weights stay on the CPU. `UserError` names what is missing, broken or unknown."""
    folder = Path(folder)
    config = _checked(read_json(folder / "config.json"), folder / "config.json")
    file = folder / "model.safetensors"
    state = read_safetensors(file, "cpu", None)
    weights = {}
    for name in sorted({key.rpartition(".")[0] for key in state}):
        a, b, scale = (state.pop(name + end, None) for end in (A, B, SCALE))
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or len(a) != b.shape[1]:
            raise UserError(f"{file}: {name} needs {A[1:]} [r, in] and {B[1:]} [out, r]")
        if scale is not None and scale.shape != (len(a),):
            raise UserError(f"{file}: {name}{SCALE} has shape {[*scale.shape]}, needed is [{len(a)}]")
        network, _, module = name.partition(".")
        network = OLD_NETWORKS.get(network, network)
        if network not in NETWORKS:
            raise UserError(f"{file}: {name}: an adapter changes linears of {' and '.join(NETWORKS)} only")
        a, b = a.float(), b.float() if scale is None else b.float() * scale
        if not (a.isfinite().all() and b.isfinite().all()):
            raise UserError(f"{file}: {name} holds NaN or infinity; fetch or make the adapter anew")
        weights[f"{network}.{module}"] = (a, b)
    if state:
        raise UserError(f"{file}: {next(iter(state))} is unknown; known are {A}, {B} and {SCALE} of linears")
    if not weights:
        raise UserError(f"{file}: holds no weights")
    digest = hashlib.sha256((folder / "config.json").read_bytes() + file.read_bytes()).hexdigest()[:16]
    return replace(config, weights=weights, digest=digest)


def _checked(config: dict[str, Any], file: Path) -> FewStep:
    for key in CONFIG_KEYS:
        if key not in config:
            raise UserError(f'{file}: "{key}" is missing; needed are {", ".join(CONFIG_KEYS)}')
    for key in config:
        if key not in (*CONFIG_KEYS, "made_by"):
            raise UserError(f'{file}: "{key}" is unknown; known are {", ".join(CONFIG_KEYS)}, made_by')
    times = config["timesteps"]
    falling = isinstance(times, list) and all(type(t) is int for t in times) and times == sorted(set(times))[::-1]
    if not falling or not 1 <= len(times) <= MAX_STEPS or times[0] > NUM_TIMESTEPS or times[-1] < 1:
        raise UserError(f'{file}: "timesteps" must be 1 to {MAX_STEPS} falling whole numbers within 1000 … 1')
    for key in ("guidance", "face_scale"):
        if type(config[key]) not in (int, float) or not 0 <= config[key] <= 50:
            raise UserError(f'{file}: "{key}" must be a number from 0 to 50, not {config[key]!r}')
    if config["uncond"] not in UNCOND_MODES:
        raise UserError(f'{file}: "uncond" must be one of {", ".join(UNCOND_MODES)}, not {config["uncond"]!r}')
    return FewStep(tuple(times), config["guidance"], config["face_scale"], config["uncond"])


def save_few_step(folder: str | os.PathLike, adapter: FewStep, made_by: Mapping[str, Any] | None = None) -> None:
    """Write an adapter, whole or not at all; config.json keeps `made_by`, settings and figures of its making.

    Weights are stored in 8 bits: B A = U S V by singular values, and the columns of U and rows of V, of length 1, each
    with its own step. That changes B A by one to two percent of itself, and halves the file.
    """
    state = {}
    for name, (a, b) in adapter.weights.items():
        state[name + A], state[name + B], state[name + SCALE] = _in_8_bits(a, b)
    config = {key: getattr(adapter, key) for key in CONFIG_KEYS}
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", {**config, **({"made_by": dict(made_by)} if made_by else {})})
        write_state(temporary / "model.safetensors", state, None)


def _in_8_bits(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A [r,in], B [out,r] -> int8 A', B' and float32 s [r] with B diag(s) A' close to B A."""
    # Of factors, not of the product: that is out x in, and of rank r only.
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, s, vt = torch.linalg.svd(r_b @ r_a.T)
    u, v = q_b @ u, q_a @ vt.T  # [out,r], [in,r]
    steps_u, steps_v = (x.abs().amax(dim=0).clamp(min=1e-12) / 127 for x in (u, v))
    rounded_u, rounded_v = ((x / step).round().to(torch.int8) for x, step in ((u, steps_u), (v, steps_v)))
    return rounded_v.T.contiguous(), rounded_u, (s * steps_u * steps_v).float()


# ---------------------------------------------------------------------------------------------------------- merging


def merge_network(adapter: FewStep, kind: str, network: nn.Module) -> None:
    """Put W + B A, computed in float32 and rounded once to W's dtype, in the place of each weight W it changes.

    Of a method only what works at every step may change, so that identities are the same with and without the adapter.
    `kind` is one of `NETWORKS`. The old weights are left as they are, for whoever else has them. Adding it
    twice is the caller's mistake; quantise after it, not before.
    """
    changeable = {module for block in network.step_blocks() for module in block.modules()} if kind == "method" else None
    for name, (a, b) in adapter.weights.items():
        part, _, module = name.partition(".")
        if part == kind:
            linear = _linear(network, module, name)
            if changeable is not None and linear not in changeable:
                raise UserError(f"{name}: a few-step adapter changes a method's blocks only")
            weight = linear.weight
            if weight.shape != (len(b), a.shape[1]):
                raise UserError(
                    f"{name}: the few-step adapter has {len(b)}x{a.shape[1]}, the model {[*weight.shape]}; it belongs "
                    "to another model"
                )
            change = b.to(weight.device, torch.float32) @ a.to(weight.device, torch.float32)
            merged = (weight.detach().float() + change).to(weight.dtype)
            linear.weight = nn.Parameter(merged, requires_grad=False)


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
            new.compile()
    return twin

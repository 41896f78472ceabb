"""The student: the teacher's own weights and low-rank changes of its linear layers, which alone are trained.

Shapes: B batch, S steps, J numbers of a packed `State`.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.checkpoints import lora
from feedface.checkpoints.few_step import FewStep
from feedface.diffusion.guidance import GuidedModel
from feedface.diffusion.state import pack, unpack
from feedface.distillation.ddim import ddim_step
from feedface.distillation.trajectories import Piece
from feedface.methods.base import Method

# Of the U-ViT: before the first block nothing has to change, and the noise in the text is not used.
UNCHANGED = ("text_embed", "clip_img_embed", "text_out")


class LowRank(nn.Module):
    """Matrices A [r,in] and B [out,r] for each changed linear layer, peft's, in a module that holds nothing else.

    `pairs` has them by layer, with "/" for each dot.
    """

    def __init__(self, layers: Mapping[str, nn.Module]):
        super().__init__()
        self.pairs = nn.ModuleDict()
        for name, layer in layers.items():
            (a,), (b,) = layer.lora_A.values(), layer.lora_B.values()
            self.pairs[name.replace(".", "/")] = nn.ParameterDict({"A": a.weight, "B": b.weight})

    def draw(self) -> None:
        """A anew from torch's CPU generator, one layer after the other, so that a seed means the same everywhere."""
        for pair in self.pairs.values():
            pair["A"].data.copy_(nn.init.kaiming_uniform_(torch.empty(pair["A"].shape), a=math.sqrt(5)))

    def weights(self) -> dict[str, lora.Pair]:
        """Copies for a `FewStep`."""
        return {
            name.replace("/", "."): tuple(pair[key].detach().cpu().float().clone() for key in "AB")
            for name, pair in self.pairs.items()
        }


@contextmanager
def low_rank(backbone: Backbone, method: Method, ranks: Mapping[str, int]) -> Iterator[LowRank]:
    """Inside the `with`, the two networks answer as with the changes merged into their weights; fresh ones are none.

    `ranks`: r of each network, "backbone" and "method"; 0 leaves it as it is.
    """
    networks, wrapped, layers = {"backbone": backbone, "method": method}, [], {}
    try:
        for kind, linears in changed_linears(backbone, method).items():
            if ranks[kind]:
                with torch.random.fork_rng(devices=[]):
                    wrapped.append(lora.with_lora(networks[kind], linears, ranks[kind]))
                layers |= {f"{kind}.{name}": networks[kind].get_submodule(name) for name in linears}
        matrices = LowRank(layers)
        matrices.draw()
        yield matrices
    finally:
        for model in wrapped:
            model.unload()


def changed_linears(backbone: Backbone, method: Method) -> dict[str, list[str]]:
    """The linear layers that an adapter may change, by network: the backbone's, and the method's step blocks'."""
    at_steps = {module for block in method.step_blocks() for module in block.modules()}
    found = {
        "backbone": [(name, module) for name, module in backbone.named_modules() if name not in UNCHANGED],
        "method": [(name, module) for name, module in method.named_modules() if module in at_steps],
    }
    return {
        kind: [name for name, module in modules if isinstance(module, nn.Linear)] for kind, modules in found.items()
    }


class Student:
    """The networks with `adapter`'s timesteps and face scale, without guidance."""

    def __init__(self, backbone: Backbone, method: Method, adapter: FewStep, clip_weight: float):
        self.backbone, self.method, self.adapter = backbone, method, adapter
        self.shapes = backbone.state_shapes()
        self.weights = dict.fromkeys(self.shapes, clip_weight) | {"img": 1.0}

    def loss(self, piece: Piece, own: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared distance to the teacher's next state, summed over the steps -> (loss, its image part by step).

        Each step starts where the teacher was or, in the rows that `own` [B] (bool) marks, where the student itself has
        come to: there it learns to make good what its steps before have missed. All states have about unit variance,
        so no step needs a weight.
        """
        total, parts = 0.0, {}
        for index, (reached, target) in enumerate(self.steps(piece, own), 1):
            errors = unpack((reached - target).square(), self.shapes)
            parts[f"jump{index}"] = errors["img"].mean().detach()
            for name, error in errors.items():
                total = total + self.weights[name] * error.mean()
        return total, parts

    def steps(self, piece: Piece, own: Tensor, detached: bool = True) -> Iterator[tuple[Tensor, Tensor]]:
        """Where each step ends, and where the teacher was then: each [B,J].

        `detached`: gradients do not flow into the steps before.
        """
        model = GuidedModel(
            self.backbone, piece.prompt, method=self.method, identity=piece.identity, scale=self.adapter.face_scale
        )
        teacher = piece.states.unbind(dim=1)
        x = teacher[0]
        for (start, end), here, target in zip(
            pairwise([*self.adapter.timesteps, 0]), teacher[:-1], teacher[1:], strict=True
        ):
            x = torch.where(own[:, None], x, here)
            reached = ddim_step(x, pack(model(unpack(x, self.shapes), float(start))), start, end)
            yield reached, target
            x = reached.detach() if detached else reached

    @torch.no_grad()
    def draw(self, piece: Piece) -> Tensor:
        """The student's pictures [B,J] from the teacher's noise."""
        own = torch.ones(len(piece.states), dtype=torch.bool, device=piece.states.device)
        return [reached for reached, _ in self.steps(piece, own)][-1]

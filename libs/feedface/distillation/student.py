"""The student: the teacher's own weights and low-rank changes of its linear layers, which alone are trained.

Shapes: B batch, S steps, J numbers of a joint vector (see `jumps`).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.backbones.uvit import UViT
from feedface.checkpoints.few_step import FewStep
from feedface.diffusion.guidance import GuidedNoise
from feedface.distillation.jumps import Joint, jump
from feedface.distillation.trajectories import Piece
from feedface.methods.feedface import FaceControlNet

# Before the first block nothing has to change, and the noise in the text is not used.
UNCHANGED = ("text_embed", "clip_img_embed", "text_out")


class LowRank(nn.Module):
    """Matrices A [r,in] and B [out,r] for each changed linear layer; a fresh one changes nothing, since B is zero.

    Hu et al. 2021, "LoRA", with scale 1. `ranks`: r of each network, "uvit" and "face_controlnet".
    """

    def __init__(self, uvit: UViT, face_controlnet: FaceControlNet, ranks: Mapping[str, int]):
        super().__init__()
        self.pairs = nn.ModuleDict()
        for name, linear in changed_linears(uvit, face_controlnet).items():
            rank = min(ranks[name.partition(".")[0]], *linear.weight.shape)
            if rank:
                a = torch.empty(rank, linear.in_features, dtype=torch.float32)
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))
                pair = {"A": nn.Parameter(a), "B": nn.Parameter(torch.zeros(linear.out_features, rank))}
                self.pairs[name.replace(".", "/")] = nn.ParameterDict(pair)  # no dots in the names of modules

    @contextmanager
    def attached(self, uvit: UViT, face_controlnet: FaceControlNet) -> Iterator[None]:
        """Inside the `with`, the two networks answer as with the changes merged into their weights."""
        linears = changed_linears(uvit, face_controlnet)
        handles = [
            linears[name.replace("/", ".")].register_forward_hook(_adding(pair["A"], pair["B"]))
            for name, pair in self.pairs.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Copies for a `FewStep`."""
        return {
            name.replace("/", "."): tuple(pair[key].detach().cpu().float().clone() for key in "AB")
            for name, pair in self.pairs.items()
        }


def changed_linears(uvit: UViT, face_controlnet: FaceControlNet) -> dict[str, nn.Linear]:
    """The linear layers that an adapter may change, by name: of all blocks of both networks, and the U-ViT's heads."""
    found = {f"uvit.{name}": module for name, module in uvit.named_modules() if name not in UNCHANGED}
    blocks = face_controlnet.blocks.named_modules(prefix="face_controlnet.blocks")
    return {name: module for name, module in (*found.items(), *blocks) if isinstance(module, nn.Linear)}


def _adding(a: Tensor, b: Tensor):
    def hook(_linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = inputs[0]
        return output + F.linear(F.linear(x, a.to(x.dtype)), b.to(x.dtype))

    return hook


class Student:
    """The networks with `adapter`'s timesteps and face scale, without guidance."""

    def __init__(self, uvit: UViT, face_controlnet: FaceControlNet, adapter: FewStep, clip_weight: float):
        self.uvit, self.face_controlnet, self.adapter = uvit, face_controlnet, adapter
        self.joint, self.clip_weight = Joint.of(uvit), clip_weight

    def loss(self, piece: Piece, own: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Squared distance to the teacher's next state, summed over the jumps -> (loss, its image part by jump).

        Each jump starts where the teacher was or, in the rows that `own` [B] (bool) marks, where the student itself has
        come to: there it learns to make good what its jumps before have missed. All states have about unit variance,
        so no jump needs a weight.
        """
        total, parts = 0.0, {}
        for index, (reached, target) in enumerate(self._jumps(piece, own), 1):
            img, clip_img = self.joint.split((reached - target).square())
            parts[f"jump{index}"] = img.mean().detach()
            total = total + img.mean() + self.clip_weight * clip_img.mean()
        return total, parts

    def _jumps(self, piece: Piece, own: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Where each jump ends, and where the teacher was then: each [B,J]."""
        model = GuidedNoise(
            self.uvit,
            piece.text,
            face_controlnet=self.face_controlnet,
            face_tokens=piece.faces,
            face_scale=self.adapter.face_scale,
        )
        teacher = piece.states.unbind(dim=1)
        x = teacher[0]
        for (start, end), here, target in zip(
            pairwise([*self.adapter.timesteps, 0]), teacher[:-1], teacher[1:], strict=True
        ):
            x = torch.where(own[:, None], x, here)
            reached = jump(x, self.joint.merge(*model(*self.joint.split(x), float(start))), start, end)
            yield reached, target
            x = reached.detach()

    @torch.no_grad()
    def draw(self, piece: Piece) -> Tensor:
        """The student's pictures [B,J] from the teacher's noise."""
        own = torch.ones(len(piece.states), dtype=torch.bool, device=piece.states.device)
        return [reached for reached, _ in self._jumps(piece, own)][-1]

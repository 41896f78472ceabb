"""After the teacher's lessons, the critic's: what the teacher misdraws itself.

The student draws from noise to the end, and gradients flow through all its steps. The critic says what does not look
real; the teacher still says what the picture is of, since averages over patches of the latents, and they alone, must
stay near its own: composition, colours, pose. Details, an eye, the parts of glasses, are left to the critic. Without
that anchor all pictures become one, without the patches the teacher's faults stay. And a recogniser says whose face it
is (`likeness.py`).
"""

import math
from pathlib import Path

import ml_collections
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedface.backbones.base import Backbone
from feedface.common.errors import UserError
from feedface.diffusion.schedule import NUM_TIMESTEPS
from feedface.diffusion.state import unpack
from feedface.distillation.critic import Critic
from feedface.distillation.likeness import Likeness
from feedface.distillation.pictures import Real
from feedface.distillation.student import LowRank, Student
from feedface.distillation.trajectories import Trajectories
from feedface.training.fit import FitResult, fit


def refine(
    config: ml_collections.ConfigDict,
    student: Student,
    matrices: LowRank,
    critic: Critic,
    lessons: Trajectories,
    pictures: list[Real],
    likeness: Likeness | None,
    held_out: int,
    folder: Path,
) -> FitResult:
    """Train `matrices` on, and leave their averages in them.

    Args:
        config: `refine`'s.
        pictures: real ones, shard by shard of `lessons`.
        likeness: None: no recogniser looks.
        held_out: so many first shards are left out.
    """
    device = next(matrices.parameters()).device
    critic = critic.to(device)

    def step(generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        shard, rows = lessons.drawn(config.batch_size, held_out, generator)
        t = int(torch.randint(1, config.noise + 1, (1,), generator=generator))
        piece, real = lessons.piece(shard, rows, device), pictures[shard].states[rows].to(device)
        own = torch.ones(len(real), dtype=torch.bool, device=device)
        off, drawn = 0.0, None
        for drawn, target in student.steps(piece, own, detached=False):
            difference = unpack(drawn - target, student.shapes)["img"]
            off = off + F.avg_pool2d(difference, config.patch).square().mean()
        noise = torch.randn(drawn.shape, generator=generator).to(device)
        fooled, told_apart = critic.losses(drawn, real, piece, t, noise)
        parts = {"off": off.detach(), "student": fooled.detach(), "critic": told_apart.detach()}
        loss = config.anchor * off + fooled + told_apart
        if likeness is not None and piece.identity is not None:
            unlike = likeness.loss(unpack(drawn, student.shapes)["img"], pictures[shard].faces[rows].to(device))
            loss, parts["unlike"] = loss + config.likeness * unlike, unlike.detach()
        return loss, parts

    networks = nn.ModuleDict({"student": matrices, "critic": critic})
    return fit("refined", networks, step, config, folder, critic=list(critic.parameters()))


def check_refine(config: ml_collections.ConfigDict, backbone: Backbone) -> None:
    """`UserError` for settings of `refine` that make no sense."""
    blocks = [name for name, site in backbone.sites.items() if site.kind == "block"]
    wrong = [name for name in config.sites if name not in blocks]
    if wrong or not config.sites:
        raise UserError(
            f"config.refine.sites: {', '.join(wrong) or 'none'}; the backbone's blocks are {', '.join(blocks)}"
        )
    if config.patch > min(backbone.latent_size):
        raise UserError(f"config.refine.patch: {config.patch} is too large for latents of {backbone.latent_size}")
    for name in ("batch_size", "patch"):
        if config[name] < 1:
            raise UserError(f"config.refine.{name}: {config[name]} is too few; use 1 or more")
    if not 0 <= config.likeness < math.inf:
        raise UserError(f"config.refine.likeness: {config.likeness} is no weight; use 0 or more")
    if not 1 <= config.noise <= NUM_TIMESTEPS:
        raise UserError(f"config.refine.noise: {config.noise} is no timestep; use 1 to {NUM_TIMESTEPS}")

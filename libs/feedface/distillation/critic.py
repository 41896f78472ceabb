"""The critic: tells the student's pictures from real ones by what the model itself sees in them.

Adversarial diffusion distillation (Sauer et al. 2023; on the diffusion model's own features: Sauer et al. 2024, "Fast
High-Resolution Image Synthesis with Latent Adversarial Diffusion Distillation"). Small heads, which alone are trained,
read image tokens behind some blocks of the frozen model, which is shown a state with a little noise in it, its prompt
and its person: what is judged is a picture of this person for this text. So that the person counts, real pictures with
somebody else's identity are to be told apart too (the matching-aware critic of Reed et al. 2016). The loss is the
relativistic one with both gradient penalties (Huang et al. 2024, "The GAN is dead; long live the GAN!", eq. 2 to 4), on
the heads' inputs.

Shapes: B batch, K blocks, J numbers of a packed `State`, h w the grid of image tokens, D width.
"""

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from feedface.backbones.base import Backbone
from feedface.backbones.control import Control, Controls
from feedface.backbones.site import Site
from feedface.diffusion.state import unpack
from feedface.distillation.ddim import signal_and_noise
from feedface.distillation.trajectories import Piece
from feedface.methods.base import Method

HEAD_WIDTH = 128


class Watch(Control):
    """Changes nothing, and keeps the image tokens [B,N,D] behind the blocks `sites`, in `seen` by name."""

    def __init__(self, sites: Sequence[str]):
        self.sites = sites
        self.seen: dict[str, Tensor] = {}

    def block(self, site: Site, x: Tensor, out: Tensor) -> None:
        self.seen[site.name] = out.clone()  # what controls add at this very block is left out


class Head(nn.Module):
    """Image tokens [B,N,D] of a grid (h, w) -> how real each place looks, [B,1,h,w]."""

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid
        self.layers = nn.Sequential(
            nn.Conv2d(width, HEAD_WIDTH, 1),
            nn.GELU(),
            nn.Conv2d(HEAD_WIDTH, HEAD_WIDTH, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(HEAD_WIDTH, 1, 1),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return self.layers(tokens.transpose(1, 2).unflatten(2, self.grid))


class Critic(nn.Module):
    """The heads; its `state_dict` holds them alone. The networks it looks with are copies, and stay as they are.

    Args:
        sites: names of the backbone's blocks behind which it looks.
        penalty: γ of both gradient penalties.
    """

    def __init__(self, backbone: Backbone, method: Method, sites: Sequence[str], penalty: float):
        super().__init__()
        self.sites, self.penalty, self.shapes = tuple(sites), penalty, backbone.state_shapes()
        self._networks = [copy.deepcopy(network).requires_grad_(False) for network in (backbone, method)]
        places = [backbone.sites[name] for name in sites]
        self.heads = nn.ModuleList(Head(site.width, site.grid(backbone.latent_size)) for site in places)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """What the heads say of image tokens, [B,1,h,w] each."""
        return [head(tokens) for head, tokens in zip(self.heads, features, strict=True)]

    def features(self, states: Tensor, t: int, piece: Piece) -> list[Tensor]:
        """What the model sees in `states` [B,J], noisy as at timestep `t`: image tokens [B,N,D] behind each block.

        What the person adds at a block is seen in those behind it.
        """
        backbone, method = self._networks
        watch = Watch(self.sites)
        person = None
        if piece.identity is not None:
            person = method.bind(backbone, method.prompted(piece.identity, piece.prompt))
        times = torch.full((len(states),), float(t), device=states.device)
        backbone(unpack(states, self.shapes), times, backbone.conditions(piece.prompt), Controls([person, watch]))
        return [watch.seen[name].float() for name in self.sites]

    def losses(self, drawn: Tensor, real: Tensor, piece: Piece, t: int, noise: Tensor) -> tuple[Tensor, Tensor]:
        """(the student's loss, the critic's) for pictures `drawn` and `real`, clean states [B,J], pair by pair.

        Both are shown with the same `noise` [B,J] at timestep `t`. Gradients of the first reach `drawn` only, those of
        the second the heads only: one backward pass of their sum serves both.
        """
        signal, sigma = signal_and_noise(t)
        of_drawn = self.features(signal * drawn + sigma * noise, t, piece)
        with torch.no_grad():
            of_real = self.features(signal * real + sigma * noise, t, piece)
        fixed = {name: p.detach() for name, p in self.named_parameters()}
        said = functional_call(self, fixed, (of_drawn,))

        of_drawn, of_real = ([x.detach().requires_grad_() for x in tokens] for tokens in (of_drawn, of_real))
        said_of_real = self(of_real)
        student = _mean(F.softplus(r.detach() - d) for r, d in zip(said_of_real, said, strict=True))
        said = self(of_drawn)
        critic = _mean(F.softplus(d - r) for r, d in zip(said_of_real, said, strict=True))
        if piece.identity is not None and len(real) > 1:
            strangers = replace(piece, identity={name: x.roll(1, 0) for name, x in piece.identity.items()})
            with torch.no_grad():
                of_strangers = self.features(signal * real + sigma * noise, t, strangers)
            said_of_strangers = self(of_strangers)
            critic = critic + _mean(F.softplus(s - r) for r, s in zip(said_of_real, said_of_strangers, strict=True))
        penalty = _steepness(said, of_drawn) + _steepness(said_of_real, of_real)
        return student, critic + self.penalty / 2 * penalty


def _mean(losses: Iterable[Tensor]) -> Tensor:
    return torch.stack([loss.mean() for loss in losses]).mean()


def _steepness(said: list[Tensor], features: list[Tensor]) -> Tensor:
    """|∂(mean of what is said of a picture) / ∂(its tokens)|², differentiable, mean over the batch."""
    total = sum(answer.flatten(1).mean(1).sum() for answer in said)
    gradients = torch.autograd.grad(total, features, create_graph=True)
    return sum(gradient.square().sum((1, 2)).mean() for gradient in gradients)

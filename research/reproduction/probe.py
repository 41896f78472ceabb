"""How much of a person a face encoder's features hold linearly: ridge regression to the judge's embedding.

Letters: N pictures, I people, R pictures a person, G gallery pictures, n tokens, V width of a token, E embedding width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from feedface.common.progress import progress
from feedface.encoders import preprocess_reference
from feedface.evaluation.cases import WORLD_SEED
from feedface.evaluation.inspector import Inspector
from feedface.evaluation.metrics import mean_embedding, nearest_identity
from feedface.faces.crop import crop_square, square_box
from feedface.methods.base import Method
from feedface.synthetic.world import make_portraits

POOLINGS = ("tokens", "mean")  # all tokens side by side, n * V numbers, or their mean, V numbers
PENALTIES = tuple(10.0**exponent for exponent in range(-4, 3))
CHUNK = 64  # people rendered at a time


@torch.inference_mode()
def face_features(method: Method, crops: Iterable[np.ndarray], device: torch.device) -> Tensor:
    """What the method's frozen face encoder says of face crops: [N, n, V], float32, on the CPU."""
    pixels = torch.stack([preprocess_reference(method.reference, crop) for crop in crops])
    features = method.features(pixels.to(device))
    return next(iter(features.values())).float().cpu()


def pictures_to_fit(
    method: Method, inspector: Inspector, people: int, each: int, first_scene: int, size: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features [N, n, V] of pictures of people from number 0, and the mean embedding [N, E] of their other pictures.

    each: pictures a person (>= 2), the scenes from `first_scene`.
    """
    states, targets = [], []
    with progress(total=people, desc="pictures for the probe", unit="person") as bar:
        for start in range(0, people, CHUNK):
            who = np.arange(start, min(start + CHUNK, people))
            scenes = np.tile(np.arange(first_scene, first_scene + each), len(who))
            world = make_portraits(np.repeat(who, each), scenes, WORLD_SEED, size)
            crops = [crop_square(*pair) for pair in zip(world.images, map(square_box, world.boxes), strict=True)]
            states.append(face_features(method, crops, device))
            seen = inspector.inspect(world.images).embedding.reshape(len(who), each, -1)
            # Never of the same picture: what it shows besides the person would count as the person.
            others = (seen.sum(axis=1, keepdims=True) - seen) / (each - 1)
            targets.append(torch.from_numpy(others.reshape(len(scenes), -1)))
            bar.update(len(who))
    return torch.cat(states), torch.cat(targets)


@dataclass(frozen=True)
class LinearProbe:
    """A linear map from standardised features to the judge's embedding."""

    pooling: str
    penalty: float
    mean: Tensor  # [D]
    std: Tensor  # [D]
    weight: Tensor  # [D, E]
    offset: Tensor  # [E]

    def predict(self, states: Tensor) -> np.ndarray:
        """Features [..., n, V] -> embeddings [..., E] of length 1."""
        x = (pool(states, self.pooling) - self.mean) / self.std
        return torch.nn.functional.normalize(x @ self.weight + self.offset, dim=-1).numpy()


def pool(states: Tensor, pooling: str) -> Tensor:
    """Features [..., n, V] -> [..., n * V] ("tokens") or [..., V] ("mean")."""
    return states.flatten(-2) if pooling == "tokens" else states.mean(dim=-2)


def ridge(x: Tensor, y: Tensor, penalties: Sequence[float]) -> list[Tensor]:
    """For each penalty the [D, E] that minimises |x w - y|² / N + penalty |w|²; x [N, D] and y [N, E] centred."""
    rows, columns = x.shape
    # The same solution from N x N or from D x D numbers: take the smaller.
    wide = columns > rows
    gram = ((x @ x.T if wide else x.T @ x) / rows).double()
    right = (y if wide else x.T @ y).double() / rows
    weights = []
    for penalty in penalties:
        system = gram + penalty * torch.eye(len(gram), dtype=gram.dtype)
        solution = torch.cholesky_solve(right, torch.linalg.cholesky(system)).to(x.dtype)
        weights.append(x.T @ solution if wide else solution)
    return weights


def choose_probe(
    states: Tensor,
    targets: Tensor,
    held_out: Tensor,
    gallery: np.ndarray,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[dict[str, LinearProbe], list[dict]]:
    """Fit every pooling and penalty; keep for each pooling the penalty that is best on people not fitted.

    Args:
        states: features of the people to fit, [N, n, V].
        targets: what the judge says of other pictures of the same people, [N, E].
        held_out: features of other people, [I, R, n, V].
        gallery: what the judge says of more pictures of those, [I, G, E].

    Returns:
        The probes by pooling, and what was tried: pooling, penalty, held_out_nearest_identity (each single picture).
    """
    known, offset = mean_embedding(gallery), targets.mean(dim=0)
    probes, tried = {}, []
    for pooling in POOLINGS:
        x = pool(states, pooling)
        mean = x.mean(dim=0)
        std = x.std(dim=0).clamp_min(1e-6)  # a feature that never changes stays at zero
        best = -1.0
        for penalty, weight in zip(penalties, ridge((x - mean) / std, targets - offset, penalties), strict=True):
            probe = LinearProbe(pooling, penalty, mean, std, weight, offset)
            share = float(nearest_identity(probe.predict(held_out), known).mean())
            tried.append({"pooling": pooling, "penalty": penalty, "held_out_nearest_identity": round(share, 4)})
            if share > best:
                best, probes[pooling] = share, probe
    return probes, tried

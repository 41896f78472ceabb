"""What AdaFace's second stage compares: a person's words must change a picture as a class word does, and no further.

Four prompts go together, as rows SS, SC, MS, MC: the person alone and in a composition, and a class word ("person")
alone and in the same composition; in the U-Net the class word's rows have some of the person in them ("mixed").
What a composition changes of the person (SC against SS) should be what it changes of the class (MC against MS).

Shapes: H heads, P pixels of a map h w, C channels, T text tokens, D their width.
Source: Feng et al. 2024, "AdaFace", second training stage; numbers are those of its program.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from feedface.common.gradients import with_gradient_times

EPS = 1e-6
MASS = 0.25  # of attention to a face, from which a pixel of the composition counts as the face
MARGIN = 0.4  # of attention scores


@dataclass(slots=True)
class Layer:
    """What one cross-attention layer did in the four rows.

    Attributes:
        scores: [4,H,P] of attention before the softmax, summed over the person's tokens.
        queries: [4,C,h,w], heads joined.
        features: [4,C,h',w'], the block's output.
        weight: of the layer; those of all layers sum to 1.
    """

    scores: Tensor
    queries: Tensor
    features: Tensor
    weight: float


# ---------------------------------------------------------------------------------------------------------- differences


def orthogonal(a: Tensor, b: Tensor) -> Tensor:
    """`a` without what lies along `b`, over the last dimension."""
    return a - b * ((a * b).sum(-1, keepdim=True) / ((b * b).sum(-1, keepdim=True) + EPS))


def unlike(a: Tensor, b: Tensor, power: int = 2) -> Tensor:
    """1 − cos of `a` with `b` to the `power`, its signs kept, over the last dimension: [...]."""
    return 1 - F.cosine_similarity(a, b * b.abs() ** (power - 1), dim=-1)


def prompt_loss(texts: Tensor, real: Tensor) -> Tensor:
    """The difference that a composition makes to the person's text, against the class's.

    Args:
        texts: rows SS, SC, CS, CC of encoded prompts, [4,T,D].
        real: of SS and SC, [2,T]: 1 for tokens of the prompt, 0 for those that begin, end or fill it up.

    A token of both prompts weighs 1, one of the composition alone 1/4. The class is what is learned from: it gets a
    twentieth of its gradient.
    """
    single, composed, class_single, class_composed = texts
    change, wanted = orthogonal(composed, single), orthogonal(class_composed, class_single)
    change, wanted = (x - x.mean(-1, keepdim=True) for x in (change, wanted))
    weight = real.to(texts).sum(dim=0).square() / 4
    return (weight * unlike(change, with_gradient_times(0.05, wanted))).sum() / (weight.sum() + 1e-8)


# ----------------------------------------------------------------------------------------------------- the class's text


def merged(text: Tensor, first: int, count: int) -> Tensor:
    """Encoded text [T,D] whose `count` class words from `first` on are one: their sum; what follows moves up.

    The last `count` vectors stay where they are.
    """
    word = text[first : first + count].sum(dim=0, keepdim=True)
    return torch.cat([text[:first], word, text[first + count : len(text) - 1], text[len(text) - count :]])


def spread(text: Tensor, first: int, count: int) -> Tensor:
    """The vector at `first` in `count` places, divided by the root of their number."""
    places = (text[first] / count**0.5).expand(count, -1)
    return torch.cat([text[:first], places, text[first + count :]])


def mixed(person: Tensor, other: Tensor, places: slice, depth: float, low: float, noise: float) -> Tensor:
    """The class's text [B,T,D] with some of the person's in it, for a layer.

    Args:
        places: of the person's tokens, where the class has its word.
        depth: of the layer: 0 the first that is mixed, 1 the last.
        low: the class's share in these places at the last layer, 0.8 for keys and 0.7 for values; at the first it is 1.
        noise: of the whole text the class's share is as large as this, 0 … 1: more at earlier steps.
    """
    share = 1 + depth * (low - 1)
    changed = torch.cat(
        [
            other[:, : places.start],
            share * other[:, places] + (1 - share) * person[:, places],
            other[:, places.stop :],
        ],
        dim=1,
    )
    return (1 - noise) * person + noise * changed


# ------------------------------------------------------------------------------------------------- features, attention


@torch.no_grad()
def away_from(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Weights [B,1,h,w] that are small where a person's tokens are attended, by `scores` [B,H,P]; their mean is 1."""
    maps = _square(scores.mean(dim=1))
    if tuple(maps.shape[-2:]) != tuple(size):
        maps = F.interpolate(maps, tuple(size), mode="bilinear", align_corners=False)
    mean = maps.mean((1, 2, 3), keepdim=True)
    sigma = maps.flatten(1).std(dim=1)[:, None, None, None]
    weights = torch.exp(-(maps - mean) / torch.maximum(sigma + 0.001, mean / 2)).clamp(max=1)
    return weights / weights.mean((1, 2, 3), keepdim=True)


def mix_losses(layers: Iterable[Layer], normed: bool) -> Tensor:
    """[3]: what a composition changes of features and of attention against the class's, and how strong attention is.

    `normed`: features are normed over their channels first.
    """
    return sum(layer.weight * _mix_losses(layer, normed) for layer in layers)


def _mix_losses(layer: Layer, normed: bool) -> Tensor:
    single, composed, mixed_single, mixed_composed = layer.scores
    features = over_channels(layer.features) if normed else layer.features
    weights = away_from(layer.scores, features.shape[-2:])
    pooled = F.avg_pool2d(features * (weights[1] + weights[3]) / 2, *((4, 2) if features.shape[-1] <= 16 else (8, 4)))
    ss, sc, ms, mc = pooled.flatten(1)
    ms, mc = (with_gradient_times(0.1, x) for x in (ms, mc))
    feature = orthogonal(orthogonal(sc, mc), orthogonal(ss, ms)).square().mean()
    learned = [with_gradient_times(0.05, x) for x in (mixed_composed, mixed_single)]
    change = unlike(orthogonal(composed, learned[0]), orthogonal(single, learned[1]), 3).mean()
    pairs = ((composed, mixed_composed), (single, mixed_single))
    strength = sum((a.mean(-1) - b.mean(-1)).abs().mean() for a, b in pairs)
    return torch.stack([feature, change, strength])


def mix_total(losses: Tensor, normed: bool) -> Tensor:
    """One number out of `mix_losses`; features count less where they are not normed."""
    return (losses * losses.new_tensor([2.5 if normed else 0.5, 0.1, 1.0])).sum()


def matching(queries: Tensor, features: Tensor, face: Tensor) -> tuple[Tensor, Tensor]:
    """Where the face of SS went to in SC, found by attention between the two; the same of the mixed rows.

    Args:
        queries, features: [4,C,P].
        face: of SS and MS, [P], bool.

    Returns:
        [3]: how unlike the two ways are; how unlike the face's features are; how unlike the backgrounds of SC and MC.
        [2,P]: how much each pixel of SC, and of MC, is background.
    """
    single, composed, mixed_single, mixed_composed = queries
    ways = torch.stack([(b.T @ a).softmax(dim=0) for a, b in ((single, composed), (mixed_single, mixed_composed))])
    background = (MASS - ways[:, :, face].sum(dim=-1)).clamp(min=0)
    of_single, of_composed, _, of_mixed = features
    way = (ways[0] - ways[1]).abs()[face][:, face].mean()
    carried = of_composed @ ways[0][:, face]  # [C, pixels of the face]
    kept = unlike(carried.T, of_single[:, face].T).mean()
    elsewhere = weighted(unlike(of_composed.T, of_mixed.T), background[1])
    return torch.stack([way, kept, elsewhere]), background


def preserve_losses(layers: Iterable[Layer], face: Tensor, normed: bool) -> Tensor:
    """[5]: the three of `matching`, and the person's attention on the background of SC and of MC.

    `face` [1,1,H,W], 0 … 1; `normed`: features over their channels, queries over their batch.
    """
    return sum(layer.weight * _preserve_losses(layer, face, normed) for layer in layers)


def _preserve_losses(layer: Layer, face: Tensor, normed: bool) -> Tensor:
    queries, features = layer.queries, layer.features
    size = queries.shape[-2:]
    if tuple(features.shape[-2:]) != tuple(size):
        features = F.interpolate(features, tuple(size), mode="bilinear", align_corners=False)
    if normed:
        features, queries = over_channels(features), F.batch_norm(queries, None, None, training=True)
    maps = [queries, features, face_at(face, size), _square(layer.scores.clamp(min=0).mean(dim=1))]
    if size[-1] > 8:
        maps = [F.avg_pool2d(x, 4, 2) for x in maps]
    queries, features, mask, scores = (x.flatten(2) for x in maps)
    losses, background = matching(queries, features, mask.flatten() > 0)
    attended = [weighted(scores[row, 0], share) for row, share in ((1, background[0]), (3, background[1]))]
    return torch.cat([losses, torch.stack(attended)])


def preserved(losses: Tensor) -> Tensor:
    """One number out of `preserve_losses`: backgrounds count 2 to 6 times, the more the more unlike they are."""
    way, kept, elsewhere, *attended = losses
    return way + kept + dynamic_scale(elsewhere) * elsewhere + 0.02 * sum(attended)


def dynamic_scale(loss: Tensor) -> Tensor:
    """2 up to a loss of 0.2, 6 from 0.6 on, without a gradient."""
    return (10 * loss.detach()).clamp(2, 6)


def foreground_losses(person: Tensor, background: Tensor | None, face: Tensor, ratio: float = 1.0) -> Tensor:
    """[4]: attention to a person's tokens is on the face, to a background's off it, and they do not go together.

    Args:
        person, background: scores [B,H,P], summed over the tokens; without a background's only the second loss counts.
        face: [B,1,h,w], 0 … 1.
        ratio: tokens of a person to those of a background.

    Returns:
        Of both together; of the person's off the face; of the background's on it; of each against the other's.
    """
    on = (face.flatten(2) > EPS).to(person)  # [B,1,P]
    off = 1 - on

    def mean(scores: Tensor, where: Tensor) -> Tensor:
        return (scores * where).sum(-1, keepdim=True) / where.sum(-1, keepdim=True).clamp(min=1)

    best = mean(person, on)
    astray = 0.05 * _violated(person * off + MARGIN - best)
    if background is None:
        return torch.stack([torch.zeros_like(astray), astray, *[torch.zeros_like(astray)] * 2])
    best_off = mean(background, off)
    together = F.cosine_similarity(background, person * person.abs(), dim=-1).clamp(min=0).mean()
    covering = 0.1 * _violated(background * on + MARGIN - best_off)
    against = _violated(background * on + MARGIN * ratio - best) + _violated(person * off + MARGIN - best_off)
    return torch.stack([together, astray, covering, 0.05 * against])


def _violated(values: Tensor) -> Tensor:
    """The mean of those above 0; 0 without any."""
    positive = values.clamp(min=0)
    return positive.sum() / (values > 0).sum().clamp(min=1)


def weighted(values: Tensor, weights: Tensor) -> Tensor:
    """Their weighted mean [P] -> []; 0 without weights."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-9)


def over_channels(features: Tensor) -> Tensor:
    """Features [B,C,h,w] normed over their channels."""
    return F.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def face_at(face: Tensor, size: Sequence[int]) -> Tensor:
    """A mask [B,1,H,W] at another size, so that a small face is not lost."""
    nearest = F.interpolate(face, tuple(size), mode="nearest")
    return torch.maximum(nearest, F.interpolate(face, tuple(size), mode="bilinear", align_corners=False))


def _square(maps: Tensor) -> Tensor:
    """[B,P] -> [B,1,√P,√P]."""
    side = int(maps.shape[-1] ** 0.5)
    return maps.reshape(len(maps), 1, side, side)

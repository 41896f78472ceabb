"""Everything random about a training sample, drawn from (seed, sample number) alone.

So a run does not depend on how many processes or workers share it, nor on where it was interrupted. Samples are
numbered through the whole run; number `s` is picture `s % N` of the shuffled order of epoch `s // N`, unless pictures
are dealt by their size (`buckets`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from feedface.data.buckets import Buckets, Size
from feedface.diffusion.batch import Draw
from feedface.diffusion.schedule import NUM_TIMESTEPS

# First entry of each generator's seed. All seeds have four entries: numpy takes [a] and [a, 0] for the same.
_ORDER, _SAMPLE, _FACES, _FIXED = 1, 2, 3, 4


@dataclass(frozen=True)
class DrawSettings:
    """Probabilities are per sample. `state_shapes`: what is noised, as `Backbone.state_shapes` gives it for the square.

    `buckets` deal pictures of several sizes; None: each is its centre square. `draws_per_picture`: how many a picture
    has, see `_fixed`; 0: new ones each time.
    """

    seed: int
    state_shapes: Mapping[str, tuple[int, ...]]
    flip: float = 0.5  # mirror the picture and its mask
    flip_reference: float = 0.0  # mirror a reference, each for itself
    hair_in_mask: float = 0.5  # hair counts as face
    other_picture: float = 0.5  # the reference is another picture of the person, where the record lists some
    standard_loss: float = 0.1
    face_dropout: float = 0.1
    text_dropout: float = 0.0
    faceless: Sequence[bool] | None = None  # by record, whether its own picture is no reference: others are, or none is
    buckets: Buckets | None = None
    draws_per_picture: int = 0

    def shapes(self, size: Size | None) -> Mapping[str, tuple[int, ...]]:
        """What is noised in a picture of `size`; None: the square."""
        if size is None:
            return self.state_shapes
        channels, height, width = self.state_shapes["img"]
        (base, _) = self.buckets.base
        return {**self.state_shapes, "img": (channels, height * size[1] // base, width * size[0] // base)}


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch, 0]).permutation(count)


def faces_in_batch(seed: int, first_sample: int, most: int) -> int:
    """How many references the samples of a step get, 1…most: the same for all, since their tokens are joined."""
    return int(np.random.default_rng([_FACES, seed, first_sample, 0]).integers(1, most + 1))


def draw(settings: DrawSettings, sample: int, faces: int, refs: Sequence[int], attempt: int = 0) -> Draw:
    """Draw sample number `sample`.

    Args:
        faces: how many references it gets.
        refs: for each record, how many other pictures of the person it lists; its length is the number of records.
        attempt: 0 takes the next picture of the epoch; 1, 2, … stand in another one for a picture that is broken.
    """
    rng = np.random.default_rng([_SAMPLE, settings.seed, sample, attempt])
    chances = rng.random(6)
    t = int(rng.integers(1, NUM_TIMESTEPS + 1))
    buckets = settings.buckets
    dealt, size = (None, None) if buckets is None else buckets[sample]
    shapes = settings.shapes(size)
    vae_noise = rng.standard_normal(shapes["img"], dtype=np.float32)
    noise = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
    if attempt:
        row = int(rng.integers(len(refs)) if buckets is None else rng.choice(buckets.rows))
    elif dealt is not None:
        row = dealt
    else:
        row = int(_order(settings.seed, sample // len(refs), len(refs))[sample % len(refs)])
    others = list(rng.permutation(int(refs[row])) + 1) if refs[row] else []
    faceless = settings.faceless is not None and bool(settings.faceless[row])
    pool = others if others and (faceless or chances[2] < settings.other_picture) else [0, *others]
    # Drawn last, so that all else is as it was before references had a flip of their own.
    flips = rng.random(faces) < settings.flip_reference
    shown = int(rng.integers(1, faces + 1))  # and these after them, in this order
    place = (0.0, 0.0) if size is None else tuple(rng.random(2).tolist())
    seed = int(rng.integers(2**62))
    drawn = Draw(
        row=row,
        flip=bool(chances[0] < settings.flip),
        hair=bool(chances[1] < settings.hair_in_mask),
        standard=bool(chances[3] < settings.standard_loss),
        drop_face=bool(chances[4] < settings.face_dropout) or (faceless and not others),
        drop_text=bool(chances[5] < settings.text_dropout),
        t=t,
        faces=tuple(int(pool[i % len(pool)]) for i in range(faces)),
        flips=tuple(flips.tolist()),
        shown=shown,
        size=size,
        place=place,
        seed=seed,
        vae_noise=vae_noise,
        noise=noise,
    )
    return _fixed(settings, drawn, sample // len(refs)) if settings.draws_per_picture else drawn


def _fixed(settings: DrawSettings, drawn: Draw, epoch: int) -> Draw:
    """`drawn`, but what the frozen backbone is asked is one of the few draws that its picture has.

    They take turns by the epoch, beginning with another one for each picture, so that an epoch has as many of each.
    Their timesteps are from as many equal spans, one each. Mask, references and dropped face are drawn anew each time.
    """
    count = settings.draws_per_picture
    number = (epoch + drawn.row) % count
    rng = np.random.default_rng([_FIXED, settings.seed, drawn.row, number])
    chances = rng.random(2)
    return replace(
        drawn,
        fixed=number,
        flip=bool(chances[0] < settings.flip),
        drop_text=bool(chances[1] < settings.text_dropout),
        t=1 + int(rng.integers(number * NUM_TIMESTEPS, (number + 1) * NUM_TIMESTEPS)) // count,
        vae_noise=rng.standard_normal(drawn.vae_noise.shape, dtype=np.float32),
        noise={name: rng.standard_normal(one.shape, dtype=np.float32) for name, one in drawn.noise.items()},
    )

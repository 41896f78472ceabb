"""Memory that a step needs: what cannot fit is refused before it is tried, and running out of it is said in words."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import ml_collections
import psutil
import torch

from feedface.common.errors import UserError
from feedface.training.run_record import bytes_text
from feedface.training.setup import Models

FEATURE_NUMBERS = 128  # of a face, at least: fewer do not tell people apart
ADVICE = (
    "use a smaller config.train.batch_size with more config.train.accumulation, "
    "config.train.gradient_checkpointing=True, or lower precision"
)


def check_batch(config: ml_collections.ConfigDict, models: Models, device: torch.device) -> None:
    """`UserError` when the batch cannot fit: noise and masks, pictures where they are read in each step, and what each
    block of the backbone keeps for the gradients. All of it is only a part of what is needed, so nothing that could run
    is refused."""
    backbone = models.trained.backbone
    channels, *latent = models.state_shapes["img"]
    cells = math.prod(latent)
    values = 3 * models.image_size**2 + 3 * models.trained.method.reference.crop_px**2 * config.data.max_faces
    if config.cache.enabled or config.cache.dir:
        # The latent's mean and deviation, and a few numbers or more of each face.
        values = 2 * channels * cells + FEATURE_NUMBERS * config.data.max_faces
    host = 4 * config.train.batch_size * (values + (2 * channels + 1) * cells)
    blocks = [site for site in backbone.sites.values() if site.kind == "block"]
    numbers = sum((site.start + math.prod(site.grid(latent))) * site.width for site in blocks)
    kept = config.train.batch_size * numbers * backbone.dtype.itemsize
    there = psutil.virtual_memory().available
    if device.type == "cuda":
        _refuse(config, kept, torch.cuda.mem_get_info(device)[1], device)
    else:
        host += kept
    _refuse(config, host, there, torch.device("cpu"))


def _refuse(config: ml_collections.ConfigDict, needed: int, there: int, device: torch.device) -> None:
    if needed > there:
        size, faces = config.train.batch_size, config.data.max_faces
        raise UserError(
            f"config.train.batch_size={size} with config.data.max_faces={faces} needs "
            f"{bytes_text(needed)} or more, but {device} has {bytes_text(there)}; {ADVICE}"
        )


@contextmanager
def out_of_memory_in_words(config: ml_collections.ConfigDict, device: torch.device) -> Iterator[None]:
    """`UserError` instead of the several kinds of running out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU torch has no class of its own for it.
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
            raise
        size = config.train.batch_size
        raise UserError(f"out of memory on {device} with {size} samples at a time; {ADVICE}") from None

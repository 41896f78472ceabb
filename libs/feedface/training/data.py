"""What a training run reads, from its config: records, pictures or features of them, labels, how they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import ml_collections
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from feedface.common.errors import UserError
from feedface.data.buckets import Buckets
from feedface.data.cache import CachedDataset, FeatureCache
from feedface.data.dataset import PictureDataset, PictureStore, check_broken
from feedface.data.draws import DrawSettings
from feedface.data.features import FrozenEncoders
from feedface.data.folders import folder_records
from feedface.data.labels import Labels
from feedface.data.record_table import RecordList, Records, open_records
from feedface.data.records import read_records
from feedface.methods.base import Features
from feedface.training.setup import Models


@dataclass
class Data:
    """Samples, and what stands in for what is dropped. `encoders` is None where the cache makes them needless.

    `labels` are what the method asks of records besides. `broken` are files that are known already not to be usable,
    with the reason. `zero_reference` are the features of a face of zeros, `empty_text` [1,T,Dt] the empty prompt.
    """

    dataset: Dataset
    encoders: FrozenEncoders | None
    labels: Labels | None
    zero_reference: Features
    empty_text: Tensor
    broken: dict[str, str] = field(default_factory=dict)


def cache_folder(config: ml_collections.ConfigDict, workdir: Path) -> Path | None:
    """Where features are kept; None where each step encodes its own pictures."""
    if config.cache.dir:
        return Path(config.cache.dir)
    return workdir / "features" if config.cache.enabled else None


def mirrored_kinds(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Kinds of cached features that training also wants of the mirrored picture."""
    chances = {"faces": config.data.flip_reference, "pictures": config.data.flip}
    return tuple(kind for kind, chance in chances.items() if chance > 0)


def build_data(config: ml_collections.ConfigDict, models: Models, accelerator: Accelerator, workdir: Path) -> Data:
    """Pictures, or cached features of them, filling the cache first; `UserError` with too many broken files."""
    folder = cache_folder(config, workdir)
    store = build_store(config, models, in_memory=folder is None and config.data.in_memory)
    settings = draw_settings(config, models, store, accelerator.num_processes)
    if settings.buckets and settings.buckets.left_out:
        accelerator.print(
            f"{settings.buckets.left_out} of {len(store.records)} pictures are left out: their aspect ratio is far "
            f"from all of config.data.buckets, or they are too small"
        )
    if folder is None:
        encoders = models.sources.load(accelerator.device)
        labels = build_labels(config, models, store)
        return Data(PictureDataset(store, settings), encoders, labels, encoders.zero_reference(), encoders.text([""]))
    cache = FeatureCache.open(
        folder,
        store,
        models.sources,
        mirrored=mirrored_kinds(config),
        device=accelerator.device,
        process=(accelerator.process_index, accelerator.num_processes),
        wait=accelerator.wait_for_everyone,
    )
    check_broken(cache.broken, config.data.max_broken)
    if cache.broken:
        files = ", ".join(list(cache.broken)[:5])
        accelerator.print(f"{len(cache.broken)} files cannot be used and are passed over: {files} …")
    dataset = CachedDataset(cache, store.records.refs, settings)
    device = accelerator.device
    zero = {name: value.to(device) for name, value in cache.zero_reference.items()}
    labels = build_labels(config, models, store)
    return Data(dataset, None, labels, zero, cache.empty_text.to(device), cache.broken)


def build_store(config: ml_collections.ConfigDict, models: Models, in_memory: bool = False) -> PictureStore:
    """The records' files at the sizes the models want; `in_memory` keeps what was made of them."""
    return PictureStore(
        _records(config.data.records),
        image_size=models.image_size,
        latent_size=models.state_shapes["img"][-1],
        reference=models.trained.method.reference,
        in_memory=in_memory,
        draft=config.data.get("draft", False),  # configs of before there was a choice do not say it
    )


def _records(paths: Sequence[str]) -> Records:
    """Of files, and of AdaFace's folders, in their order; with a folder among them all are held in memory."""
    if not any(Path(path).is_dir() for path in paths):
        return open_records(list(paths), faceless=True)
    found = []
    for path in map(Path, paths):
        found += folder_records(path) if path.is_dir() else read_records([path], faceless=True)
    return RecordList(found)


def build_labels(config: ml_collections.ConfigDict, models: Models, store: PictureStore) -> Labels | None:
    """What the method asks of the records; `UserError` where they have it not."""
    method = models.trained.method
    if method.labels is None:
        return None
    if config.data.get("buckets") and method.labels:
        raise UserError(
            f"config.data.buckets: cuts pictures otherwise than the labels that {method.kind} reads; leave it out"
        )
    grid = method.label_cells * models.state_shapes["img"][-1]
    return Labels(store.records, method.labels, grid, method.attributes, config.data.flip > 0)


def draw_settings(
    config: ml_collections.ConfigDict, models: Models, store: PictureStore, processes: int = 1
) -> DrawSettings:
    """The probabilities of the config, and how it deals pictures to this many processes."""
    buckets = None
    if config.data.get("buckets"):  # configs of before there were some do not say it
        step = config.train.batch_size * config.train.accumulation * processes
        buckets = Buckets(config.seed, store.records.sizes, step, models.image_size, models.size_multiple)
    return DrawSettings(
        seed=config.seed,
        state_shapes=models.state_shapes,
        flip=config.data.flip,
        flip_reference=config.data.flip_reference,
        hair_in_mask=config.data.hair_in_mask,
        other_picture=config.data.other_picture,
        standard_loss=config.loss.standard_share,
        face_dropout=config.loss.face_dropout,
        text_dropout=config.loss.text_dropout,
        faceless=store.records.faceless,
        buckets=buckets,
        draws_per_picture=config.cache.get("draws_per_picture", 0),  # nor this
    )

"""Training from features that the frozen encoders computed once, so that the encoders need no memory.

Exact: what `CachedDataset` returns is what `FrozenEncoders` gives for the same sample, to float rounding. The features
stay in their files (see `cache_build`) and are mapped: a set larger than memory works, at the speed of its disk.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedface.common.errors import UserError
from feedface.data.cache_build import SHARD_SIZE, agree, fill, plan
from feedface.data.cache_shards import FIXED, KINDS, Content, Items, Mirrored
from feedface.data.dataset import Batch, BrokenPicture, PictureStore, draw_usable
from feedface.data.draws import DrawSettings
from feedface.data.features import EncoderSources
from feedface.data.records import Record
from feedface.diffusion.batch import Draw, Draws, Encoded


class Shards:
    """Tensors of one kind of items, by name; `size` items in each shard but the last."""

    def __init__(self, tensors: Sequence[dict[str, Tensor]], size: int):
        self.tensors, self.size = tensors, size
        self.names = tuple(tensors[0])

    def take(self, name: str, items: Sequence[int], *within: Sequence[int]) -> Tensor:
        """Copy tensor `name` of `items` [B]; `within`: for each further dimension which index to take, [B] each."""
        size, tensors = self.size, self.tensors
        return torch.stack(
            [tensors[item // size][name][item % size, *at] for item, *at in zip(items, *within, strict=True)]
        )


class FeatureCache:
    """All features of a record set. N records.

    `pictures` (mean, std, other parts of the state, mask), `faces` (the method's features) and `captions` (text) are
    `Shards`, their shapes are in `cache_build`. `picture`, `caption` int64 [N] and `crops` int64 [N, 1 + most refs]
    index them; a crop is -1 where there is none or its picture is broken. `usable` bool [N] is False where picture or
    mask is broken. `broken`: these files, with the reason. `empty_text` [1,T,Dt] is the text features of "",
    `zero_reference` those of a face of zeros, by name. All on the CPU, in the dtype that the encoders answer in.
    """

    def __init__(self, contents: Sequence[Content], items: Items, records: Sequence[Record], shard_size: int):
        """`contents`: of all shards, by kind in the order of their numbers."""
        by_kind: dict[str, list[dict[str, Tensor]]] = {kind: [] for kind in (*KINDS, FIXED)}
        self.broken: dict[str, str] = {}
        for content in contents:
            by_kind[content.kind].append(content.tensors)
            self.broken |= content.broken
        (fixed,) = by_kind.pop(FIXED)
        self.empty_text = fixed["empty_text"]
        # Caches of before there were several methods have FeedFace's by another name.
        self.zero_reference = {name: fixed.get(name, fixed.get("zero_image_face")) for name in by_kind["faces"][0]}
        self.captions, self.faces, self.pictures = (Shards(by_kind[kind], shard_size) for kind in KINDS)
        self.picture, self.caption = items.picture, items.caption
        # By file, not by item: whether a broken picture still gives a face must not depend on what was encoded first.
        self.usable = np.array([not self.broken.keys() & {str(r.path), str(r.mask_path)} for r in records])
        whole = np.array([str(path) not in self.broken for path, _ in items.faces])
        self.crops = np.where((items.crops >= 0) & whole[items.crops], items.crops, -1)

    @classmethod
    def open(
        cls,
        folder: Path,
        store: PictureStore,
        sources: EncoderSources,
        mirrored: Mirrored,
        device: torch.device,
        process: tuple[int, int] = (0, 1),
        wait: Callable[[], None] = lambda: None,
        batch_size: int = 64,
        shard_size: int = SHARD_SIZE,
    ) -> "FeatureCache":
        """Encode what the cache in `folder` lacks, then map it.

        Args:
            mirrored: kinds, "faces" and "pictures", to have with a mirrored view; True: both.
            device: where the encoders work; they are loaded only if something is missing, and not kept.
            process: number of this process and count of all that open the cache together; each encodes its share.
            wait: returns once every process has called it.
            batch_size: pictures that are encoded at a time.
            shard_size: items in a file of a new cache.

        Raises:
            UserError: the cache was made with other encoders or sizes, the disk lacks room, nothing can be used.
        """
        if folder.exists() and not folder.is_dir():
            raise UserError(f"{folder}: is a file; name a folder as config.cache.dir")
        manifest = agree(folder, sources, store, mirrored, shard_size)
        items = Items(store.records)
        shards = plan(folder, manifest, items, store.records)
        fill(shards, manifest, store, sources, device, process, batch_size)
        wait()
        contents = [shard.read() for shard in shards]
        for shard, content in zip(shards, contents, strict=True):
            if content is None:  # another process failed, or a file changed meanwhile
                raise UserError(f"{shard.path}: is not complete; run again")
        cache = cls(contents, items, store.records, manifest["shard_size"])
        if not cache.usable.any():
            reason = next(iter(cache.broken.values()))
            raise UserError(f"none of the {len(store.records)} pictures of the records can be used: {reason}")
        return cache


class CachedDataset(Dataset):
    """The same samples as `PictureDataset`, out of a `FeatureCache`. Content: `Encoded`."""

    def __init__(self, cache: FeatureCache, refs: Sequence[int], settings: DrawSettings):
        self.cache, self.refs, self.settings = cache, refs, settings

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        """`items`: (sample number, faces); `faces` is the same for all."""
        drawn, crops = zip(
            *(draw_usable(self.settings, sample, faces, self.refs, self._crops_of) for sample, faces in items),
            strict=True,
        )
        cache, draws = self.cache, Draws.collate(drawn)
        rows = [d.row for d in drawn]
        pictures, views = cache.picture[rows].tolist(), [int(d.flip) for d in drawn]
        crops = np.stack(crops)  # [B,F]
        face_views = [int(flip) for d in drawn for flip in d.flips]
        mask = cache.pictures.take("mask", pictures, [int(d.hair) for d in drawn])[:, None]
        encoded = Encoded(
            mean=cache.pictures.take("mean", pictures, views),
            std=cache.pictures.take("std", pictures, views),
            others={name: cache.pictures.take(name, pictures, views) for name in draws.noise if name != "img"},
            text=cache.captions.take("text", cache.caption[rows].tolist()),
            features={
                name: cache.faces.take(name, crops.ravel().tolist(), face_views).unflatten(0, crops.shape)
                for name in cache.faces.names
            },
            mask=torch.where(draws.flip[:, None, None, None], mask.flip(-1), mask),
        )
        return Batch(draws, encoded)

    def _crops_of(self, drawn: Draw) -> np.ndarray:
        crops = self.cache.crops[drawn.row, list(drawn.faces)]
        if not self.cache.usable[drawn.row] or (crops < 0).any():
            raise BrokenPicture(f"record {drawn.row + 1}")
        return crops

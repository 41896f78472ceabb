"""Features of the frozen encoders, computed once for every picture, caption and face crop and kept in memory.

Exact: what `CachedDataset` returns is what `FrozenEncoders` gives for the same sample, to float rounding. With a
folder, features are also kept in one safetensors file there, named after a fingerprint of data and encoders.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from feedface.data.dataset import Batch, BrokenPicture, PictureStore, draw_usable
from feedface.data.draws import Draw, Draws, DrawSettings
from feedface.data.features import Features, FrozenEncoders
from feedface.encoders import to_tensor
from feedface.errors import UserError
from feedface.files import atomic_file

FORMAT = 1


class FeatureCache:
    """All features of a record set. N records, V views (1, or 2 with mirrored ones), M face crops, K captions.

    `mean`, `std` [N,V,C,h,w]; `clip_img` [N,V,1,Dc]; `mask` [N,2,h,w] without and with hair; `faces` [M,V,n,Df];
    `text` [K,T,Dt]; `caption` [N] indexes `text`; `crops` [N, 1 + most refs] indexes `faces`, -1 for none or broken;
    `usable` [N] is False where picture or mask is broken.
    """

    def __init__(self, tensors: dict[str, Tensor], broken: dict[str, str]):
        self.tensors, self.broken = tensors, broken

    @classmethod
    def open(
        cls, store: PictureStore, encoders: FrozenEncoders, mirrored: bool, folder: str = "", batch_size: int = 64
    ) -> "FeatureCache":
        """Read the cache from `folder` where it holds one for these data and encoders, else compute (and keep) it.

        `mirrored`: with the mirrored view of every picture and crop.
        """
        if not folder:
            return cls._compute(store, encoders, mirrored, batch_size)
        path = Path(folder) / f"features-{_fingerprint(store, encoders, mirrored)[:20]}.safetensors"
        if not path.exists():
            cache = cls._compute(store, encoders, mirrored, batch_size)
            with atomic_file(path) as temporary:
                save_file(cache.tensors, temporary, metadata={"broken": json.dumps(cache.broken)})
        with safe_open(path, framework="pt") as file:
            return cls({name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["broken"]))  # noqa: SIM118

    @classmethod
    def _compute(cls, store: PictureStore, encoders: FrozenEncoders, mirrored: bool, batch_size: int) -> "FeatureCache":
        records = store.records
        captions = list(dict.fromkeys(record.caption for record in records))
        caption_index = {caption: i for i, caption in enumerate(captions)}
        sources = [[store.crop_of(row, face) for face in range(1 + len(r.ref))] for row, r in enumerate(records)]
        crops = list(dict.fromkeys(source for row in sources for source in row))

        images, usable = _over(
            range(len(records)), lambda row: (to_tensor(store.image(row)), torch.from_numpy(store.masks(row))),
            lambda image, mask: (*_views(encoders.images, image, mirrored), mask), batch_size, "pictures",
        )  # fmt: skip
        faces, whole = _over(
            crops, lambda crop: (store.face(*crop, flip=False), *([store.face(*crop, flip=True)] if mirrored else [])),
            lambda *views: (torch.stack([encoders.faces(view).cpu() for view in views], 1),), batch_size, "faces",
        )  # fmt: skip
        text, _ = _over(captions, lambda c: (c,), lambda c: (encoders.text(c),), batch_size, "captions")
        number = {crop: i if ok else -1 for i, (crop, ok) in enumerate(zip(crops, whole.tolist(), strict=True))}
        table = np.full((len(records), max(map(len, sources))), -1, dtype=np.int64)
        for row, found in enumerate(sources):
            table[row, : len(found)] = [number[crop] for crop in found]
        mean, std, clip_img, mask = images
        tensors = {"mean": mean, "std": std, "clip_img": clip_img, "mask": mask, "faces": faces[0], "text": text[0]}
        tensors["caption"] = torch.tensor([caption_index[record.caption] for record in records])
        tensors |= {"crops": torch.from_numpy(table), "usable": usable}
        return cls(tensors, dict(store.broken))


class CachedDataset(Dataset):
    """The same samples as `PictureDataset`, out of a `FeatureCache`. Content: `Features`."""

    def __init__(self, cache: FeatureCache, refs: Sequence[int], settings: DrawSettings):
        self.cache, self.refs, self.settings = cache, refs, settings
        self._usable = cache.tensors["usable"].numpy()
        self._crops = cache.tensors["crops"].numpy()

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        """`items`: (sample number, faces); `faces` is the same for all."""
        drawn, crops = zip(
            *(draw_usable(self.settings, sample, faces, self.refs, self._crops_of) for sample, faces in items),
            strict=True,
        )
        draws = Draws.collate(drawn)
        all_, rows = self.cache.tensors, draws.rows
        view = draws.flip.long()
        mask = all_["mask"][rows, draws.hair.long()][:, None]
        features = Features(
            mean=all_["mean"][rows, view],
            std=all_["std"][rows, view],
            clip_img=all_["clip_img"][rows, view],
            text=all_["text"][all_["caption"][rows]],
            faces=all_["faces"][torch.from_numpy(np.stack(crops)), view[:, None]],
            mask=torch.where(draws.flip[:, None, None, None], mask.flip(-1), mask),
        )
        return Batch(draws, features)

    def _crops_of(self, drawn: Draw) -> np.ndarray:
        crops = self._crops[drawn.row, list(drawn.faces)]
        if not self._usable[drawn.row] or (crops < 0).any():
            raise BrokenPicture(f"record {drawn.row + 1}")
        return crops


def _views(encode: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, mirrored: bool) -> list[Tensor]:
    views = [encode(view) for view in ([images, images.flip(-1)] if mirrored else [images])]
    return [torch.stack([part.cpu() for part in parts], dim=1) for parts in zip(*views, strict=True)]


def _over(items: Sequence, load: Callable, encode: Callable, batch_size: int, what: str) -> tuple[list[Tensor], Tensor]:
    """`encode` all that `load` gives, in batches -> tensors with a row for each item (zeros where it is broken), and
    whether it is whole, bool [items]."""
    whole = torch.ones(len(items), dtype=torch.bool)
    out: list[Tensor] | None = None
    for start in tqdm(
        range(0, len(items), batch_size), desc=f"encoding {what}", mininterval=2, disable=len(items) < 500
    ):
        rows, loaded = [], []
        for i in range(start, min(start + batch_size, len(items))):
            try:
                loaded.append(load(items[i]))
                rows.append(i)
            except BrokenPicture:
                whole[i] = False
        if not rows:
            continue
        columns = zip(*loaded, strict=True)
        parts = encode(*(torch.stack(c) if isinstance(c[0], Tensor) else list(c) for c in columns))
        if out is None:
            out = [torch.zeros(len(items), *part.shape[1:], dtype=part.dtype) for part in parts]
        for whole_set, part in zip(out, parts, strict=True):
            whole_set[rows] = part.cpu()
    if out is None:
        raise UserError(f"none of the {len(items)} {what} of the records can be used; check the data")
    return out, whole


def _fingerprint(store: PictureStore, encoders: FrozenEncoders, mirrored: bool) -> str:
    digest = hashlib.sha256(f"{FORMAT} {store.image_size} {store.latent_size} {store.face_size} {mirrored}".encode())
    digest.update(encoders.fingerprint().encode())
    stamps: dict[Path, list] = {}  # the same pictures are references again and again
    for record in store.records:
        files = [record.path, record.mask_path, *(ref.path for ref in record.ref)]
        boxes = [record.square_bbox, *(ref.square_bbox for ref in record.ref)]
        for path in files:
            if path not in stamps:
                stamps[path] = _stamp(path)
        found = [stamps[path] for path in files]
        digest.update(json.dumps([record.caption, record.width, record.height, boxes, found]).encode())
    return digest.hexdigest()


def _stamp(path: Path) -> list:
    try:
        status = os.stat(path)
    except OSError:
        return [str(path)]
    return [str(path), status.st_size, status.st_mtime_ns]

"""Writing a feature cache: what the frozen encoders make of a record set, encoded once and kept in a folder.

    cache.json                   what it was made with: method, hashes of the encoders, precision, sizes, views, …
    pictures-00000.safetensors   mean, std [n,V,C,h,w]; what else is in the backbone's state, such as clip_img
                                 [n,V,1,Dc]; mask [n,2,h,w] without and with hair
    faces-00000.safetensors      the method's features of a face [n,V,…] by their names: of FeedFace, "faces"
    captions-00000.safetensors   text [n,T,Dt]
    fixed.safetensors            empty_text [1,T,Dt], and the method's features of a face of zeros

V is 2 where the kind has mirrored views (second), else 1; T tokens of a text. A shard holds `shard_size` items (the
last one fewer). Items are different from each other and numbered as they first appear in the records.

A shard's metadata has a digest of all that its features depend on: the above, and of its items paths, sizes and times
of the files, picture sizes, boxes, captions. A shard whose digest still fits is kept, every other one is encoded again.
So a build goes on where it was killed, and a changed picture costs its shards alone. Records that are appended cost new
shards and the last one of each kind; a record inserted or removed shifts all that follows, and costs all their shards.
"""

import copy
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from feedface.checkpoints.storage import read_json, write_json
from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.progress import progress
from feedface.common.tar_files import file_stamp
from feedface.data.cache_shards import FIXED, KINDS, MIRRORABLE, Content, Items, Mirrored, Shard, as_kinds
from feedface.data.dataset import BrokenPicture, PictureStore
from feedface.data.features import STATE_ENCODERS, EncoderSources, FrozenEncoders
from feedface.data.records import Record
from feedface.encoders import to_tensor

FORMAT = 2
# What manifests of before there were several methods do not say.
EARLIER = {"method": "feedface", "reference": ["crop", [0.5] * 3, [0.5] * 3]}
OPTIONAL = {*STATE_ENCODERS.values(), "face_encoder"}  # encoders that not every backbone or method takes
MANIFEST = "cache.json"
SHARD_SIZE = 1024  # items; 170 MB of pictures at 512 px in half precision
# A temporary file lives for the seconds that writing takes; an older one was left by a process that was killed.
LEFTOVER_S = 600
READERS = min(8, os.cpu_count() or 1)  # threads that decode pictures while the encoders work
BAR_FROM = 500  # items; fewer are done before a progress bar is of use


def agree(folder: Path, sources: EncoderSources, store: PictureStore, mirrored: Mirrored, shard_size: int) -> dict:
    """The manifest of the cache in `folder`, written now if there is none.

    A cache with more mirrored views, or more encoders' answers, also serves a run with fewer, once it is complete;
    shards keep the size they have. Raises `UserError`, naming what differs, for a cache made otherwise, and leaves that
    as it is.
    """
    kinds = as_kinds(mirrored)
    wanted = {
        "format": FORMAT,
        **sources.hashes(),
        "precision": sources.precision,
        "image_size": store.image_size,
        "latent_size": store.latent_size,
        "method": sources.method.kind,
        "reference": [store.reference.kind, list(store.reference.mean), list(store.reference.std)],
        "face_size": store.reference.size,
        "mirrored": list(kinds) if len(kinds) == 1 else bool(kinds),  # all or none as it was always written
        "shard_size": shard_size,
        **({"draft": True} if store.draft else {}),  # of before there was a choice: no
    }
    path = folder / MANIFEST
    if not path.exists() or not any(folder.glob("*.safetensors")):  # nothing to lose yet
        with atomic_file(path) as temporary:
            write_json(temporary, wanted)
        return wanted
    found = read_json(path)
    difference = _difference({**EARLIER, **found}, wanted)
    if difference:
        raise UserError(f"{folder}: was made {difference}; name another config.cache.dir, or delete this one")
    return found


def _difference(found: dict, wanted: dict) -> str:
    if found.get("draft", False) != wanted.get("draft", False):
        return f"{'with' if 'draft' in found else 'without'} config.data.draft"
    whole = type(found.get("shard_size")) is int and found["shard_size"] > 0
    whole &= isinstance(found.get("mirrored"), bool) or found.get("mirrored") in ([kind] for kind in MIRRORABLE)
    if not whole or found.get("format") != FORMAT:
        return "by another version of this program"
    differing = found.keys() ^ wanted.keys()
    if differing - OPTIONAL:
        return "by another version of this program"
    if wanted.keys() - found.keys():
        return "for another backbone or method"
    for key, value in wanted.items():
        if key == "shard_size" or found[key] == value:
            continue
        if key == "mirrored":
            missing = set(as_kinds(value)) - set(as_kinds(found[key]))
            if "pictures" in missing:
                return "without mirrored views, which config.data.flip needs"
            if missing:
                return "without mirrored faces, which config.data.flip_reference needs"
        elif isinstance(value, str) and key != "precision":
            return f"with another {key}"
        else:
            return f"with {key} {found[key]}, not {value}"
    return ""


def plan(folder: Path, manifest: dict, items: Items, records: Sequence[Record]) -> list[Shard]:
    """All files of a cache of these records, in the order of their numbers within each kind."""
    stamps: dict[Path, list] = {}  # the same pictures are references again and again

    def stamp(path: Path | None) -> list:
        if path is None:
            return []
        if path not in stamps:
            stamps[path] = [str(path), *file_stamp(path)]
        return stamps[path]

    pictures = [records[row] for row in items.pictures]
    keys_of = {
        "captions": (items.captions, items.captions),
        "faces": (items.faces, [[stamp(path), box] for path, box in items.faces]),
        "pictures": (items.pictures, [[stamp(r.path), stamp(r.mask_path), r.width, r.height] for r in pictures]),
    }
    size = manifest["shard_size"]
    made_with = {key: value for key, value in manifest.items() if key != "shard_size"}

    def digest(kind: str, keys: Sequence) -> str:
        # Masks were once read as photographs; what was made of them then may be wrong.
        how = [made_with, kind, *(["masks as stored"] if kind == "pictures" else [])]
        return hashlib.sha256(json.dumps([*how, keys], sort_keys=True).encode()).hexdigest()

    shards = [Shard(folder / f"{FIXED}.safetensors", FIXED, (), digest(FIXED, ()))]
    for kind in KINDS:
        all_, keys = keys_of[kind]
        for number, start in enumerate(range(0, len(all_), size)):
            part = slice(start, start + size)
            path = folder / f"{kind}-{number:05d}.safetensors"
            shards.append(Shard(path, kind, all_[part], digest(kind, keys[part])))
    return shards


def fill(
    shards: Sequence[Shard],
    manifest: dict,
    store: PictureStore,
    sources: EncoderSources,
    device: torch.device,
    process: tuple[int, int],
    batch_size: int,
) -> None:
    """Write those of `shards` that are missing and fall to this `process` (its number, their count).

    Encoders are loaded only if there are such, and not kept. Raises `UserError` if the disk cannot hold all that is
    missing, or the `manifest` names encoders that `sources` has not.
    """
    rank, count = process
    # By place, not by what is missing: other processes may write while this one looks.
    mine = [shard for shard in shards[rank::count] if shard.read() is None]
    if not mine:
        return
    folder = mine[0].path.parent
    if beside := (manifest.keys() & OPTIONAL) - sources.hashes().keys():
        raise UserError(
            f"{folder}: is not complete, and is also for a backbone with an {', '.join(sorted(beside))}; "
            f"complete it with that, or name another config.cache.dir"
        )
    for leftover in folder.glob(".tmp-*"):
        _remove_old(leftover)
    encoding = _Encoding(sources.load(device), store, manifest["mirrored"], batch_size)
    _check_disk(folder, shards, encoding.item_bytes())
    for kind in (FIXED, *KINDS):
        chosen = [shard for shard in mine if shard.kind == kind]
        total = sum(len(shard.items) for shard in chosen)
        silent = rank != 0 or total < BAR_FROM
        with progress(total=total, desc=f"encoding {kind}", unit="item", disable=silent) as bar:
            for shard in chosen:
                shard.write(encoding.encode(shard, bar.update))
    del encoding
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _remove_old(file: Path) -> None:
    try:
        if time.time() - file.stat().st_mtime > LEFTOVER_S:
            file.unlink()
    except FileNotFoundError:  # another process was faster
        pass


def _check_disk(folder: Path, shards: Sequence[Shard], item_bytes: dict[str, int]) -> None:
    """`UserError` unless the disk can hold what is missing, of all processes."""
    needed = 0
    for shard in shards:
        if shard.read() is None:
            there = shard.path.stat().st_size if shard.path.is_file() else 0  # makes room once replaced
            needed += len(shard.items) * item_bytes.get(shard.kind, 0) - there
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{folder}: the features need {needed / 1e9:.1f} GB more, but the disk has {free / 1e9:.1f} GB free; "
            f"name a config.cache.dir on another disk, or train without a cache"
        )


class _Encoding:
    """Items to tensors, with the encoders in memory."""

    def __init__(self, encoders: FrozenEncoders, store: PictureStore, mirrored: Mirrored, batch_size: int):
        self.encoders, self.store, self.batch_size = encoders, store, batch_size
        self.mirrored = as_kinds(mirrored)
        size, latent, face = store.image_size, store.latent_size, store.reference.crop_px
        blanks = {
            "pictures": (torch.zeros(3, size, size), torch.zeros(2, latent, latent)),
            "faces": (torch.zeros(3, face, face),),
            "captions": ("",),
        }
        # What becomes of one item: shapes and types for all of its kind, before any picture is opened.
        self.blanks = {
            kind: {name: value[0] for name, value in self._encode(kind, [blank]).items()}
            for kind, blank in blanks.items()
        }

    def item_bytes(self) -> dict[str, int]:
        """Bytes in the cache for an item of each kind."""
        return {kind: sum(value.nbytes for value in blank.values()) for kind, blank in self.blanks.items()}

    def encode(self, shard: Shard, progress: Callable[[int], object]) -> Content:
        """Encode a shard, reading the pictures of one batch while another is encoded; `progress` is told of items."""
        if shard.kind == FIXED:
            zeros = {name: value[0].clone() for name, value in self.blanks["faces"].items()}  # unmirrored
            return Content(FIXED, {"empty_text": self.blanks["captions"]["text"][None], **zeros}, {})
        # What another shard found broken must not count here: that one may be encoded again without this one.
        store = copy.copy(self.store)
        store.broken = {}
        count, size = len(shard.items), self.batch_size
        tensors = {
            name: torch.zeros(count, *value.shape, dtype=value.dtype) for name, value in self.blanks[shard.kind].items()
        }
        pool = ThreadPoolExecutor(READERS)

        def read(start: int) -> list[Future]:
            return [pool.submit(_load, store, shard.kind, item) for item in shard.items[start : start + size]]

        try:
            following = read(0)
            for start in range(0, count, size):
                current, following = following, read(start + size)
                rows, loaded = [], []
                for row, future in enumerate(current, start):
                    try:
                        loaded.append(future.result())
                        rows.append(row)
                    except BrokenPicture:
                        pass
                if rows:
                    for name, value in self._encode(shard.kind, loaded).items():
                        tensors[name][rows] = value
                progress(len(current))
        finally:
            pool.shutdown(cancel_futures=True)
        return Content(shard.kind, tensors, store.broken)

    def _encode(self, kind: str, loaded: Sequence[tuple]) -> dict[str, Tensor]:
        """What `_load` gave for b items -> tensors [b, ...] on the CPU."""
        columns = zip(*loaded, strict=True)
        if kind == "captions":
            return {"text": self.encoders.text(next(columns)).cpu()}
        pixels = torch.stack(next(columns))
        views = (pixels, pixels.flip(-1)) if kind in self.mirrored else (pixels,)
        if kind == "faces":
            return _stacked([self.encoders.references(view) for view in views])
        encoded = [self.encoders.images(view) for view in views]
        parts = _stacked([{"mean": mean, "std": std, **others} for mean, std, others in encoded])
        return {**parts, "mask": torch.stack(next(columns))}


def _stacked(views: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors [b,…] of each view, by name -> [b,V,…] on the CPU."""
    return {name: torch.stack([view[name].cpu() for view in views], dim=1) for name in views[0]}


def _load(store: PictureStore, kind: str, item) -> tuple:
    """What the encoders take of an item. Raises `BrokenPicture`."""
    if kind == "captions":
        return (item,)
    if kind == "faces":
        return (store.face(*item),)
    return to_tensor(store.image(item)), torch.from_numpy(store.masks(item))

"""Records as training samples: which picture comes when, read from disk, with broken files passed over and counted.

A dataset here is asked for `(sample number, faces)` pairs, see `draws`; `SampleOrder` hands them to a `DataLoader`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from feedface.common.errors import UserError
from feedface.common.images import read_image, read_reduced
from feedface.data.buckets import Size, covering, covering_box, covering_crop, offset_of
from feedface.data.draws import DrawSettings, draw, faces_in_batch
from feedface.data.kept import OnceMade
from feedface.data.masks import read_mask
from feedface.data.record_table import RecordList, Records
from feedface.data.records import Box, Record
from feedface.data.transforms import centre_crop, face_masks, face_masks_in
from feedface.diffusion.batch import Draw, Draws, Tensors
from feedface.encoders import preprocess_reference, to_tensor
from feedface.faces.crop import crop_square
from feedface.methods.base import ReferenceSpec

MAX_ATTEMPTS = 100
T = TypeVar("T")


class BrokenPicture(Exception):
    """A picture or mask file cannot be used; it is in `PictureStore.broken` with the reason."""


@dataclass(slots=True)
class Pixels(Tensors):
    """A batch before the encoders: RGB `image` [B,3,H,W] in [-1,1], face crops `references` [B,F,3,s,s].

    The crops are as the method's `ReferenceSpec` wants pixels. `mask` [B,1,h,w] in 0…1 is the face's share of each
    latent cell. Mirrored where the draw says so.
    """

    image: Tensor
    references: Tensor
    mask: Tensor
    captions: list[str]


@dataclass(slots=True)
class Batch(Tensors):
    """What a dataset returns; `broken` are files passed over so far, with the reason."""

    draws: Draws
    content: object
    broken: dict[str, str] = field(default_factory=dict)


class PictureStore:
    """Decodes the files of the records; `in_memory` keeps what it makes of them, for sets that fit.

    `reference`: how the method wants face crops. `draft`: JPEGs are decoded at 1/2, 1/4 or 1/8 where that is as fine as
    is needed, which is faster and not the same to the bit.
    """

    def __init__(
        self,
        records: Sequence[Record],
        image_size: int,
        latent_size: int,
        reference: ReferenceSpec,
        in_memory: bool,
        draft: bool = False,
    ):
        self.records = records if isinstance(records, Records) else RecordList(records)
        self.image_size, self.latent_size, self.reference = image_size, latent_size, reference
        self.draft = draft
        self.broken: dict[str, str] = {}
        self._kept: dict[str, OnceMade] = {}
        if in_memory:
            count, s = len(records), reference.crop_px
            crops = dict.fromkeys((one.path, one.square_bbox) for r in records for one in (r, *r.ref))
            self._crops = {crop: number for number, crop in enumerate(crops)}
            self._kept = {
                "image": OnceMade(count, (image_size, image_size, 3), np.uint8),
                "masks": OnceMade(count, (2, latent_size, latent_size), np.float32),
                "face": OnceMade(len(crops), (3, s, s), np.float32),
            }

    def image(self, row: int) -> np.ndarray:
        """The centre square of record `row`: uint8 RGB [S,S,3]."""

        def make() -> np.ndarray:
            record, size = self.records[row], self.image_size
            return centre_crop(self._picture(record, size / min(record.width, record.height)), size)

        return self._get("image", row, make)

    def masks(self, row: int) -> np.ndarray:
        """Face masks on the latent grid without and with hair, float32 [2,h,w], see `transforms.face_masks`."""
        return self._get("masks", row, lambda: self._masks(self.records[row]))

    def cut(self, row: int, size: Size, place: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
        """Picture and masks as `image` and `masks`, of another part than the centre square: see `Draw`."""
        record = self.records[row]
        of = record.width, record.height
        offset = offset_of(covering(size, of), size, place)
        picture = covering_crop(self._picture(record), size, offset)
        cell = self.image_size // self.latent_size
        grid = size[0] // cell, size[1] // cell
        if record.mask_path is None:
            return picture, np.ones((2, *grid[::-1]), np.float32)
        return picture, face_masks_in(self._mask(record), covering_box(of, size, offset), grid)

    def _get(self, what: str, number: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        return self._kept[what].get(number, make) if self._kept else make()

    def _masks(self, record: Record) -> np.ndarray:
        if record.mask_path is None:
            return np.ones((2, self.latent_size, self.latent_size), np.float32)
        return face_masks(self._mask(record), self.latent_size)

    def _mask(self, record: Record) -> np.ndarray:
        mask = self._read(record.mask_path, read_mask)
        if mask.shape != (record.height, record.width):
            found = f"{mask.shape[1]} x {mask.shape[0]}"
            self._give_up(record.mask_path, f"mask of {found} px for a picture of {record.width} x {record.height}")
        return mask

    def crop_of(self, row: int, face: int) -> tuple[Path, Box | None]:
        """Which picture and box reference `face` (0 own, i the i-th of `ref`) of record `row` is cut from."""
        record = self.records[row]
        source = record if face == 0 else record.ref[face - 1]
        return source.path, source.square_bbox

    def face(self, path: Path, box: Box | None) -> Tensor:
        """Face crop as the method takes it: float32 RGB [3,s,s]. Without a box the picture is one."""

        def make() -> np.ndarray:
            if box is None:
                return preprocess_reference(self.reference, self._read(path)).numpy()
            side = max(box[2] - box[0], box[3] - box[1])
            picture, times = self._read(path, self._reader(self.reference.crop_px / side))
            crop = crop_square(picture, [edge / times for edge in box])
            return preprocess_reference(self.reference, crop).numpy()

        return torch.from_numpy(self._get("face", self._crops[path, box] if self._kept else 0, make))

    def _picture(self, record: Record, factor: float = 1.0) -> np.ndarray:
        """At least `factor` times its size."""
        image, times = self._read(record.path, self._reader(factor))
        if image.shape[:2] != (-(-record.height // times), -(-record.width // times)):
            found = f"{image.shape[1] * times} x {image.shape[0] * times}"
            self._give_up(record.path, f"{found} px, but its record says {record.width} x {record.height}")
        return image

    def _reader(self, factor: float) -> Callable[[Path], tuple[np.ndarray, int]]:
        """Reads a picture, and how many times smaller than it is, see `read_reduced`."""
        return partial(read_reduced, factor=factor if self.draft else 1.0)

    def _read(self, path: Path, reader: Callable[[Path], T] = read_image) -> T:
        if str(path) in self.broken:
            raise BrokenPicture(path)
        try:
            return reader(path)
        except UserError as error:
            self._give_up(path, str(error))

    def _give_up(self, path: Path, reason: str) -> None:
        self.broken[str(path)] = reason
        raise BrokenPicture(path)


def draw_usable(
    settings: DrawSettings, sample: int, faces: int, refs: Sequence[int], load: Callable[[Draw], T]
) -> tuple[Draw, T]:
    """Draw a sample and load it; while `load` raises `BrokenPicture`, another picture stands in."""
    for attempt in range(MAX_ATTEMPTS):
        drawn = draw(settings, sample, faces, refs, attempt)
        try:
            return drawn, load(drawn)
        except BrokenPicture as error:
            last = error
    raise UserError(f"{MAX_ATTEMPTS} pictures in a row cannot be used, the last is {last}; check the data")


def check_broken(broken: dict[str, str], most: int) -> None:
    """`UserError` when more than `most` files cannot be used."""
    if len(broken) > most:
        path, reason = next(iter(broken.items()))
        reason = reason if path in reason else f"{path}: {reason}"
        raise UserError(
            f"{len(broken)} files cannot be used, more than data.max_broken={most}; the first: {reason}"
        ) from None


class PictureDataset(Dataset):
    """Samples read from the picture files, for training with the encoders in the loop."""

    def __init__(self, store: PictureStore, settings: DrawSettings):
        self.store, self.settings = store, settings
        self.refs = store.records.refs

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> Batch:
        """`items`: (sample number, faces); `faces` is the same for all. Content: `Pixels`."""
        drawn, loaded = zip(
            *(draw_usable(self.settings, sample, faces, self.refs, self._load) for sample, faces in items),
            strict=True,
        )
        image, references, mask = (torch.stack(parts) for parts in zip(*loaded, strict=True))
        captions = [self.store.records[d.row].caption for d in drawn]
        return Batch(Draws.collate(drawn), Pixels(image, references, mask, captions), dict(self.store.broken))

    def _load(self, drawn: Draw) -> tuple[Tensor, Tensor, Tensor]:
        if drawn.size is None:
            image, masks = self.store.image(drawn.row), self.store.masks(drawn.row)
        else:
            image, masks = self.store.cut(drawn.row, drawn.size, drawn.place)
        image, mask = to_tensor(image), torch.from_numpy(masks[int(drawn.hair)])[None]
        faces = [self.store.face(*self.store.crop_of(drawn.row, face)) for face in drawn.faces]
        faces = torch.stack([face.flip(-1) if flip else face for face, flip in zip(faces, drawn.flips, strict=True)])
        return (image.flip(-1), faces, mask.flip(-1)) if drawn.flip else (image, faces, mask)


class SampleOrder(Sampler[list[tuple[int, int]]]):
    """Batch sampler of one process: which samples its micro-batches of steps `first_step`… hold.

    A step takes `processes * accumulation * batch_size` samples in a row, from `first_sample` on; every process takes
    its own part of each micro-batch, so together they see each sample once.
    """

    def __init__(
        self,
        seed: int,
        first_sample: int,
        steps: int,
        batch_size: int,
        accumulation: int = 1,
        processes: int = 1,
        rank: int = 0,
        max_faces: int = 1,
    ):
        self.seed, self.first_sample, self.steps, self.batch_size = seed, first_sample, steps, batch_size
        self.accumulation, self.processes, self.rank, self.max_faces = accumulation, processes, rank, max_faces

    @property
    def step_size(self) -> int:
        """Samples in one step of all processes."""
        return self.processes * self.accumulation * self.batch_size

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.steps):
            begin = self.first_sample + step * self.step_size
            faces = faces_in_batch(self.seed, begin, self.max_faces)
            for micro in range(self.accumulation):
                start = begin + (micro * self.processes + self.rank) * self.batch_size
                yield [(sample, faces) for sample in range(start, start + self.batch_size)]

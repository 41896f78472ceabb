"""What a feature cache consists of: the items that are encoded, and the files they are in; see `cache_build`."""

import json
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedface.common.errors import UserError
from feedface.common.files import atomic_file
from feedface.common.reading import check_file, foreign
from feedface.common.validation import parse_line_as
from feedface.data.records import Record

KINDS = ("captions", "faces", "pictures")
MIRRORABLE = ("faces", "pictures")  # kinds
FIXED = "fixed"  # the file of what does not depend on the records

Mirrored = bool | Sequence[str]  # kinds that have a mirrored view; True: all of `MIRRORABLE`, False: none


class Items:
    """What is to be encoded of the records, each once, and where it is used. N records.

    `pictures` are numbers of records, one for each different picture and mask; `faces` are (path, box);
    `captions` are texts. `picture`, `caption` int64 [N] and `crops` int64 [N, 1 + most refs] (own face first; -1 where
    there is none) index these lists.
    """

    def __init__(self, records: Sequence[Record]):
        _, self.picture = _number((r.path, r.mask_path, r.width, r.height) for r in records)
        self.pictures: list[int] = np.unique(self.picture, return_index=True)[1].tolist()
        self.captions, self.caption = _number(record.caption for record in records)
        self.faces, crops = _number((source.path, source.square_bbox) for r in records for source in (r, *r.ref))
        counts = [1 + len(record.ref) for record in records]
        self.crops = np.full((len(records), max(counts)), -1, dtype=np.int64)
        self.crops[np.arange(max(counts)) < np.array(counts)[:, None]] = crops


def _number(values: Iterable[Hashable]) -> tuple[list, np.ndarray]:
    """Different values as they first appear, and for each of `values` its place among them."""
    numbers: dict[Hashable, int] = {}
    places = [numbers.setdefault(value, len(numbers)) for value in values]
    return list(numbers), np.array(places)


def as_kinds(mirrored: Mirrored) -> tuple[str, ...]:
    if isinstance(mirrored, bool):
        return MIRRORABLE if mirrored else ()
    return tuple(sorted(mirrored))


_BROKEN = TypeAdapter(dict[str, str])


@dataclass(frozen=True, slots=True)
class Content:
    """What a shard holds: tensors with a row for each item, zeros where it is of a broken file; these, and why."""

    kind: str
    tensors: dict[str, Tensor]
    broken: dict[str, str]


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of the cache, with `items` of one of `KINDS`, or `FIXED` without items."""

    path: Path
    kind: str
    items: Sequence
    digest: str

    def read(self) -> Content | None:
        """What is in the file, mapped and not yet read; None where it is missing, damaged, or of something else.

        The tensors outlive the file: one that replaces it does not change them.
        """
        try:
            check_file(self.path)
            with foreign(self.path), safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("digest") != self.digest:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            broken = parse_line_as(metadata.get("broken", ""), _BROKEN, f"{self.path}:1")
        except UserError:
            return None
        return Content(self.kind, tensors, broken)

    def write(self, content: Content) -> None:
        """Put the file there, whole. Raises `UserError` where the disk is full."""
        metadata = {"digest": self.digest, "broken": json.dumps(content.broken)}
        with atomic_file(self.path) as temporary:
            try:
                save_file(content.tensors, temporary, metadata)
            except SafetensorError as error:
                raise UserError(f"{self.path}: cannot be written: {error}") from None

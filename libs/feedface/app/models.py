"""The models that the page can draw with: found in a folder, loaded when they are first used, kept in memory."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedface.checkpoints.bundle import read_index
from feedface.checkpoints.index import INDEX
from feedface.common.errors import UserError
from feedface.common.places import default_model

if TYPE_CHECKING:
    from feedface.pipeline import FeedFacePipeline

NAMES = {"feedface": "FeedFace", "flashface": "FlashFace", "adaface": "AdaFace", "denseface": "Dense-Face"}


class Models:
    """Model folders by the name that the page shows.

    Args:
        first: the model that is chosen at first; None: the first of those beside `models/mini`.
        options: of `FeedFacePipeline.from_pretrained`, for all of them.
        keep: how many stay in memory; the one used longest ago makes room.
    """

    def __init__(self, first: Path | None = None, options: Mapping[str, Any] | None = None, keep: int = 2):
        self._options, self._keep = dict(options or {}), keep
        self._loaded: OrderedDict[str, FeedFacePipeline] = OrderedDict()
        self._lock = threading.Lock()
        beside = [default_model(), *sorted(index.parent for index in default_model().parent.glob(f"*/{INDEX}"))]
        self.folders: dict[str, Path] = {}
        for folder in dict.fromkeys([*([first] if first else []), *beside]):
            if folder == first or (folder / INDEX).is_file():
                self._add(folder, must=folder == first)
        if not self.folders:
            raise UserError(f"{default_model().parent}: holds no model; name one with --model (models/README.md)")

    def _add(self, folder: Path, must: bool) -> None:
        try:
            # The authors' files have no index, and one method.
            kind = read_index(folder).kinds.get("method") if (folder / INDEX).is_file() else "feedface"
        except UserError:
            if must:
                raise
            return
        if kind is None and not must:
            return  # shows nobody
        name = f"{NAMES.get(kind, kind)} ({folder.name})" if kind else folder.name
        self.folders[name if name not in self.folders else f"{name[:-1]}, {folder.parent})"] = folder

    @property
    def names(self) -> list[str]:
        return list(self.folders)

    def load(self, name: str) -> FeedFacePipeline:
        """The model of that name. `UserError` for one that cannot be loaded."""
        if name not in self.folders:
            raise UserError(f"no model is called {name!r}; there are {', '.join(self.folders)}")
        with self._lock:
            if name not in self._loaded:
                from feedface.pipeline import FeedFacePipeline

                while len(self._loaded) >= self._keep:
                    self._loaded.popitem(last=False)
                self._loaded[name] = FeedFacePipeline.from_pretrained(self.folders[name], **self._options)
            self._loaded.move_to_end(name)
            return self._loaded[name]

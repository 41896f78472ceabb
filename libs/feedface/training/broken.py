"""Files of the records that cannot be used: collected over all processes, listed in WORKDIR/broken.json, and capped."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from feedface.common.files import atomic_file
from feedface.data.dataset import check_broken


class BrokenFiles:
    """`files` are those that all processes know of, with the reason; `path` lists them.

    Args:
        most: more of them than this stop the run.
    """

    def __init__(self, accelerator: Accelerator, workdir: Path, most: int):
        self.accelerator, self.path, self.most = accelerator, workdir / "broken.json", most
        self.files: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def note(self, broken: Mapping[str, str]) -> None:
        """Remember what this process met."""
        self._new |= {file: reason for file, reason in broken.items() if file not in self.files}

    def share(self) -> None:
        """Tell the other processes, and list all. Collective. `UserError`, in all alike, when there are too many."""
        accelerator, count = self.accelerator, len(self._new)
        if accelerator.num_processes > 1:
            count = int(accelerator.reduce(torch.tensor(count, device=accelerator.device), reduction="sum"))
        if not count:
            return
        self.files |= dict(gather_object(list(self._new.items())))
        self._new = {}
        if accelerator.is_main_process:
            with atomic_file(self.path) as temporary:
                temporary.write_text(json.dumps(self.files, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        check_broken(self.files, self.most)

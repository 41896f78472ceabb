"""What the frozen backbone predicts, made once and kept, where each picture has only a few draws (`data.draws`).

Made when training first asks, rather than ahead: that needs no pass of its own and no plan of who makes what, and a
short run makes only what it sees. One file in the cache's folder has a place for every draw of every record:

    tag [16]        keyed hash of the prediction; the key is a hash of what the backbone was given, and of its weights
    pred [C,h,w]    noise, float16

A prediction counts where its tag fits. What a kill or a power cut left half written, what is damaged, what two
processes wrote at once, what was made of another caption or picture or by another backbone is made anew. So there is
nothing to lock, to order, or to compare beforehand.

Predictions are rounded to float16 before their first use too: else a run that goes on, and reads what was made before
it was stopped, would not be the same to the bit.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from feedface.common.files import make_folder
from feedface.data.draws import DrawSettings
from feedface.diffusion.batch import Draws, Encoded
from feedface.diffusion.objective import noised, replaced
from feedface.diffusion.state import take
from feedface.training.controlled import ControlledBackbone
from feedface.training.run_record import check_disk

TAG_BYTES = 16


class FrozenPredictions:
    """Predictions of `model` without a face, for `records` records as `settings` draws them.

    `empty_text` [1,T,Dt] stands in for a dropped text. Raises `UserError` where the disk of `folder` lacks room.
    """

    def __init__(
        self, folder: Path, settings: DrawSettings, records: int, model: ControlledBackbone, empty_text: Tensor
    ):
        self.model, self.device, self.empty_text = model, empty_text.device, empty_text.cpu()
        self.count, self.shape = settings.draws_per_picture, settings.state_shapes["img"]
        self.size = prediction_bytes(self.shape)
        self.weights = weights_digest(model)
        # Runs that would overwrite each other's predictions, at every step, have a file each.
        run = hashlib.blake2b(json.dumps([settings.seed, self.count]).encode() + self.weights, digest_size=6)
        path = folder / f"frozen-{run.hexdigest()}.bin"
        there = getattr(path.stat(), "st_blocks", 0) * 512 if path.exists() else 0  # it may have holes
        check_disk(
            folder, max(0, records * self.count * self.size - there), "keeping the frozen backbone's predictions"
        )
        make_folder(folder)
        path.touch()
        # Not mapped: a disk that is full after all would kill the process without a word.
        self.file = open(path, "r+b", buffering=0)  # noqa: SIM115

    @torch.no_grad()
    def __call__(self, draws: Draws, batch: Encoded) -> Tensor:
        """Of a batch as it comes from the cache, on the CPU: float16 [B,C,h,w], zeros for the standard loss.

        Asks the model itself, not what wraps it for several processes: they need not all ask at the same step.
        """
        state, _ = noised(draws, batch)
        state |= {"text": replaced(batch.text, draws.drop_text, self.empty_text)}
        frozen = torch.zeros(len(draws.t), *self.shape, dtype=torch.float16)
        keys, missing = {}, []
        for row in (~draws.standard).nonzero()[:, 0].tolist():
            keys[row] = self._key(int(draws.t[row]), take(state, row))
            found = self._read(self._place(draws, row), keys[row])
            if found is None:
                missing.append(row)
            else:
                frozen[row] = found
        if missing:
            given = {name: value.to(self.device) for name, value in take(state, missing).items()}
            prompt = {"text": given.pop("text")}
            pred = self.model.forward(given, draws.t[missing].to(self.device), prompt)["img"]
            frozen[missing] = pred.half().cpu()
            for row in missing:
                self._write(self._place(draws, row), keys[row], frozen[row])
        return frozen.pin_memory() if self.device.type == "cuda" else frozen

    def _place(self, draws: Draws, row: int) -> int:
        return (int(draws.rows[row]) * self.count + int(draws.fixed[row])) * self.size

    def _key(self, t: int, given: dict[str, Tensor]) -> bytes:
        key = hashlib.blake2b(self.weights, digest_size=32)
        key.update(t.to_bytes(2, "little"))
        for name, value in given.items():
            key.update(f"{name} {value.dtype}".encode())
            key.update(_bytes(value))
        return key.digest()

    def _read(self, place: int, key: bytes) -> Tensor | None:
        self.file.seek(place)
        found = self.file.read(self.size)
        if len(found) < self.size or found[:TAG_BYTES] != _tag(found[TAG_BYTES:], key):
            return None
        return torch.frombuffer(bytearray(found), dtype=torch.float16, offset=TAG_BYTES).reshape(self.shape)

    def _write(self, place: int, key: bytes, pred: Tensor) -> None:
        content = _bytes(pred)
        self.file.seek(place)
        self.file.write(_tag(content, key) + content)


def prediction_bytes(shape: Sequence[int]) -> int:
    """What one of `shape` takes on the disk."""
    return TAG_BYTES + 2 * math.prod(shape)


def weights_digest(model: ControlledBackbone) -> bytes:
    """Of all that the answer of a frozen backbone depends on besides what it is given. A second for 1 GB."""
    backbone = model.backbone
    told = [backbone.kind, backbone.config, model.constants, str(model.dtype)]
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=32)
    for name, value in sorted(backbone.state_dict().items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(_bytes(value))
    return digest.digest()


def _tag(content: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(content, key=key, digest_size=TAG_BYTES).digest()


def _bytes(value: Tensor) -> bytes:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

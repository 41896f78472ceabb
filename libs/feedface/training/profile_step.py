"""What a step takes, measured on one real batch before a run starts: seconds and memory. No weight is changed."""

import gc
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import ml_collections
import torch
from accelerate import Accelerator

from feedface.data.dataset import PictureDataset, PictureStore
from feedface.diffusion.batch import Encoded
from feedface.inference.acceleration import compile_blocks
from feedface.training.data import draw_settings
from feedface.training.memory import out_of_memory_in_words
from feedface.training.setup import Models

POLL_S = 0.005


@dataclass
class StepProfile:
    """Of one batch of one process. Seconds: `read_s` to read its pictures in one thread, `encode_s` to encode them,
    `step_s` for the loss and its gradients. `peak` is the most memory in bytes at that, the encoders included where
    training keeps them; what the optimizer adds is not in it. `item_bytes`: of the features of one item by its kind,
    one view of it where there may be two."""

    read_s: float
    encode_s: float
    step_s: float
    peak: int
    item_bytes: dict[str, int]


def profile_step(
    config: ml_collections.ConfigDict, models: Models, store: PictureStore, accelerator: Accelerator, cached: bool
) -> StepProfile:
    """Read, encode and train on the run's first batch; `cached` frees the encoders in between, as a cached run does.

    What is timed runs twice and the second time counts: the first one also loads kernels, or compiles. Raises
    `UserError` when memory does not suffice.
    """
    size, device = config.train.batch_size, accelerator.device
    with out_of_memory_in_words(config, device):
        dataset = PictureDataset(store, draw_settings(config, models, store))
        # With the most references that a step may have, since memory must suffice for that.
        read_s, batch = _timed(lambda: dataset.__getitems__([(n, config.data.max_faces) for n in range(size)]), device)
        encoders = models.sources.load(device)
        for _ in range(2):
            encode_s, encoded = _timed(lambda: encoders(batch.content), device)
        objective = models.trained.method.objective(config, encoders.zero_reference(), encoders.text([""]))
        if cached:
            encoders = None
            gc.collect()

        if config.train.compile:
            compile_blocks(models.trained)
        # As in training, but without what ties several processes together: only this one is here.
        model = accelerator.prepare_model(models.trained, evaluation_mode=True)
        trained = models.trained.trained().values()
        with PeakMemory(device) as memory:
            for _ in range(2):
                if config.train.accumulation == 1:  # else gradients of the micro-batch before are still there
                    _clear(trained)
                step_s, _ = _timed(lambda: objective(model, batch.draws, encoded).loss.backward(), device)
        _clear(trained)
    return StepProfile(read_s, encode_s, step_s, memory.peak, _item_bytes(encoded))


class PeakMemory:
    """Inside the `with`, watches memory; then `peak` is the most there was, in bytes: allocated on a CUDA device, else
    of this process."""

    def __init__(self, device: torch.device):
        self.device, self.peak = device, 0

    def __enter__(self) -> "PeakMemory":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            self._done = threading.Event()
            self._watcher = threading.Thread(target=self._watch, daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, *_) -> None:
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            self._done.set()
            self._watcher.join()

    def _watch(self) -> None:
        # The system's own peak counter is of the whole life of the process, so also of the encoders at work.
        import psutil

        process = psutil.Process()
        while True:
            self.peak = max(self.peak, process.memory_info().rss)
            if self._done.wait(POLL_S):
                return


def _timed(work, device: torch.device) -> tuple[float, object]:
    """Seconds that `work()` takes on the device, and what it returns."""
    begin = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin, result


def _clear(parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _item_bytes(encoded: Encoded) -> dict[str, int]:
    pictures = (encoded.mean, encoded.std, *encoded.others.values())
    return {
        "pictures": sum(value[0].nbytes for value in pictures),
        "masks": 2 * encoded.mask[0].nbytes,  # without and with hair
        "faces": sum(value[0, 0].nbytes for value in encoded.features.values()),
        "captions": encoded.text[0].nbytes,
    }

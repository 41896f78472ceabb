"""What was made of pictures, kept in memory: once, however many processes read pictures."""

import math
import mmap
import multiprocessing
from collections.abc import Callable, Sequence

import numpy as np
import psutil

from feedface.common.errors import UserError


class OnceMade:
    """`count` arrays of one shape and type, each made when it is first asked for.

    Processes that are forked from this one, as a `DataLoader`'s workers are on Linux, see what any of them made. Where
    workers are started afresh (macOS, Windows) each gets a copy. `UserError` when memory cannot hold them all.
    """

    def __init__(self, count: int, shape: Sequence[int], dtype: type):
        self._values = _shared((count, *shape), dtype)
        self._made = _shared((count,), np.bool_)
        # Processors may see the flag before the values, but for a lock.
        self._lock = multiprocessing.Lock()

    def get(self, index: int, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Array number `index`, not to be written to; what `make` returns the first time. Its errors pass."""
        with self._lock:
            made = self._made[index]
        if not made:
            self._values[index] = make()  # another process may do the same meanwhile: it writes the same
            with self._lock:
                self._made[index] = True
        return self._values[index]


def _shared(shape: Sequence[int], dtype: type) -> np.ndarray:
    """Zeros that forked processes share; memory is taken as they are written."""
    size, there = math.prod(shape) * np.dtype(dtype).itemsize, psutil.virtual_memory().total
    if size > there:
        raise UserError(
            f"config.data.in_memory: the pictures take {size / 1e9:.1f} GB, but the machine has {there / 1e9:.1f}; "
            f"switch it off"
        )
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)

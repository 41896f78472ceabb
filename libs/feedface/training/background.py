"""Work beside training, such as writing a checkpoint while the next steps are done."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Background:
    """One piece of work at a time: the next waits for the one before. Its error is raised by whatever asks next.

    `apart`: in a thread of its own; else `do` does it.
    """

    def __init__(self, apart: bool):
        self._thread = ThreadPoolExecutor(1) if apart else None
        self._pending: Future | None = None

    def do(self, work: Callable[[], object]) -> None:
        self.wait()
        if self._thread is None:
            work()
        else:
            self._pending = self._thread.submit(work)

    def check(self) -> None:
        """Raise the error of work that has ended with one."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until nothing is under way."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

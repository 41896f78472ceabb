"""The processes of one run. Alone, nothing is set up; launched with others they share work by index and wait here."""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from feedface.common.errors import UserError

Value = TypeVar("Value")
PATIENCE = timedelta(days=7)  # the pictures of one process may take that much longer than those of another


class ProcessGroup:
    """`count` processes, of which this is number `index`; `local_index` and `local_count` are those of this machine.

    A `UserError` or `OSError` of one process ends all of them; only one says it.
    """

    def __init__(self):
        self.index, self.count, self.local_index, self.local_count = 0, 1, 0, 1
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            self._join()

    @property
    def leads(self) -> bool:
        return self.index == 0

    def lead(self, work: Callable[[], Value]) -> Value:
        """Do `work` on process 0; all get what it returns (plain data) and wait until then."""
        return self._shared([_attempt(work)] if self.leads else [None])

    def all(self, work: Callable[[], Value]) -> list[Value]:
        """Do `work` on every process; each gets what all of them returned (plain data)."""
        mine = _attempt(work)
        if self.count == 1:
            return [self._value(mine)]
        import torch.distributed

        answers: list = [None] * self.count
        with _plain_signals():
            torch.distributed.all_gather_object(answers, mine)
        return [self._value(answer) for answer in sorted(answers, key=lambda answer: answer[1] is None)]

    def each(self, work: Callable[[], Value]) -> Value:
        """Do `work` on every process; each keeps what its own returned (anything)."""
        kept: list[Value] = []
        self.all(lambda: kept.append(work()))
        return kept[0]

    def close(self) -> None:
        """Part in an orderly way, after everything is done."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()

    def _shared(self, answer: list) -> Value:
        if self.count > 1:
            import torch.distributed

            with _plain_signals():
                torch.distributed.broadcast_object_list(answer, src=0)
        return self._value(answer[0])

    def _value(self, answer: tuple):
        value, problem = answer
        if problem is None:
            return value
        if self.leads:
            raise UserError(problem)
        sys.exit(2)  # process 0 says it

    def _join(self) -> None:
        # gloo: what is shared lies in main memory, whatever the models run on.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        from accelerate import PartialState

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = PartialState(cpu=True, timeout=PATIENCE)
        self.index, self.count = state.process_index, state.num_processes
        self.local_index = state.local_process_index
        self.local_count = int(os.environ.get("LOCAL_WORLD_SIZE", self.count))


def _attempt(work: Callable[[], Value]) -> tuple[Value | None, str | None]:
    try:
        return work(), None
    except UserError as error:
        return None, str(error)
    except OSError as error:
        return None, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"


@contextmanager
def _plain_signals() -> Iterator[None]:
    """Waiting for others happens outside Python, where a handler of ours would never run."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

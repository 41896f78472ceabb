"""Work in a thread of its own that tells how far it is, and stops when it is told to."""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any


class Stopped(Exception):
    """Somebody does not want the rest any more."""


def events(work: Callable[[Callable[[Any], None]], object], stop: threading.Event) -> Iterator[Any]:
    """What `work(emit)` emits, as it comes. Its exceptions are raised here, but for `Stopped`, which ends it.

    `emit` raises `Stopped` once `stop` is set; leaving the iteration early sets it and waits for the work to end.
    """
    waiting: SimpleQueue[tuple[str, Any]] = SimpleQueue()

    def emit(event: Any) -> None:
        if stop.is_set():
            raise Stopped
        waiting.put(("event", event))

    def run() -> None:
        try:
            work(emit)
        except Stopped:
            waiting.put(("end", None))
        except BaseException as error:
            waiting.put(("error", error))
        else:
            waiting.put(("end", None))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = waiting.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stop.set()
        thread.join()

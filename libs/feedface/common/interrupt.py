"""SIGTERM and Ctrl-C as a wish to stop after the current step."""

import signal


class Interrupt:
    """Inside the `with`, `signal` is 0 until SIGTERM or SIGINT arrives; a second one ends the process at once."""

    def __init__(self):
        self.signal = 0

    def __enter__(self) -> "Interrupt":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number


def leave_to_parent(_worker: int) -> None:
    """For data workers: Ctrl-C reaches the whole process group, but only the training process acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

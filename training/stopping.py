"""End a training on Ctrl-C or SIGTERM after its step, once a checkpoint is saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A training that ended because of a signal; its text says how to go on."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number


class StopSignals:
    """Note SIGINT and SIGTERM within a ``with`` block; a second Ctrl-C interrupts at once.

    Python allows signal handlers in the main thread only: elsewhere nothing is noted.
    """

    def __init__(self) -> None:
        self.received = 0  # number of the signal; 0 for none
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # torchrun answers Ctrl-C with a SIGTERM of its own: only two of the same kind are a hurry.
        if number == self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

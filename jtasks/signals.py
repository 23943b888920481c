"""SIGTERM and SIGINT ask the loop to save and end; a second one ends at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any


class Stopped(Exception):  # noqa: N818 - not an error: the state is saved, and the same command goes on
    """The run was asked to stop and has saved its state; exit code 75."""


class Stop:
    """While entered, notes the first SIGTERM or SIGINT; the next one kills the process as if never caught."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stop":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses handlers
            self._previous = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.requested = signal.Signals(number)

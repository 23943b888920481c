"""SIGTERM, SIGINT and SIGHUP ask the loop to save and end with exit code 75; a second one ends it at once."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from jtasks.distributed import processes
from jtasks.errors import EXIT_STOPPED, printable

GRACE_SECONDS = 5.0


class Stopped(Exception):  # noqa: N818 - not an error: the state is saved, and the same command goes on
    """The run was asked to stop and has saved its state."""


class Stop:
    """While entered, notes a SIGTERM, SIGINT or SIGHUP, for the loop to see between steps.

    The loop may be long away: compiling, or waiting for data. Python runs signal handlers in the main
    thread and only once that is back from compiled code, so another thread listens as well. If the loop
    does not answer within the grace time and what it is doing may be left (`rescue`), that thread saves
    in its place and ends the process.

    In a run of several processes a signal to any of them must stop all after the same step: each passes it on to
    the first, which tells all between two batches, and which alone rescues. Where another program has started the
    processes, JAX has SIGTERM, and its preemption service finds a step that none has passed yet.
    """

    def __init__(self) -> None:
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as under nohup
        self.numbers = (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))
        self.requested: signal.Signals | None = None  # what all processes have agreed on
        self._noted = 0
        self._rescue: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._claimed = False
        self._asked = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}
        self._sockets: tuple[socket.socket, ...] = ()
        self._wakeup = -1

    def should_stop(self, step: int = 0) -> bool:
        """Whether to stop now; all processes of a run call it after the same batches, or after the same `step`."""
        if processes.unlinked():
            from jax.experimental import multihost_utils

            if step and multihost_utils.reached_preemption_sync_point(step):
                self.requested = signal.SIGTERM
        elif self.requested is None and (number := processes.broadcast_from_first(lambda: self._noted)):
            self.requested = signal.Signals(number)
        return self.requested is not None

    def __enter__(self) -> "Stop":
        if processes.unlinked():
            for number in self.numbers[1:]:
                self._previous[number] = signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        processes.heed(self._ask)
        if threading.current_thread() is not threading.main_thread():  # elsewhere Python refuses handlers
            return self
        reader, writer = self._sockets = socket.socketpair()
        writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, self._note) for number in self.numbers}
        threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._sockets:
            signal.set_wakeup_fd(self._wakeup)
            self._sockets[1].close()  # the listener reads the end and returns

    @contextlib.contextmanager
    def rescue(self, save: Callable[[], None]) -> Iterator[None]:
        """While inside, the process may be ended from outside the main thread, after calling `save`."""
        with self._lock:
            outer, self._rescue = self._rescue, save
        try:
            yield
        finally:
            with self._lock:  # held while a rescue is under way: then the process ends here
                self._rescue = outer

    def claim(self) -> None:
        """Called by the loop before it saves and ends; from here on no rescue begins."""
        with self._lock:
            self._claimed = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if processes.first():
            self._noted = number

    def _ask(self, number: int) -> None:
        """On the first process: have the loop stop, and see that it does."""
        self._noted = number
        if not self._asked.is_set():
            self._asked.set()
            threading.Thread(target=self._await_answer, name="rescue", daemon=True).start()

    def _listen(self, reader: socket.socket) -> None:
        count = 0
        with reader:
            while data := reader.recv(1):
                if data[0] not in self.numbers:
                    continue
                count += 1
                if count > 1:
                    _end(f"second {signal.Signals(data[0]).name}: ending at once", 128 + data[0])
                if processes.first():
                    self._ask(data[0])
                else:
                    processes.ask(data[0])

    def _await_answer(self) -> None:
        deadline = time.monotonic() + GRACE_SECONDS
        while True:
            time.sleep(0.05)
            with self._lock:
                if self._claimed:
                    return
                if self._rescue is not None and time.monotonic() >= deadline:
                    try:
                        self._rescue()
                    except Exception as error:
                        _end(f"error: the state could not be saved: {error}", 1)
                    _end("stopped; the same command goes on from the newest checkpoint", EXIT_STOPPED)


def _end(text: str, code: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)
    processes.failed(code, text)  # the others end too
    os._exit(code)

"""Signals: SIGTERM, SIGINT or SIGHUP makes the loop save and stop; one a second later ends it at once.

The command then exits with code 75. In a notebook or a script the process goes on, with an exception.
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from jtasks.distributed import processes
from jtasks.environment import STOPPING
from jtasks.errors import EXIT_STOPPED

GRACE_SECONDS = 5.0
REPEAT_SECONDS = 1.0  # a scheduler signals all processes of a job, and a parent among them passes the signal on


class Stopped(Exception):  # noqa: N818 - not an error: the state is saved, and the same command goes on
    """The end of a run that was asked to stop and has saved its state."""


class Stop:
    """A context that notes a SIGTERM, SIGINT or SIGHUP, for the loop to see between steps.

    Without `owns_process` the process is a notebook or a script, which never ends here: a signal before the first
    step, where nothing is to be saved, raises KeyboardInterrupt, and so does a second signal. The earlier handlers
    return at the end. Outside the main thread there are no handlers.

    With `owns_process`, as for the command, the loop can be busy for minutes, compiling or waiting for data. Python
    runs signal handlers in the main thread and only after compiled code returns, so another thread listens as well. If
    the loop does not answer within the grace time and its work may be interrupted (`rescue`), that thread saves in its
    place and ends the process.

    In a run of several processes a signal to any of them must stop all after the same step. Each process passes
    the signal on to the first one, which informs all between two batches, and which alone rescues. If another
    program has started the processes, JAX owns SIGTERM, and its preemption service finds a step that no process
    has passed yet.
    """

    def __init__(self, *, owns_process: bool = False) -> None:
        self.owns_process, self.running = owns_process, False  # running: there is a state to be saved
        ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # as under nohup
        self.numbers = (signal.SIGTERM, signal.SIGINT, *(() if ignored else (signal.SIGHUP,)))
        self.requested: signal.Signals | None = None  # the signal that all processes have agreed on
        self._noted = 0
        self._rescue: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self._claimed = False
        self._asked = threading.Event()
        self._previous: dict[signal.Signals, Any] = {}
        self._sockets: tuple[socket.socket, ...] = ()
        self._wakeup = -1

    def should_stop(self, step: int = 0) -> bool:
        """Return whether to stop now; all processes call this after the same batches, or after the same `step`."""
        if processes.is_external():
            from jax.experimental import multihost_utils

            if step and multihost_utils.reached_preemption_sync_point(step):
                self.requested = signal.SIGTERM
        elif self.requested is None and (number := processes.broadcast_from_first(lambda: self._noted)):
            self.requested = signal.Signals(number)
        return self.requested is not None

    def __enter__(self) -> "Stop":
        if processes.is_external():
            for number in self.numbers[1:]:
                self._previous[number] = signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        processes.heed(self._ask)
        if threading.current_thread() is not threading.main_thread():  # elsewhere Python refuses handlers
            return self
        if self.owns_process:
            reader, writer = self._sockets = socket.socketpair()
            writer.setblocking(False)
            self._wakeup = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=self._listen, args=(reader,), name="signals", daemon=True).start()
        self._previous = {number: signal.signal(number, self._note) for number in self.numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not installed by Python
        if self._sockets:
            signal.set_wakeup_fd(self._wakeup)
            self._sockets[1].close()  # the listener reads the end and returns

    @contextlib.contextmanager
    def rescue(self, save: Callable[[], None]) -> Iterator[None]:
        """Allow another thread to call `save` and end the process while the main thread is inside."""
        with self._lock:
            outer, self._rescue = self._rescue, save
        try:
            yield
        finally:
            with self._lock:  # held while a rescue is under way: then the process ends here
                self._rescue = outer

    def claim(self) -> None:
        """Prevent any rescue from here on; the loop calls this before it saves and ends."""
        with self._lock:
            self._claimed = True

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.owns_process and (self._noted or not self.running):
            raise KeyboardInterrupt(f"{signal.Signals(number).name} during training")
        if processes.first():
            self._noted = number

    def _ask(self, number: int) -> None:
        """Make the loop of the first process stop, and start the thread that rescues if the loop does not."""
        self._noted = number
        if not self._asked.is_set():
            self._asked.set()
            threading.Thread(target=self._await_answer, name="rescue", daemon=True).start()

    def _listen(self, reader: socket.socket) -> None:
        first = 0.0
        with reader:
            while data := reader.recv(1):
                if data[0] not in self.numbers:
                    continue
                now = time.monotonic()
                first = first or now
                if now - first >= REPEAT_SECONDS:
                    processes.end(f"second {signal.Signals(data[0]).name}: ending at once", 128 + data[0])
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
                        processes.end(f"error: the state could not be saved: {error}", 1)
                    text = "stopped; run the same command again to resume from the newest checkpoint"
                    processes.end(text, EXIT_STOPPED)


@contextlib.contextmanager
def raise_stopped() -> Iterator[None]:
    """Make a signal raise Stopped in the main thread, so that a file that is written meanwhile leaves nothing behind.

    Installs nothing outside the main thread. A second signal ends the process at once.
    """
    numbers = [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]  # as SIGHUP under nohup

    def stop(number: int, frame: FrameType | None) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_DFL)
        raise Stopped(f"{signal.Signals(number).name}: stopped; run the same command again")

    if threading.current_thread() is not threading.main_thread():  # elsewhere Python refuses handlers
        yield
        return
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

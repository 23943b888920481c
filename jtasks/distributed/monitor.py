"""Detection of crashed processes: the connections of a run stay open until it ends.

The system closes a process's connections with the process, so a crashed peer is detected immediately, and TCP's
keep-alive detects a lost machine, where JAX's heartbeats take 100 seconds. The first process forwards messages that
concern all. Its decisions travel here too: one is due at every step, and JAX's service would have to be asked for each.
"""

import contextlib
import os
import queue
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from jtasks.distributed.connections import Connection, Message, is_closed
from jtasks.errors import EXIT_STOPPED, printable

GRACE_SECONDS = 2.0  # to report an error of this process before exiting because of a peer's
LEAVE_SECONDS = 3.0  # the first process, which runs the JAX service of the others, waits this long for them to end

TYPES: dict[str, type] = {"value": object, "done": bool, "all done": bool, "stop": int, "lost": str, "failed": str}


class PeerMonitor:
    """The open connections of a run, and a thread that ends this process when another one has failed."""

    def __init__(self, process: int, connections: list[Connection]):
        self.process, self.connections = process, connections
        self.clear: Callable[[], None] = lambda: None  # called before the first process ends for a failure
        self._asked, self._act = 0, lambda number: None
        self._values: queue.Queue[Any] = queue.Queue()
        self._left = threading.Event()  # this process has sent its last message
        self._all_done = threading.Event()
        self._ending = threading.Lock()  # taken by the thread that ends the process, and never released
        threading.Thread(target=self._watch, name="processes", daemon=True).start()

    def tell(self, value: Any) -> None:
        """Send the others a value that they wait for, JSON data."""
        self._send({"value": value})

    def hear(self) -> Any:
        """Wait for a value from another process, without a timeout."""
        return self._values.get()

    def ask(self, number: int) -> None:
        """Ask the first process to stop all processes for a signal."""
        self._send({"stop": number})

    def heed(self, act: Callable[[int], None]) -> None:
        """Call `act` with the signal when another process asks to stop, or now if one has asked already."""
        self._act = act
        if self._asked:
            act(self._asked)

    def leave(self) -> None:
        """Report that this process is done, and wait for the others: jax.distributed waits too briefly at the end."""
        if not self._left.is_set():
            self._send({"done": True})
            self._left.set()
            self._check_done()
            self._all_done.wait()

    def fail(self, code: int, text: str) -> NoReturn:
        """Report to the others that this process failed, and end this process."""
        self._ending.acquire(timeout=2 * LEAVE_SECONDS)  # a signal's handler may have interrupted the holder
        self._left.set()
        self._send({"failed": text, "process": self.process, "code": code})
        self._exit(code)

    def _send(self, message: Message) -> None:
        for connection in self.connections:
            connection.send(message)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as waiting:
            for connection in self.connections:
                connection.sock.settimeout(None)
                waiting.register(connection.sock, selectors.EVENT_READ, connection)
            while waiting.get_map():
                for key, _ in waiting.select():
                    messages = key.data.receive()
                    for message in messages or ():
                        self._take(message, key.data)
                    if messages is None:
                        waiting.unregister(key.fileobj)
                        if not key.data.done:
                            self._report_lost(key.data)

    def _take(self, message: Message, sender: Connection) -> None:
        kind = next((name for name in TYPES if name in message), "")
        if not kind or not isinstance(message[kind], TYPES[kind]):
            return  # of another version, or not of this run
        if kind == "value":
            self._values.put(message["value"])
        elif kind == "done":
            sender.done = True
            self._check_done()
        elif kind == "all done":
            self._all_done.set()
        elif kind == "stop":
            if message["stop"] in set(signal.Signals):
                self._asked = message["stop"]
                self._act(self._asked)
        elif kind == "lost":
            self._end(printable(message["lost"]), EXIT_STOPPED)
        else:
            process, code = message.get("process"), message.get("code")
            code = code if type(code) is int and 0 < code < 256 else 1  # a peer's failure must not become a success
            ended = "stopped" if code == EXIT_STOPPED else "failed"
            text = f"process {process if type(process) is int else '?'} {ended}: {printable(message['failed'])}"
            if self.process == 0:
                self._send(message)
            # This process may report the same error itself, or may be done and wait for the others.
            if not self._left.wait(GRACE_SECONDS) or not self._ending.locked():
                self._end(text, code)

    def _check_done(self) -> None:
        if self.process == 0 and self._left.is_set() and all(connection.done for connection in self.connections):
            self._send({"all done": True})
            self._all_done.set()

    def _report_lost(self, connection: Connection) -> None:
        text = (
            f"process {connection.process} on {connection.host} is gone: it was killed, or its machine cannot be"
            " reached. All processes of the run end; run the same command again to resume from the newest checkpoint"
        )
        if self.process == 0 and not self._ending.locked():
            self._send({"lost": text})
        self._end(text, EXIT_STOPPED)

    def _end(self, text: str, code: int) -> NoReturn:
        self._ending.acquire()
        with contextlib.suppress(OSError, ValueError):
            print(printable(f"error: {text}"), file=sys.stderr, flush=True)
        self._exit(code)

    def _exit(self, code: int) -> NoReturn:
        """Exit without jax.distributed's shutdown, which would wait for processes that do not come."""
        if self.process == 0:
            end = time.monotonic() + LEAVE_SECONDS
            for connection in self.connections:
                while time.monotonic() < end and not is_closed(connection.sock):
                    time.sleep(0.02)
            with contextlib.suppress(Exception):
                self.clear()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)

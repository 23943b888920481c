"""The processes of a run find each other, and each learns when another is gone.

jax.distributed aborts a process that waits in vain, and tells neither who was missing nor who died. So before it
starts, every process reports to the first on the coordinator's port. The connections stay open for as long as the
run lasts: the system closes them with the process, so an end without a word is noticed at once, and TCP's
keep-alive notices a machine that is gone. Messages are lines of JSON; the first process passes on what concerns all.
"""

import contextlib
import json
import os
import queue
import selectors
import socket
import sys
import threading
import time
from typing import Any, NoReturn

from jtasks.errors import ConfigError, TrainingError, printable

GRACE_SECONDS = 2.0  # for a process to tell of its own error, before it ends for another's
LEAVE_SECONDS = 3.0  # that the first process, which the others' JAX depends on, waits for them to end

Message = dict[str, Any]


class Connection:
    """Lines of JSON over a socket, with the place of the process at the other end."""

    def __init__(self, sock: socket.socket):
        self.sock, self.process, self.host, self.done = sock, -1, "", False
        self._rest = b""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):  # 30 s in all
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Message) -> None:
        """Send one line; if the other end is gone, its silence is noticed where it is read."""
        with contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """The lines that have arrived, after waiting for some; None at the end of the connection."""
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            return None
        return None if not data or not all(isinstance(message, dict) for message in messages) else messages


def gather(port: int, processes: int, seconds: float) -> list[Connection]:
    """Wait on the first process until the others have come; returns their connections in order.

    Raises:
      TrainingError: the port is taken, or some did not come in time; they are named.
      ConfigError: they do not agree on how many there are or who is who.
    """
    deadline = time.monotonic() + seconds
    members: dict[int, Connection] = {}
    come: list[Connection] = []
    with _listen(port, min(10.0, seconds)) as server, selectors.DefaultSelector() as waiting:
        waiting.register(server, selectors.EVENT_READ)
        try:
            while not _complete(members, processes):
                left = deadline - time.monotonic()
                if left <= 0:
                    missing = [i for i in range(1, processes) if i not in members]
                    raise TrainingError(f"{_listed(missing)} of {processes} never came within {seconds:g} s")
                for key, _ in waiting.select(left):
                    if key.data is None:
                        come.append(Connection(server.accept()[0]))
                        waiting.register(come[-1].sock, selectors.EVENT_READ, come[-1])
                    elif not _greeted(key.data, members, processes):
                        waiting.unregister(key.fileobj)
                        key.data.sock.close()
        except (ConfigError, TrainingError) as error:
            for connection in come:
                connection.send({"refused": str(error), "config": isinstance(error, ConfigError)})
                connection.sock.close()
            raise
    for connection in come:
        if connection not in members.values():
            connection.sock.close()
    hosts = [socket.gethostname(), *(members[i].host for i in range(1, processes))]
    for connection in members.values():
        connection.send({"start": hosts})
    return [members[i] for i in range(1, processes)]


def join(coordinator: str, process: int, processes: int, seconds: float) -> Connection:
    """Report to the first process and wait until all have come.

    Raises:
      TrainingError: nobody answers at the coordinator's address, or not all come in time.
      ConfigError: the first process was started otherwise.
    """
    deadline = time.monotonic() + seconds
    reason, reached = "", False
    while time.monotonic() < deadline:
        try:
            sock = socket.create_connection(address(coordinator), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        connection = Connection(sock)
        connection.send({"process": process, "processes": processes, "host": socket.gethostname()})
        reached = True
        messages: list[Message] | None = []
        while messages == [] and time.monotonic() < deadline + GRACE_SECONDS:  # its word on who is missing comes first
            sock.settimeout(max(0.1, deadline + GRACE_SECONDS - time.monotonic()))
            messages = connection.receive()
        if messages and {"start", "refused"} & messages[0].keys():
            return _answered(connection, messages[0])
        sock.close()
        time.sleep(0.2)
    if reached:
        raise TrainingError(
            f"the coordinator at {coordinator} was reached, but process 0 did not begin the run within {seconds:g} s"
        )
    raise TrainingError(
        f"the coordinator at {coordinator} did not answer within {seconds:g} s ({reason}): is process 0 running there,"
        " and may this machine reach that port? --timeout=SECONDS waits longer"
    )


class Link:
    """The open connections of a run, watched by a thread that ends this process when another has failed."""

    def __init__(self, process: int, connections: list[Connection]):
        self.process, self.connections = process, connections
        self._values: queue.Queue[int] = queue.Queue()
        self._left = threading.Event()  # this process has said its last word
        self._all_done = threading.Event()
        self._ending = threading.Lock()  # taken by the thread that ends the process, for good
        threading.Thread(target=self._watch, name="processes", daemon=True).start()

    def tell(self, value: int) -> None:
        """Give the others a value that they wait for."""
        self._send({"value": value})

    def hear(self) -> int:
        """Wait for the value that the first process tells, however long it takes."""
        return self._values.get()

    def leave(self) -> None:
        """Say that this process is done, and wait for the others: jax.distributed has little patience at the end."""
        if not self._left.is_set():
            self._send({"done": True})
            self._left.set()
            self._check_done()
            self._all_done.wait()

    def fail(self, code: int, text: str) -> NoReturn:
        """Tell the others that this process failed, and end it."""
        self._ending.acquire()
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
                            self._lost(key.data)

    def _take(self, message: Message, sender: Connection) -> None:
        if "value" in message:
            self._values.put(message["value"])
        elif "done" in message:
            sender.done = True
            self._check_done()
        elif "all done" in message:
            self._all_done.set()
        elif "lost" in message:
            self._end(message["lost"], 1)
        elif "failed" in message:
            if self.process == 0:
                self._send(message)
            if not self._left.wait(GRACE_SECONDS):  # it may have met the same error, and tell of it itself
                self._end(f"process {message['process']} failed: {message['failed']}", message["code"])

    def _check_done(self) -> None:
        if self.process == 0 and self._left.is_set() and all(connection.done for connection in self.connections):
            self._send({"all done": True})
            self._all_done.set()

    def _lost(self, connection: Connection) -> None:
        text = (
            f"process {connection.process} on {connection.host} is gone: it was killed, or its machine cannot be"
            " reached. All processes of the run end; the same command goes on from the newest checkpoint"
        )
        if self.process == 0 and not self._ending.locked():
            self._send({"lost": text})
        self._end(text, 1)

    def _end(self, text: str, code: int) -> NoReturn:
        self._ending.acquire()
        with contextlib.suppress(OSError, ValueError):
            print(printable(f"error: {text}"), file=sys.stderr, flush=True)
        self._exit(code)

    def _exit(self, code: int) -> NoReturn:
        """End without jax.distributed's farewell, which would wait for processes that do not come."""
        if self.process == 0:
            end = time.monotonic() + LEAVE_SECONDS
            for connection in self.connections:
                while time.monotonic() < end and not _closed(connection.sock):
                    time.sleep(0.02)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def address(coordinator: str) -> tuple[str, int]:
    """Host and port of HOST:PORT, where an IPv6 host stands in brackets.

    >>> address("node1:1234"), address("[::1]:80")
    (('node1', 1234), ('::1', 80))
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator} must be HOST:PORT, such as node1:12345")
    return host.strip("[]"), int(port)


def _listen(port: int, seconds: float) -> socket.socket:
    """Listen on all addresses; a run that is just ending may hold the port for a moment."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if socket.has_dualstack_ipv6():
                return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
            return socket.create_server(("", port), backlog=1024)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise TrainingError(
                    f"process 0 cannot listen on port {port} of {socket.gethostname()} ({error.strerror}):"
                    " give another one, with --coordinator=HOST:PORT or JAX_COORDINATOR_PORT"
                ) from error
            time.sleep(0.2)


def _complete(members: dict[int, Connection], processes: int) -> bool:
    """Whether all are there, of whom some may have come and left again."""
    if len(members) < processes - 1:
        return False
    for gone in [process for process, connection in members.items() if _closed(connection.sock)]:
        del members[gone]
    return len(members) == processes - 1


def _greeted(connection: Connection, members: dict[int, Connection], processes: int) -> bool:
    """Take in who reports; False if it left again or is a stranger."""
    messages = connection.receive()
    if messages == []:
        return True
    if messages is None or not _hello(messages[0]):
        if members.get(connection.process) is connection:
            del members[connection.process]
        return False
    hello = messages[0]
    connection.process, connection.host = hello["process"], hello["host"]
    if hello["processes"] != processes:
        raise ConfigError(
            f"process {connection.process} on {connection.host} was told of {hello['processes']} processes,"
            f" process 0 of {processes}: give all the same"
        )
    earlier = members.get(connection.process)
    if earlier and not _closed(earlier.sock):  # closed: it was started anew
        raise ConfigError(
            f"two processes say that they are process {connection.process}, on {earlier.host} and on {connection.host}:"
            " number them 0, 1, ..."
        )
    members[connection.process] = connection
    return True


def _hello(message: Message) -> bool:
    types = {"process": int, "processes": int, "host": str}
    known = all(isinstance(message.get(name), kind) for name, kind in types.items())
    return known and 0 < message["process"] < message["processes"]


def _answered(connection: Connection, answer: Message) -> Connection:
    if "refused" in answer:
        connection.sock.close()
        raise (ConfigError if answer["config"] else TrainingError)(answer["refused"])
    connection.process, connection.host = 0, answer["start"][0]
    return connection


def _listed(indices: list[int]) -> str:
    names = [str(i) for i in indices[:8]] + ([f"{len(indices) - 8} more"] if len(indices) > 8 else [])
    joined = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"process{'es' if len(indices) > 1 else ''} {joined}"


def _closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

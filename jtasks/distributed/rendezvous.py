"""Connections between the processes of a run, which detect missing and crashed processes.

jax.distributed aborts on timeout without saying which process is missing or has died. So before jax.distributed
starts, every process reports to the first one on the coordinator's port. The connections stay open until the run
ends: the system closes them with the process, so a crashed peer is detected immediately, and TCP's keep-alive detects
a lost machine. Messages are lines of JSON; the first process forwards messages that concern all.

A process must prove that it has the run's key without sending it: the first process sends a challenge, and expects
the challenge's HMAC. A connection without proof is dropped while the others go on waiting. Members trust each other.
"""

import contextlib
import hmac
import ipaddress
import json
import os
import queue
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NoReturn

from jtasks.errors import EXIT_STOPPED, ConfigError, TrainingError, printable

GRACE_SECONDS = 2.0  # to report an error of this process before exiting because of a peer's
LEAVE_SECONDS = 3.0  # that the first process, which serves the others' JAX, waits for them to end

LINE_BYTES = 2**16  # longest line that is read
STRANGERS = 64  # connections that may wait without proof
SEE_SECONDS = 20.0  # for a new file to appear through the caches of a network file system

Message = dict[str, Any]
TYPES: dict[str, type] = {"value": object, "done": bool, "all done": bool, "stop": int, "lost": str, "failed": str}


class Connection:
    """A socket that carries lines of JSON, with index and host of the process at the other end."""

    def __init__(self, sock: socket.socket):
        self.sock, self.process, self.host, self.done = sock, -1, "", False
        self.challenge = secrets.token_hex(16)
        self._rest = b""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):  # 30 s in all
            if hasattr(socket, name) and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def send(self, message: Message) -> None:
        """Send one line; if the other end is gone, `receive` notices."""
        with contextlib.suppress(OSError):
            self.sock.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[Message] | None:
        """Wait for data, and return the complete lines; None at the end of the connection."""
        try:
            data = self.sock.recv(LINE_BYTES)
        except TimeoutError:
            return []
        except OSError:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(len(self._rest), *map(len, lines), 0) > LINE_BYTES:
            return None
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError):
            return None
        return None if not data or not all(isinstance(message, dict) for message in messages) else messages


def accept_peers(
    coordinator: str, processes: int, seconds: float, key: bytes, source: str = "the key"
) -> list[Connection]:
    """Wait on the first process until the others have come; returns their connections in order.

    Args:
      coordinator: HOST:PORT, this process's address.
      processes: number of processes, with this one.
      seconds: timeout.
      key: secret that all members know.
      source: where the key comes from, for messages.

    Raises:
      TrainingError: the port is taken, or some processes did not come in time; the message names them.
      ConfigError: the processes do not agree on their number or their indices, or lack the key.
    """
    deadline = time.monotonic() + seconds
    hall = _Hall(processes, key, source)
    with _listen(coordinator, min(10.0, seconds)) as server, selectors.DefaultSelector() as waiting:
        waiting.register(server, selectors.EVENT_READ)
        try:
            while not hall.complete():
                hall.check_keyless(SEE_SECONDS)
                left = deadline - time.monotonic()
                if left <= 0:
                    hall.check_keyless(0)
                    missing = [i for i in range(1, processes) if i not in hall.members]
                    raise TrainingError(f"{_list(missing)} of {processes} never came within {seconds:g} s")
                for selected, _ in waiting.select(min(left, 1.0)):
                    if selected.data is None:
                        _admit(server, waiting, hall)
                    elif not hall.greeted(selected.data):
                        waiting.unregister(selected.fileobj)
                        selected.data.sock.close()
        except (ConfigError, TrainingError) as error:
            for connection in hall.members.values():
                connection.send({"refused": str(error), "config": isinstance(error, ConfigError)})
            raise
        finally:
            for connection in [entry.data for entry in waiting.get_map().values() if entry.data]:
                if hall.members.get(connection.process) is not connection or not hall.complete():
                    connection.sock.close()
    hosts = [socket.gethostname(), *(hall.members[i].host for i in range(1, processes))]
    for connection in hall.members.values():
        connection.send({"start": hosts, "proof": _proof(key, "start", connection.challenge)})
    return [hall.members[i] for i in range(1, processes)]


def _admit(server: socket.socket, waiting: selectors.BaseSelector, hall: "_Hall") -> None:
    """Accept a connection and challenge it; if there are too many strangers, drop the one that waits longest."""
    strangers = [e for e in waiting.get_map().values() if e.data and e.data not in hall.members.values()]
    if len(strangers) >= STRANGERS + hall.processes:
        waiting.unregister(strangers[0].fileobj)
        strangers[0].data.sock.close()
    try:
        connection = Connection(server.accept()[0])
    except OSError:  # the connection is gone already, or this process has no more file descriptors
        time.sleep(0.05)
        return
    connection.send({"challenge": connection.challenge})
    waiting.register(connection.sock, selectors.EVENT_READ, connection)


def join(
    coordinator: str,
    process: int,
    processes: int,
    seconds: float,
    key: Callable[[], bytes],
    source: str = "the key",
) -> Connection:
    """Report to the first process and wait until all have come.

    Args:
      coordinator: HOST:PORT of the first process.
      process: index of this process.
      processes: number of processes.
      seconds: timeout.
      key: returns the secret that all members know; called at each attempt, because the key's file may appear late.
      source: where the key comes from, for messages.

    Raises:
      TrainingError: nobody answers at the coordinator's address, or not all processes come in time.
      ConfigError: the first process was started with other arguments, or has another key.
    """
    deadline = time.monotonic() + seconds
    reason, reached, keyless = "", False, None
    while time.monotonic() < deadline:
        try:
            sock = socket.create_connection(address(coordinator), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        reached = True
        connection = Connection(sock)
        answer = _greet(connection, process, processes, key(), deadline + GRACE_SECONDS)
        if answer and "keyless" in answer:
            sock.close()
            keyless = keyless or time.monotonic()
            if time.monotonic() - keyless > SEE_SECONDS / 2:
                raise ConfigError(_other_key_message([(process, socket.gethostname())], source))
        elif answer:
            return _read_answer(connection, answer)
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


def _greet(connection: Connection, process: int, processes: int, key: bytes, deadline: float) -> Message | None:
    """Prove membership to the first process; returns the answer, or None without an answer that has proof."""
    host = socket.gethostname()
    while time.monotonic() < deadline:
        connection.sock.settimeout(max(0.1, deadline - time.monotonic()))
        messages = connection.receive()
        if messages is None:
            return None
        for message in messages:
            challenge = message.get("challenge")
            if isinstance(challenge, str):
                connection.challenge = challenge
                hello = {"process": process, "processes": processes, "host": host}
                connection.send({**hello, "proof": _proof(key, challenge, process, processes, host)})
                continue
            started = "start" in message and _is_same(message.get("proof"), _proof(key, "start", connection.challenge))
            if started or "keyless" in message or isinstance(message.get("refused"), str):
                return message
    return None


class _Hall:
    """The processes that have reported to the first one, while it waits."""

    def __init__(self, processes: int, key: bytes, source: str):
        self.processes, self.key, self.source = processes, key, source
        self.members: dict[int, Connection] = {}
        self.keyless: dict[int, tuple[float, str]] = {}  # time of the first claim, and host

    def complete(self) -> bool:
        """Return whether all processes are here, after removing those that left again."""
        if len(self.members) < self.processes - 1:
            return False
        for gone in [process for process, connection in self.members.items() if _is_closed(connection.sock)]:
            del self.members[gone]
        return len(self.members) == self.processes - 1

    def check_keyless(self, seconds: float) -> None:
        """Raise ConfigError if only a process without the key has claimed an index, for at least `seconds`."""
        now = time.monotonic()
        claims = [(i, host) for i, (since, host) in sorted(self.keyless.items()) if i not in self.members]
        if any(now - self.keyless[i][0] >= seconds for i, _ in claims):
            raise ConfigError(_other_key_message(claims, self.source))

    def greeted(self, connection: Connection) -> bool:
        """Admit a process that reports; returns False if it left again or is a stranger."""
        messages = connection.receive()
        if messages == []:
            return True
        known = self.members.get(connection.process) is connection
        if messages is None or known or not _is_hello(messages[0]):
            if known:
                del self.members[connection.process]
            return False
        hello = messages[0]
        process, processes, host = hello["process"], hello["processes"], hello["host"]
        if not _is_same(hello["proof"], _proof(self.key, connection.challenge, process, processes, host)):
            if process < self.processes:
                self.keyless.setdefault(process, (time.monotonic(), printable(host)))
            connection.send({"keyless": True})
            return False
        connection.process, connection.host = process, printable(host)
        if processes != self.processes:
            text = f"process {process} on {connection.host} was started with {processes} processes, process 0 with"
            self._refuse(connection, f"{text} {self.processes}: give all the same number")
        earlier = self.members.get(process)
        if earlier and not _is_closed(earlier.sock):  # closed: the process was restarted
            self._refuse(
                connection,
                f"two processes say that they are process {process}, on {earlier.host} and on {connection.host}:"
                " number them 0, 1, ...",
            )
        self.members[process] = connection
        return True

    def _refuse(self, connection: Connection, text: str) -> None:
        connection.send({"refused": text, "config": True})
        raise ConfigError(text)


class PeerMonitor:
    """The open connections of a run, and a thread that ends this process when another one has failed."""

    def __init__(self, process: int, connections: list[Connection]):
        self.process, self.connections = process, connections
        self.clear: Callable[[], None] = lambda: None  # called before the first process ends for a failure
        self._asked, self._act = 0, lambda number: None
        self._values: queue.Queue[Any] = queue.Queue()
        self._left = threading.Event()  # this process has sent its last message
        self._all_done = threading.Event()
        self._ending = threading.Lock()  # taken by the thread that ends the process, for good
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
            self._end(printable(message["lost"]), 1)
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
        self._end(text, 1)

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
                while time.monotonic() < end and not _is_closed(connection.sock):
                    time.sleep(0.02)
            with contextlib.suppress(Exception):
                self.clear()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)


def address(coordinator: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, where an IPv6 host is in brackets.

    >>> address("node1:1234"), address("[::1]:80")
    (('node1', 1234), ('::1', 80))
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator} must be HOST:PORT, such as node1:12345")
    return host.strip("[]"), int(port)


def _listen(coordinator: str, seconds: float) -> socket.socket:
    """Listen at the coordinator's address, with retries: a run that is just ending may still hold the port."""
    host, port = address(coordinator)
    deadline = time.monotonic() + seconds
    while True:
        try:
            return _bind(host, port)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise TrainingError(
                    f"process 0 cannot listen on port {port} of {socket.gethostname()} ({error.strerror}):"
                    " give another one, with --coordinator=HOST:PORT or JAX_COORDINATOR_PORT"
                ) from error
            time.sleep(0.2)


def _bind(host: str, port: int) -> socket.socket:
    if local := interface(host):
        kind = socket.AF_INET6 if ":" in local else socket.AF_INET
        return socket.create_server((local, port), family=kind, backlog=1024)
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024)
    return socket.create_server(("", port), backlog=1024)


def interface(host: str) -> str:
    """Return the address of this machine that `host` means; "" to listen on all addresses.

    The result is "" if no interface of this machine has the address, as for the name of a service or a router, and if
    this machine resolves its own name to loopback, as Debian does: other machines could not reach that address.
    """
    try:
        addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError:
        return ""
    if host == "localhost" and "127.0.0.1" in addresses:
        return "127.0.0.1"  # a joining process tries all addresses of the name
    loopback = [ipaddress.ip_address(text.partition("%")[0]).is_loopback for text in addresses]
    if len(set(addresses)) != 1 or (loopback[0] and host not in ("localhost", addresses[0])):
        return ""
    try:
        with socket.socket(socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET) as probe:
            probe.bind((addresses[0], 0))
    except OSError:
        return ""
    return addresses[0]


def _is_hello(message: Message) -> bool:
    types = {"process": int, "processes": int, "host": str, "proof": str}
    known = all(type(message.get(name)) is kind for name, kind in types.items())
    return known and len(message["host"]) < 256 and 0 < message["process"] < message["processes"]


def _proof(key: bytes, *parts: object) -> str:
    return hmac.new(key, json.dumps(parts).encode(), "sha256").hexdigest()


def _is_same(proof: object, expected: str) -> bool:
    return isinstance(proof, str) and proof.isascii() and hmac.compare_digest(proof, expected)


def _other_key_message(who: list[tuple[int, str]], source: str) -> str:
    names = ", ".join(f"process {process} on {host}" for process, host in who)
    return f"{names}: does not see what process 0 wrote there: {source}"


def _read_answer(connection: Connection, answer: Message) -> Connection:
    if "refused" in answer:
        connection.sock.close()
        raise (ConfigError if answer.get("config") is True else TrainingError)(printable(answer["refused"]))
    hosts = answer["start"]
    connection.process, connection.host = (
        0,
        printable(str(hosts[0])[:256]) if isinstance(hosts, list) and hosts else "?",
    )
    return connection


def _list(indices: list[int]) -> str:
    names = [str(i) for i in indices[:8]] + ([f"{len(indices) - 8} more"] if len(indices) > 8 else [])
    joined = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return f"process{'es' if len(indices) > 1 else ''} {joined}"


def _is_closed(sock: socket.socket) -> bool:
    try:
        return sock.recv(65536, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

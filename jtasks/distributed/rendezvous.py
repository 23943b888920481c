"""The meeting of the processes of a run: every process reports to the first one, on the coordinator's port.

On timeout jax.distributed ends the process with a stack trace of C++ and does not say who is missing (jax 0.10.2), and
its service lets anyone in; so the processes meet here before it starts. A process must prove that it has the run's key
without sending it: the first process sends a challenge, and expects the challenge's HMAC. A connection without proof is
dropped while the others go on waiting, and so is a process of another job of the launcher, which has come to a wrong
port. Members trust each other. `monitor` takes the connections over.
"""

import hmac
import json
import selectors
import socket
import sys
import time
from collections.abc import Callable

from jtasks.distributed.connections import Connection, Message, address, is_closed, listen
from jtasks.errors import ConfigError, TrainingError, printable

ANSWER_SECONDS = 2.0  # for the first process's answer, after the timeout
STRANGERS = 64  # connections that may wait without proof
SEE_SECONDS = 20.0  # for a new file to appear through the caches of a network file system


def accept_peers(
    coordinator: str,
    processes: int,
    seconds: float,
    key: Callable[[], bytes],
    source: str = "the key",
    job: str = "",
) -> list[Connection]:
    """Wait on the first process until the others have come; returns their connections in order.

    Args:
      coordinator: HOST:PORT, this process's address.
      processes: number of processes, with this one.
      seconds: timeout.
      key: returns the secret that all members know; called once this process has the port.
      source: where the key comes from, for messages.
      job: the launcher's name of the run.

    Raises:
      TrainingError: the port is taken, or some processes did not come in time; the message names them.
      ConfigError: the processes do not agree on their number or their indices, or lack the key.
    """
    deadline = time.monotonic() + seconds
    with listen(coordinator, min(10.0, seconds)) as server, selectors.DefaultSelector() as waiting:
        hall = _Hall(processes, key(), source, job)
        waiting.register(server, selectors.EVENT_READ)
        try:
            while not hall.complete():
                hall.tell_keyless()
                left = deadline - time.monotonic()
                if left <= 0:
                    missing = [i for i in range(1, processes) if i not in hall.members]
                    text = f"{_list(missing)} of {processes} never came within {seconds:g} s"
                    if claims := hall.keyless_claims():
                        raise ConfigError(f"{text}. {_other_key_message(claims, source)}")
                    raise TrainingError(text)
                for selected, _ in waiting.select(min(left, 1.0)):
                    if selected.data is None:
                        _admit(server, waiting, hall, left)
                    elif not hall.greet(selected.data):
                        waiting.unregister(selected.fileobj)
                        selected.data.sock.close()
        except (ConfigError, TrainingError) as error:
            for connection in hall.members.values():
                connection.send({"refused": str(error), "config": isinstance(error, ConfigError)})
            raise
        finally:
            met = len(hall.members) == processes - 1
            for connection in [entry.data for entry in waiting.get_map().values() if entry.data]:
                if hall.members.get(connection.process) is not connection or not met:
                    connection.sock.close()
    hosts = [socket.gethostname(), *(hall.members[i].host for i in range(1, processes))]
    for connection in hall.members.values():
        connection.send({"start": hosts, "proof": proof(hall.key, "start", connection.challenge)})
    return [hall.members[i] for i in range(1, processes)]


def _admit(server: socket.socket, waiting: selectors.BaseSelector, hall: "_Hall", left: float) -> None:
    """Accept a connection, challenge it and say how many seconds are left; drop the oldest of too many strangers."""
    if len(waiting.get_map()) - 1 - len(hall.members) >= STRANGERS + hall.processes:
        stranger = next(e for e in waiting.get_map().values() if e.data and e.data.process < 0)  # no member yet
        waiting.unregister(stranger.fileobj)
        stranger.data.sock.close()
    try:
        connection = Connection(server.accept()[0])
    except OSError:  # the connection is gone already, or this process has no more file descriptors
        time.sleep(0.05)
        return
    connection.send({"challenge": connection.challenge, "seconds": left})
    waiting.register(connection.sock, selectors.EVENT_READ, connection)


def join(
    coordinator: str,
    process: int,
    processes: int,
    seconds: float,
    key: Callable[[], bytes],
    source: str = "the key",
    job: str = "",
) -> Connection:
    """Report to the first process and wait until all have come.

    Args:
      coordinator: HOST:PORT of the first process.
      process: index of this process.
      processes: number of processes.
      seconds: timeout.
      key: returns the secret that all members know; called at each attempt, because the key's file may appear late.
      source: where the key comes from, for messages.
      job: the launcher's name of the run.

    Raises:
      TrainingError: nobody answers at the coordinator's address, another run does, or not all processes come in time.
      ConfigError: the first process was started with other arguments, or has another key.
    """
    deadline = time.monotonic() + seconds
    reason, reached, refused = "", False, None
    while time.monotonic() < deadline:
        try:
            sock = socket.create_connection(address(coordinator), timeout=max(0.1, deadline - time.monotonic()))
        except OSError as error:
            reason = error.strerror or str(error)
            time.sleep(0.2)
            continue
        reached = True
        connection = Connection(sock)
        answer = _greet(connection, process, processes, key(), job, deadline + ANSWER_SECONDS)
        if answer and ("keyless" in answer or "other job" in answer):
            sock.close()
            refused = refused or time.monotonic()
            if time.monotonic() - refused > SEE_SECONDS / 2 and "other job" in answer:
                raise TrainingError(
                    f"another run has the port of {coordinator}, not {job or 'this one'}: give this run another port,"
                    " with JAX_COORDINATOR_PORT"
                )
            if time.monotonic() - refused > SEE_SECONDS / 2:
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


def _greet(
    connection: Connection, process: int, processes: int, key: bytes, job: str, deadline: float
) -> Message | None:
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
                seconds = message.get("seconds")  # the first process, which may have begun later, says who is missing
                if type(seconds) is float and 0 < seconds < 1e6:
                    deadline = max(deadline, time.monotonic() + seconds + ANSWER_SECONDS)
                hello = {"process": process, "processes": processes, "host": host, "job": job}
                connection.send({**hello, "proof": proof(key, challenge, *hello.values())})
                continue
            started = "start" in message and _is_same(message.get("proof"), proof(key, "start", connection.challenge))
            if started or "keyless" in message or "other job" in message or isinstance(message.get("refused"), str):
                return message
    return None


class _Hall:
    """The processes that have reported to the first one, while it waits."""

    def __init__(self, processes: int, key: bytes, source: str, job: str):
        self.processes, self.key, self.source, self.job = processes, key, source, job
        self.members: dict[int, Connection] = {}
        self.keyless: dict[int, tuple[float, str]] = {}  # time of the first claim, and host
        self.told = False

    def complete(self) -> bool:
        """Return whether all processes are here, after removing those that left again."""
        if len(self.members) < self.processes - 1:
            return False
        for gone in [process for process, connection in self.members.items() if is_closed(connection.sock)]:
            del self.members[gone]
        return len(self.members) == self.processes - 1

    def keyless_claims(self, seconds: float = 0) -> list[tuple[int, str]]:
        """Return index and host of those that are not here, and that a process without the key claimed to be."""
        before = time.monotonic() - seconds
        return [(i, host) for i, (at, host) in sorted(self.keyless.items()) if i not in self.members and at <= before]

    def tell_keyless(self) -> None:
        """Print once that a process lacks the key. It may be a stranger, for whom nobody's wait ends."""
        if not self.told and (claims := self.keyless_claims(SEE_SECONDS / 2)):
            self.told = True
            print(f"WARNING: {_other_key_message(claims, self.source)}; waiting on", file=sys.stderr, flush=True)

    def greet(self, connection: Connection) -> bool:
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
        process, processes, host, job = (hello[name] for name in ("process", "processes", "host", "job"))
        if job != self.job:
            connection.send({"other job": True})
            return False
        if not _is_same(hello["proof"], proof(self.key, connection.challenge, process, processes, host, job)):
            if process < self.processes:
                self.keyless.setdefault(process, (time.monotonic(), printable(host)))
            connection.send({"keyless": True})
            return False
        connection.process, connection.host = process, printable(host)
        if processes != self.processes:
            text = f"process {process} on {connection.host} was started with {processes} processes, process 0 with"
            self._refuse(connection, f"{text} {self.processes}: give all the same number")
        earlier = self.members.get(process)
        if earlier and not is_closed(earlier.sock):  # closed: the process was restarted
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


def _is_hello(message: Message) -> bool:
    types = {"process": int, "processes": int, "host": str, "job": str, "proof": str}
    known = all(type(message.get(name)) is kind for name, kind in types.items())
    return known and len(message["host"]) < 256 and 0 < message["process"] < message["processes"]


def proof(key: bytes, *parts: object) -> str:
    """Return the HMAC of the parts of a greeting, which proves that its sender knows the key."""
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

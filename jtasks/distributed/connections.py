"""Sockets between the processes of a run: the coordinator's address, and lines of JSON."""

import contextlib
import ipaddress
import json
import secrets
import socket
import time
from typing import Any

from jtasks.errors import ConfigError, TrainingError

LINE_BYTES = 2**16  # longest line that is read

Message = dict[str, Any]


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


def address(coordinator: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT, where an IPv6 host is in brackets.

    >>> address("node1:1234"), address("[::1]:80")
    (('node1', 1234), ('::1', 80))
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--coordinator={coordinator} must be HOST:PORT, such as node1:12345")
    return host.strip("[]"), int(port)


def listen(coordinator: str, seconds: float) -> socket.socket:
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


def is_closed(sock: socket.socket) -> bool:
    """Return whether the other end is gone; discards what it sent."""
    try:
        return sock.recv(65536, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True

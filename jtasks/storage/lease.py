"""The lock of a workdir in a bucket: a lease that its owner renews, and that the successor of a dead owner takes over.

The store need only write an object unless there is one. The holder is whoever wrote the object with the highest number
below `.lock/`. A starter that finds a holder watches it: an object that its owner renews belongs to a living run; one
that stays as it is for `LAPSE` seconds belongs to a dead one, and the starter writes the next number. No clocks are
compared. An owner that comes back, such as from a suspended machine, sees the higher number, and stops.
"""

import contextlib
import json
import os
import pathlib
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from jtasks.errors import ConfigError, StorageError
from jtasks.storage import bucket

FOLDER = ".lock"
RENEW = 10.0  # seconds between two renewals
LAPSE = 60.0  # seconds without a renewal after which the owner counts as dead

_ended: set[str] = set()  # ids of the leases of this process that have ended, even if the store was not told


class Lease:
    """A held lease, renewed by a thread; `lost` tells by whom it was taken over."""

    def __init__(self, url: str, number: int, content: dict[str, Any], on_loss: Callable[[], None]):
        self.url, self.number, self._content, self._on_loss = url, number, content, on_loss
        self.lost = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise StorageError if another run has taken the workdir over."""
        if self.lost:
            raise StorageError(f"{self.url} was taken over by {self.lost}, while this run could not renew its lock")

    def release(self) -> None:
        """End the lease, unless it is lost."""
        self._ended.set()
        self._thread.join()
        _ended.add(self._content["id"])
        if not self.lost:
            with contextlib.suppress(StorageError, ConfigError):  # it lapses by itself
                for number in _numbers(self.url, RENEW):
                    if number <= self.number:
                        bucket.remove(_object(self.url, number), RENEW)

    def _keep(self) -> None:
        while not self._ended.wait(RENEW):
            with contextlib.suppress(Exception):  # a server that does not answer tells no successor otherwise either
                self._renew()
            if self.lost:
                self._on_loss()
                return

    def _renew(self) -> None:
        numbers = _numbers(self.url)
        if numbers and numbers[-1] > self.number:
            self.lost = _describe(_read(self.url, numbers[-1]))
        elif self.number not in numbers:
            self.lost = "another run, which has ended since"
        else:
            self._content["renewals"] += 1
            bucket.write(_object(self.url, self.number), _encode(self._content), patience=0)


@contextlib.contextmanager
def hold(url: str, started: str, on_loss: Callable[[], None], tell: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lock of the workdir at `url`.

    Args:
      url: the workdir.
      started: added to the description of the owner.
      on_loss: called, on a thread, if another run takes the workdir over.
      tell: prints that this process waits.

    Raises:
      ConfigError: a living run holds the lock.
    """
    lease = _acquire(url, started, on_loss, tell)
    try:
        yield lease
    finally:
        lease.release()


def _acquire(url: str, started: str, on_loss: Callable[[], None], tell: Callable[[str], None]) -> Lease:
    content = {"owner": f"process {os.getpid()} on {socket.gethostname()}{started}", "renewals": 0}
    content |= {"id": uuid.uuid4().hex, **_here()}
    while True:
        numbers = _numbers(url)
        dead = numbers[-1] if numbers else 0
        if dead and not _await_lapse(url, dead, tell):
            continue
        if bucket.create(_object(url, dead + 1), _encode(content)):
            now = _numbers(url)
            if now[-1:] == [dead + 1] and {*now} <= {*numbers, dead + 1}:
                return Lease(url, dead + 1, content, on_loss)
            bucket.remove(_object(url, dead + 1))  # two took over at once, from different states
            time.sleep(random.random())


def _await_lapse(url: str, number: int, tell: Callable[[str], None]) -> bool:
    """Return True once the owner counts as dead, False if the lease has ended; ConfigError if the owner lives."""
    first = _read(url, number)
    begun, told = time.monotonic(), False
    while first is not None and not _is_dead_here(first):
        if time.monotonic() - begun > LAPSE:
            return True
        if not told:
            tell(f"{url} is locked by {_describe(first)}: waiting whether it lives, at most {LAPSE:.0f} s")
        told = True
        time.sleep(min(1.0, RENEW))
        now = _read(url, number)
        if now is not None and now != first:
            raise ConfigError(
                f"--workdir={url} is in use by {_describe(now)}: wait for it, stop it, or give another folder"
            )
        if now is None:
            return False
    return first is not None


def _here() -> dict[str, str]:
    """Return what names a process of this machine for as long as the process lives; {} where /proc does not tell."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return {"machine": f"{boot} {os.readlink('/proc/self/ns/pid')}", "process": _process(os.getpid())}
    return {}


def _process(number: int) -> str:
    """Return number and start time of a process; "" if there is none that lives."""
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else f"{number} {fields[19]}"
    return ""


def _is_dead_here(content: dict[str, Any]) -> bool:
    """Return whether the owner was a process of this machine that has ended, or an earlier run of this process."""
    if content.get("id") in _ended:
        return True
    here = _here()
    if not here or content.get("machine") != here["machine"]:
        return False
    number, _, _ = str(content.get("process", "")).partition(" ")
    return not number.isdigit() or _process(int(number)) != content["process"]


def _numbers(url: str, patience: float | None = None) -> list[int]:
    names = bucket.listing(f"{url}/{FOLDER}", patience, is_folder=True)
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _object(url: str, number: int) -> str:
    return f"{url}/{FOLDER}/{number:06d}"


def _encode(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _read(url: str, number: int) -> dict[str, Any] | None:
    content = bucket.read(_object(url, number))
    if content is None:
        return None
    try:
        mark = json.loads(content)
    except ValueError:
        mark = None
    return mark if isinstance(mark, dict) else {}


def _describe(content: dict[str, Any] | None) -> str:
    return str((content or {}).get("owner", "another run"))

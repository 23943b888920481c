"""Coordination of the processes of a run: the first one decides and writes, the others follow.

JAX's coordination service has the barriers, and carries what all processes report to the first one. The `monitor` has
what must not wait or be asked for: the first one's decisions, and that a process has ended.
"""

import atexit
import collections
import contextlib
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax

from jtasks import storage
from jtasks.distributed import clusters, connections, monitor, rendezvous, service
from jtasks.distributed.clusters import Cluster
from jtasks.errors import EXIT_STOPPED, ConfigError, printable

T = TypeVar("T")

TIMEOUT_SECONDS = 300.0
TOKEN = ".processes"
SECRET = "JTASKS_SECRET"
OF_A_MACHINE = ("config.data.dir", "config.data.threads", "config.data.workers")

BARRIER_SECONDS = 7200  # a process compiles this much longer than another one at most

_counters: Mapping[str, Iterator[int]] = collections.defaultdict(itertools.count)  # of the calls of each kind
_links: list[monitor.PeerMonitor] = []  # the monitor of this process, at most one, as in jax.distributed


def start(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    timeout: float = TIMEOUT_SECONDS,
    workdir: pathlib.Path = pathlib.Path(),
    *,
    make: bool = False,
) -> Cluster | None:
    """Join the other processes of a run, given by the arguments or else by the environment.

    Args:
      coordinator: HOST:PORT where the first process listens.
      count: number of processes; 1 ignores the environment.
      index: index of this process, from 0.
      timeout: seconds to wait for the others.
      workdir: a folder that all processes see. The first one writes a token there; a process that cannot read the
        token is refused. This excludes strangers, and processes that would write their part of a checkpoint elsewhere.
      make: whether the first process creates the folder if absent.

    Returns:
      The joined run; None if the process is alone.

    Raises:
      ConfigError: the arguments are incomplete, the processes do not agree, or not all see `workdir`.
      TrainingError: a process did not come in time, or the first one does not answer.
    """
    cluster = find(coordinator, count, index)
    if cluster is None:
        return None
    if timeout <= 0:
        raise ConfigError(f"--timeout={timeout:g} must be more than 0 seconds")
    host, port = connections.address(cluster.coordinator)
    token = workdir.absolute() / TOKEN
    unwritable: list[str] = []
    source = (
        f"{token}. --workdir must be one folder that all machines share, and {SECRET}, if set, must be the same on all"
    )
    meeting = contextlib.ExitStack()

    def make_key() -> bytes:  # with the port: a second run that does not get it leaves the first one's token alone
        meeting.callback(_remove, token)
        unwritable.append(_write_token(token, make=make))
        return read_key(token)

    if cluster.process == 0:
        with meeting:
            members = cluster.coordinator, cluster.processes
            peers = rendezvous.accept_peers(*members, timeout, make_key, source, cluster.job)
    else:
        place = cluster.coordinator, cluster.process, cluster.processes
        peers = [rendezvous.join(*place, timeout, lambda: read_key(token), source, cluster.job)]
    local = connections.interface(host)
    jax.config.update("jax_enable_preemption_service", False)  # the service would take over SIGTERM
    _links[:] = [monitor.PeerMonitor(cluster.process, peers)]  # detects crashes from here on
    if any(unwritable) and (make or not os.environ.get(SECRET)):
        raise ConfigError(*unwritable)  # the other processes get the error only once they are connected
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.processes,
        cluster.process,
        local_device_ids=cluster.device,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"{f'[{local}]' if ':' in local else local}:{port}" if local else None,
        initialization_timeout=max(10, int(timeout)),
    )
    atexit.register(_links[0].leave)  # runs before jax.distributed's own exit, which waits for a limited time
    return cluster


def require_same(command: Mapping[str, Any]) -> None:
    """Raise ConfigError if this process was started with another command than the first one; else wait for all.

    The fields of `OF_A_MACHINE` and the folder of a task's file may differ.
    """
    own = {name: _format_value(name, value) for name, value in command.items() if name not in OF_A_MACHINE}
    first_ = broadcast_from_first(lambda: own)
    other = [name for name in {**first_, **own} if first_.get(name) != own.get(name)]
    if other:
        lines = [f"{name}: process 0 has {first_.get(name)}, this one {own.get(name)}" for name in other]
        raise ConfigError(
            f"process {jax.process_index()} was started with another command than process 0:\n  "
            + "\n  ".join(lines)
            + "\ngive all the same"
        )
    barrier()


def _format_value(name: str, value: Any) -> str:
    """Format a value as text, or as a hash if long, because messages between processes must be short."""
    if name == "config.task" and str(value).endswith(".py"):
        value = pathlib.PurePath(value).name
    text = json.dumps(value)
    return text if len(text) < 60 else hashlib.sha256(text.encode()).hexdigest()


def _write_token(path: pathlib.Path, *, make: bool) -> str:
    """Write a new token; returns the reason if that fails, else ""."""
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        storage.send_file(path)
        return ""
    except (OSError, ConfigError) as error:
        _remove(path)
        reason = getattr(error, "strerror", None) or error
        hint = "" if make else f"; where all set the same {SECRET}, it may be read-only"
        return f"--workdir={path.parent} cannot be written to ({reason}): the processes of a run meet there{hint}"


def _remove(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
        storage.remove_file(path)


def read_key(path: pathlib.Path) -> bytes:
    """Return a hash of what only members know: the token in the shared folder, and the environment's secret, if any.

    In a read-only folder the run's config takes the token's place.
    """
    token = b""  # not there yet: the greeting is refused and repeated
    with contextlib.suppress(OSError):
        storage.receive_file(path)
    for file in (path, path.with_name("config.json")):
        with contextlib.suppress(OSError):
            token = file.read_bytes()[: 2**20]
            break
    return hashlib.sha256(os.environ.get(SECRET, "").encode() + b"\0" + token).digest()


def find(coordinator: str | None, count: int | None, index: int | None) -> Cluster | None:
    """Return the run that the arguments describe, or without arguments the environment."""
    arguments = {"--coordinator": coordinator, "--num-processes": count, "--process-id": index}
    missing = [name for name, value in arguments.items() if value is None]
    if len(missing) == len(arguments):
        return clusters.detect(os.environ)
    if count == 1 and coordinator is None and not index:
        return None
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} missing: a run of several processes needs all of {', '.join(arguments)}"
        )
    assert coordinator is not None
    assert count is not None
    assert index is not None
    if not 0 <= index < count:
        raise ConfigError(f"--process-id={index} must be at least 0 and below --num-processes={count}")
    return Cluster("the command line", coordinator, count, index) if count > 1 else None


def report_failure(code: int, text: str) -> None:
    """End this process with `code`, and send the reason to the others; does nothing if the process is alone."""
    if _links:
        _links[0].fail(code, text)


def end(text: str, code: int) -> NoReturn:
    """Print `text` and end this process with `code`, from any thread; the other processes of the run end too."""
    with contextlib.suppress(OSError, ValueError):
        print(printable(text), file=sys.stderr, flush=True)
    report_failure(code, text.removeprefix("error: "))
    os._exit(code)


def before_abort(clear: Callable[[], None]) -> None:
    """Make the first process call `clear` before it ends for a failure, its own or another process's."""
    if _links and first():
        _links[0].clear = clear


def ask(number: int) -> None:
    """Ask the first process to stop all processes, because this one got the signal `number`."""
    if _links:
        _links[0].ask(number)


def heed(act: Callable[[int], None]) -> None:
    """Set the function that the first process calls with the signal when another process asks to stop."""
    if _links:
        _links[0].heed(act)


def await_news() -> None:
    """Wait briefly after a failed collective: if a peer's crash caused it, the monitor ends this process."""
    if _links:
        time.sleep(monitor.GRACE_SECONDS + 1)


def alone() -> bool:
    """Return whether the run has no other processes."""
    return jax.process_count() == 1


def is_external() -> bool:
    """Return whether another program than jtasks connected the processes of this run."""
    return not _links and not alone()


def first() -> bool:
    """Return whether this is the first process, which prints and writes."""
    return jax.process_index() == 0


def broadcast_from_first(decide: Callable[[], T]) -> T:
    """Return on all processes the result of `decide`, JSON data, which only the first one calls; the others wait."""
    if alone():
        return decide()
    if _links and first():
        value = decide()
        _links[0].tell(value)
        return value
    if _links:
        return _links[0].hear()  # without a time-out: preparing data may take the first process hours
    key = f"decision/{next(_counters['decision'])}"
    if not first():
        agreed: T = service.get(key)
        return agreed
    value = decide()
    service.put(key, value)
    return value


def gather(name: str, value: Any) -> list[Any]:
    """Return on the first process the values, JSON data, of all processes in order, once all have called; else [].

    May be called from any thread; calls of one `name` must have the same order on all processes.
    """
    if alone():
        return [value]
    key = f"{name}/{next(_counters[name])}"
    service.put(f"{key}/{jax.process_index()}", value)
    if not first():
        return []
    values = [service.get(f"{key}/{index}") for index in range(jax.process_count())]
    service.delete(key)
    return values


def barrier() -> None:
    """Wait until all processes are here; ends the run, with their names, if some stay away for hours.

    Call this before a new collective: collectives connect only if all processes start within half a minute, and unlike
    machines compile at different speeds.
    """
    if alone():
        return
    absent = service.absent(f"barrier/{next(_counters['barrier'])}", BARRIER_SECONDS)
    if absent is not None:
        hung = f"process{'es' * (len(absent) > 1)} {', '.join(map(str, absent)) or '?'}"
        hours = f"{BARRIER_SECONDS / 3600:g} hours"
        text = f"the others have waited for {hung} for {hours}. Run the same command again to resume"
        end(f"error: {text}", EXIT_STOPPED)


def on_first_process(action: Callable[[], None]) -> None:
    """Run `action` on the first process while the others wait."""

    def decide() -> int:
        action()
        return 0

    broadcast_from_first(decide)

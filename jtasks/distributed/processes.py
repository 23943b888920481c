"""Several processes as one run: the first decides and writes, the others follow."""

import atexit
import contextlib
import hashlib
import json
import os
import pathlib
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtasks.distributed import clusters, rendezvous
from jtasks.distributed.clusters import Cluster
from jtasks.errors import ConfigError

T = TypeVar("T")

TIMEOUT_SECONDS = 300.0
TOKEN = ".processes"
SECRET = "JTASKS_SECRET"
OF_A_MACHINE = ("config.data.dir", "config.data.threads", "config.data.workers")

_links: list[rendezvous.PeerMonitor] = []  # this process's place in its run, as jax.distributed too keeps one a process


def start(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    timeout: float = TIMEOUT_SECONDS,
    workdir: pathlib.Path = pathlib.Path(),
    *,
    make: bool = False,
) -> Cluster | None:
    """Join the other processes of a run; without arguments, those that the environment tells of, if any.

    Args:
      coordinator: HOST:PORT where the first process listens.
      count: number of processes; 1 means alone, whatever the environment tells.
      index: which of them this is, from 0.
      timeout: seconds to wait for the others.
      workdir: a folder that all of them see. The first writes a token there, and who cannot read it is no member:
        so strangers stay out, and so do processes that would write their part of a checkpoint elsewhere.
      make: whether the first makes the folder where it is absent.

    Returns:
      The run that was joined; None where the process is alone.

    Raises:
      ConfigError: the arguments are incomplete, the processes do not agree, or not all see `workdir`.
      TrainingError: a process did not come in time, or the first one does not answer.
    """
    cluster = find(coordinator, count, index)
    if cluster is None:
        return None
    if timeout <= 0:
        raise ConfigError(f"--timeout={timeout:g} must be more than 0 seconds")
    host, port = rendezvous.address(cluster.coordinator)
    token = workdir.absolute() / TOKEN
    source = (
        f"{token}. --workdir must be one folder that all machines share, and {SECRET} the same on all, if it is set"
    )
    if cluster.process == 0:
        _write_token(token, make=make)
        try:
            connections = rendezvous.accept_peers(cluster.coordinator, cluster.processes, timeout, _key(token), source)
        finally:
            with contextlib.suppress(OSError):
                token.unlink()
    else:
        members = cluster.process, cluster.processes
        connections = [rendezvous.join(cluster.coordinator, *members, timeout, lambda: _key(token), source)]
    local = rendezvous.interface(host)
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    _links[:] = [rendezvous.PeerMonitor(cluster.process, connections)]  # from here on, a death is noticed
    jax.distributed.initialize(
        cluster.coordinator,
        cluster.processes,
        cluster.process,
        local_device_ids=cluster.device,
        cluster_detection_method="deactivate",
        coordinator_bind_address=f"{f'[{local}]' if ':' in local else local}:{port}" if local else None,
        initialization_timeout=max(10, int(timeout)),
    )
    atexit.register(_links[0].leave)  # runs before jax.distributed's own, which waits for the others only so long
    return cluster


def require_same(command: Mapping[str, Any]) -> None:
    """Raise ConfigError where this process was started with another command than the first one; else wait for all.

    Fields may differ that tell where a machine has its data and how it reads them, and the folder of a task's file.
    """
    own = {name: _short(name, value) for name, value in command.items() if name not in OF_A_MACHINE}
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


def _short(name: str, value: Any) -> str:
    """A value as text; a hash where that is long, as messages between processes must not be."""
    if name == "config.task" and str(value).endswith(".py"):
        value = pathlib.PurePath(value).name
    text = json.dumps(value)
    return text if len(text) < 60 else hashlib.sha256(text.encode()).hexdigest()


def _write_token(path: pathlib.Path, *, make: bool) -> None:
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ConfigError(
            f"--workdir={path.parent} cannot be written to ({error.strerror}): the processes of a run meet there"
        ) from None


def _key(path: pathlib.Path) -> bytes:
    """What only members know: the token in the folder that they share, and the secret of the environment, if any."""
    try:
        token = path.read_bytes()[:1024]
    except OSError:
        token = b""  # not there yet: a greeting with it is refused, and made again
    return hashlib.sha256(os.environ.get(SECRET, "").encode() + b"\0" + token).digest()


def find(coordinator: str | None, count: int | None, index: int | None) -> Cluster | None:
    """The run that the arguments, or without any the environment, tell of."""
    given = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return clusters.detect(os.environ)
    if count == 1 and coordinator is None and not index:
        return None
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing: a run of several processes needs all of {', '.join(given)}")
    assert coordinator is not None
    assert count is not None
    assert index is not None
    if not 0 <= index < count:
        raise ConfigError(f"--process={index} must be at least 0 and below --processes={count}")
    return Cluster("the command line", coordinator, count, index) if count > 1 else None


def failed(code: int, text: str) -> None:
    """End this process of several with `code`, and tell the others why; does nothing where it is alone."""
    if _links:
        _links[0].fail(code, text)


def ask(number: int) -> None:
    """Ask the first process to have all stop, as this one was by a signal."""
    if _links:
        _links[0].ask(number)


def heed(act: Callable[[int], None]) -> None:
    """Have `act` called, on the first process, with the signal for which another one asks to stop."""
    if _links:
        _links[0].heed(act)


def await_news() -> None:
    """After an error of a collective: if it came of another process's end, which is then about to be told, end too."""
    if _links:
        time.sleep(rendezvous.GRACE_SECONDS + 1)


def alone() -> bool:
    """Whether the run has no other processes."""
    return jax.process_count() == 1


def unlinked() -> bool:
    """Whether another program than jtasks has started the processes of this run."""
    return not _links and not alone()


def first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def broadcast_from_first(decide: Callable[[], T]) -> T:
    """What `decide` returns on the first process, JSON data, on all of them; the others wait and do not call it."""
    if alone():
        return decide()
    if _links and first():
        value = decide()
        _links[0].tell(value)
        return value
    if _links:
        return _links[0].hear()  # without a time-out: preparing data may take the first process hours
    text = json.dumps(decide()).encode() if first() else b""
    size = int(_first(np.array([len(text)], np.int32))[0])
    agreed: T = json.loads(_first(np.frombuffer(text.ljust(size), np.uint8)).tobytes())
    return agreed


def _first(array: np.ndarray) -> np.ndarray:
    """The array of the first process, on all that someone else started; each gives one of its shape.

    JAX's broadcast_one_to_all wants the same number of devices on all processes.
    """
    devices = jax.devices()
    mesh = Mesh(np.array(devices), ("all",))
    everyone = jax.make_array_from_callback(
        (len(devices), *array.shape), NamedSharding(mesh, PartitionSpec("all")), lambda _: array[None]
    )
    whole = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(everyone)
    return np.asarray(whole.addressable_data(0)[[device.process_index for device in devices].index(0)])


def barrier() -> None:
    """Wait until all processes are here, however long it takes a slow one.

    To be called before collectives that are new: they find each other only if all come within half a minute, and
    machines that are not alike compile at different speeds.
    """
    if _links and first():
        for _ in range(jax.process_count() - 1):
            _links[0].hear()
        _links[0].tell(0)
    elif _links:
        _links[0].tell(0)
        _links[0].hear()


def on_first_process(action: Callable[[], None]) -> None:
    """Run `action` on the first process while the others wait."""

    def decide() -> int:
        action()
        return 0

    broadcast_from_first(decide)

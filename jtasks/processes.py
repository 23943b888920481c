"""Several processes as one run: the first decides and writes, the others follow."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from jtasks.errors import ConfigError

T = TypeVar("T")


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Join the other processes of a run; without arguments the process is alone.

    Args:
      coordinator: HOST:PORT where the first process listens.
      count: number of processes.
      index: which of them this is, from 0.
    """
    given = {"--coordinator": coordinator, "--processes": count, "--process": index}
    missing = [name for name, value in given.items() if value is None]
    if len(missing) == len(given):
        return
    if missing:
        raise ConfigError(f"{', '.join(missing)} missing: a run of several processes needs all of {', '.join(given)}")
    assert count is not None
    assert index is not None
    if not 0 <= index < count:
        raise ConfigError(f"--process={index} must be at least 0 and below --processes={count}")
    jax.distributed.initialize(coordinator, count, index)


def alone() -> bool:
    """Whether the run has no other processes."""
    return jax.process_count() == 1


def first() -> bool:
    """Whether this process prints and writes."""
    return jax.process_index() == 0


def agree(decide: Callable[[], int]) -> int:
    """What `decide` returns on the first process, on all of them; the others wait for it and do not call it."""
    if alone():
        return decide()
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(decide() if first() else 0)))


def once(action: Callable[[], None]) -> None:
    """Run `action` on the first process while the others wait."""

    def decide() -> int:
        action()
        return 0

    agree(decide)

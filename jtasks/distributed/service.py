"""JAX's coordination service, which every run of several processes has: values by key, and barriers.

May be used from any thread. The service's client has no public name in JAX.
"""

import json
import re
from typing import Any

import jax

from jtasks.errors import ConfigError

WAIT_MILLISECONDS = 600_000
TIMED_OUT = "DEADLINE_EXCEEDED"


def put(key: str, value: Any) -> None:
    """Store a value, JSON data, under a new key."""
    _client().key_value_set(f"jtasks/{key}", json.dumps(value))


def get(key: str) -> Any:
    """Wait for a value, without a timeout: the monitor ends this process if the one that puts it crashes."""
    while True:
        try:
            return json.loads(_client().blocking_key_value_get(f"jtasks/{key}", WAIT_MILLISECONDS))
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith(TIMED_OUT):
                raise


def delete(key: str) -> None:
    """Delete the value under a key, and those under the keys that begin with it and a slash."""
    _client().key_value_delete(f"jtasks/{key}")


def absent(name: str, seconds: int) -> list[int] | None:
    """Wait at a new barrier for all processes; returns those that did not come in time, None if all came."""
    try:
        _client().wait_at_barrier(f"jtasks/{name}", seconds * 1000)
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(TIMED_OUT):
            raise
        names = str(error).partition("task names:")[2].partition("\n\n")[0]  # a line each
        return sorted(map(int, re.findall(r"\d+(?=[\s,]|$)", names)))
    return None


def _client() -> Any:
    from jax._src import distributed

    if distributed.global_state.client is None:
        raise ConfigError("a run of several processes needs jax.distributed.initialize()")
    return distributed.global_state.client

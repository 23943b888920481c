"""Devices that are not alike: how many microbatches of a step each takes, and how its rows are dealt out.

A batch is cut into sum(shares) microbatches of equal size, and the device at place d of the mesh's `data` axis takes
shares[d] of them, in one program and with the exact gradient (`jtasks/run/step.py`). Shares are given by hand, or found
from each device's speed. (HetSeq, Ding et al. 2021, weights the unequal batches of unlike devices approximately.)
"""

import functools
import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.distributed import sharding
from jtasks.errors import ConfigError

AUTO, AGAIN = "auto", "auto!"
WORDS = ("equal", AUTO, AGAIN)


def unequal(shares: Any) -> tuple[int, ...]:
    """The microbatches of each device, where they differ; () where all devices take the same."""
    known = tuple(shares) if isinstance(shares, tuple | list) else ()
    return known if len(set(known)) > 1 else ()


def check_form(shares: Any, accumulate: int) -> None:
    """Raise ConfigError where config.shares is no shares on any mesh, or does not go with config.accumulate."""
    said = f"config.shares={shares!r}"
    if isinstance(shares, tuple | list):
        if not all(type(share) is int and share >= 0 for share in shares) or not any(shares):
            raise ConfigError(f"{said} must be whole numbers of at least 0, not all of them 0")
        if accumulate > 1:
            raise ConfigError(f"{said} are microbatches already: config.accumulate={accumulate} must be 1")
    elif shares not in (None, "", *WORDS):
        raise ConfigError(f"{said} must be a tuple of whole numbers, {' or '.join(map(repr, WORDS))}")
    elif shares in (AUTO, AGAIN) and accumulate > 1:
        raise ConfigError(f"{said} finds the microbatches itself: config.accumulate={accumulate} must be 1")


def checked_shares(config: Any, devices: Mapping[str, int], *, mixes: bool) -> tuple[int, ...]:
    """The microbatches of each part of the batch, in the order of the mesh.

    Args:
      devices: along each axis of the mesh.
      mixes: whether the loss mixes the examples of a batch.

    Raises:
      ConfigError: config.shares or config.accumulate cannot be, on this mesh or with this loss.
    """
    shares, parts = config.shares, math.prod(devices.get(axis, 1) for axis in sharding.BATCH_AXES)
    said = f"config.shares={shares!r}"
    check_form(shares, config.accumulate)
    if isinstance(shares, tuple | list) and len(shares) != devices["data"]:
        raise ConfigError(f"{said} has {len(shares)} numbers, but config.mesh.data has {devices['data']} devices")
    if (unequal(shares) or shares in (AUTO, AGAIN)) and math.prod(devices.values()) != devices["data"]:
        raise ConfigError(f"{said} needs whole parameters on each device: config.mesh.fsdp and .tensor must be 1")
    found = unequal(shares) or (count_microbatches(config),) * parts
    if mixes and (max(found) > 1 or min(found) == 0 or shares in (AUTO, AGAIN)):
        raise ConfigError(
            f"the loss of {config.task} mixes the examples of a batch (MIXES_EXAMPLES), so microbatches would change"
            f" it: config.accumulate={config.accumulate} must be 1, and config.shares={shares!r} None"
        )
    if mixes and config.batch_size % parts:
        raise ConfigError(
            f"the loss of {config.task} mixes the examples of a batch (MIXES_EXAMPLES), so padding would change it:"
            f" config.batch_size={config.batch_size} must be divisible by {parts} devices"
        )
    return found


def count_microbatches(config: Any) -> int:
    """The microbatches that each device takes, where all take the same: `config.accumulate`, or the equal shares."""
    shares = config.shares
    return shares[0] if isinstance(shares, tuple | list) else config.accumulate


@functools.lru_cache(maxsize=64)
def layout(examples: int, shares: tuple[int, ...]) -> np.ndarray:
    """Which of a step's examples stands in each row on the devices, -1 for padding; a pure function.

    The rows are those of the devices in turn, as many on each: max(shares) microbatches of
    ceil(examples / sum(shares)) rows. Microbatch j of J holds the examples j, j + J, ...; the devices take
    microbatches by number, the first shares[0] of them on the first device.

    With equal shares the examples stand in their order: `step.exact_gradient` takes every J-th by itself.

    Returns:
      [devices * max(shares) * rows of a microbatch] int64.

    >>> layout(5, (2, 1))
    array([ 0,  3,  1,  4,  2, -1, -1, -1])
    >>> layout(5, (1, 1))
    array([ 0,  1,  2,  3,  4, -1])
    """
    total, most = sum(shares), max(shares)
    size = -(-examples // total)
    rows: np.ndarray = np.arange(total * size)
    if min(shares) < most:
        share, slot = np.array(shares)[:, None, None], np.arange(most)[None, :, None]
        number = (np.cumsum(shares) - shares)[:, None, None] + slot
        rows = number + total * np.arange(size)[None, None]
        rows = np.where(slot < share, rows, -1).reshape(-1)
    rows = np.where(rows < examples, rows, -1)
    rows.flags.writeable = False  # the cache hands out the same array again
    return rows


def rows_of_microbatches(shares: tuple[int, ...], rows: int) -> list[np.ndarray]:
    """The rows that each microbatch of the step takes, of the `rows` that are laid out on all devices."""
    most = max(shares)
    if min(shares) == most:
        return [np.arange(number, rows, most) for number in range(most)]
    each = np.arange(rows).reshape(len(shares), most, -1)
    return [each[device, slot] for device, share in enumerate(shares) for slot in range(share)]


def best_shares(
    start: np.ndarray, example: np.ndarray, batch_size: int, *, tolerance: float = 0.05
) -> tuple[tuple[int, ...], float]:
    """Whole-number shares that make the step short, and the seconds that its slowest device then takes.

    Device d needs start[d] + m * example[d] seconds for a microbatch of m examples. No microbatch is larger than
    with a share of 1 each, so memory does not grow. Fewer, larger microbatches are preferred as long as
    the step is within `tolerance` of the shortest.

    Args:
      start: [devices] seconds, at least 0.
      example: [devices] seconds, above 0.
    """
    devices = len(start)
    found: list[tuple[float, int, tuple[int, ...]]] = []
    for size in range(1, -(-batch_size // devices) + 1):
        count = -(-batch_size // size)
        each = np.asarray(start) + size * np.asarray(example)
        shares = [0] * devices
        queue = [(float(seconds), device) for device, seconds in enumerate(each)]  # when it were done with one more
        heapq.heapify(queue)
        last = 0.0
        for _ in range(count):
            done, device = heapq.heappop(queue)
            shares[device] += 1
            last = max(last, done)
            heapq.heappush(queue, (float(each[device]) * (shares[device] + 1), device))
        found.append((last, count, tuple(shares)))
    shortest = min(found)[0]
    seconds, _, best = min((f for f in found if f[0] <= shortest * (1 + tolerance)), key=lambda f: f[1])
    return best, seconds

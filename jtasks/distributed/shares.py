"""Shares of unlike devices: how many microbatches of a step each device takes, and the layout of its rows.

A batch is cut into sum(shares) microbatches of equal size. Device d of the mesh's `data` axis takes shares[d]
microbatches, in one program and with the exact gradient (`jtasks/run/gradient.py`). Shares are set by hand or computed
from each device's speed. (HetSeq, Ding et al. 2021, weights the unequal batches of unlike devices approximately.)
"""

import functools
import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jtasks.errors import ConfigError
from jtasks.schema import BATCH_AXES, Config

AUTO, AGAIN = "auto", "auto!"
WORDS = ("equal", AUTO, AGAIN)


def unequal(shares: Any) -> tuple[int, ...]:
    """Return the microbatches of each device if they differ; () if all devices take the same number."""
    known = tuple(shares) if isinstance(shares, tuple | list) else ()
    return known if len(set(known)) > 1 else ()


def check_form(shares: Any, accumulate: int) -> None:
    """Raise ConfigError if config.shares is invalid on any mesh, or excludes config.accumulate."""
    field = f"config.shares={shares!r}"
    if isinstance(shares, tuple | list):
        if not all(type(share) is int and share >= 0 for share in shares) or not any(shares):
            raise ConfigError(f"{field} must be whole numbers of at least 0, not all of them 0")
        if accumulate > 1:
            raise ConfigError(f"{field} are microbatches already: config.accumulate={accumulate} must be 1")
    elif shares not in (None, "", *WORDS):
        raise ConfigError(f"{field} must be a tuple of whole numbers, {' or '.join(map(repr, WORDS))}")
    elif shares in (AUTO, AGAIN) and accumulate > 1:
        raise ConfigError(f"{field} chooses the microbatches itself: config.accumulate={accumulate} must be 1")


def check_shares(config: Config, devices: Mapping[str, int], *, mixes: bool) -> tuple[int, ...]:
    """Return the microbatches of each shard of the batch, in the order of the mesh.

    Args:
      config: the config.
      devices: number of devices along each axis of the mesh.
      mixes: whether the loss mixes the examples of a batch.

    Raises:
      ConfigError: config.shares or config.accumulate is impossible on this mesh or with this loss.
    """
    shares, parts = config.shares, math.prod(devices.get(axis, 1) for axis in BATCH_AXES)
    field = f"config.shares={shares!r}"
    check_form(shares, config.accumulate)
    if isinstance(shares, tuple | list) and len(shares) != devices["data"]:
        raise ConfigError(f"{field} has {len(shares)} numbers, but config.mesh.data has {devices['data']} devices")
    if (unequal(shares) or shares in (AUTO, AGAIN)) and math.prod(devices.values()) != devices["data"]:
        raise ConfigError(f"{field} needs whole parameters on each device: config.mesh.fsdp and .tensor must be 1")
    counts = unequal(shares) or (count_microbatches(config),) * parts
    if mixes and (max(counts) > 1 or min(counts) == 0 or shares in (AUTO, AGAIN)):
        raise ConfigError(
            f"the loss of {config.task} mixes the examples of a batch (MIXES_EXAMPLES), so microbatches would change"
            f" it: config.accumulate={config.accumulate} must be 1, and config.shares={shares!r} None; a loss by"
            " batch_loss_fn can be split"
        )
    if mixes and config.batch_size % parts:
        raise ConfigError(
            f"the loss of {config.task} mixes the examples of a batch (MIXES_EXAMPLES), so padding would change it:"
            f" config.batch_size={config.batch_size} must be divisible by {parts} devices"
        )
    return counts


def count_microbatches(config: Config) -> int:
    """Return the microbatches of each device if all take the same number: `config.accumulate`, or equal shares."""
    shares = config.shares
    return shares[0] if isinstance(shares, tuple | list) else config.accumulate


@functools.lru_cache(maxsize=64)
def layout(examples: int, shares: tuple[int, ...]) -> np.ndarray:
    """Return the example in each row of a step's batch on the devices, -1 for padding; a pure function.

    Rows are in the order of the devices. Each device has max(shares) microbatches of ceil(examples / sum(shares))
    rows. Microbatch j of J holds the examples j, j + J, ...; the devices take microbatches by number, the first
    device the first shares[0] microbatches.

    With equal shares the examples keep their order: `gradient.exact_gradient` itself takes every J-th.

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
    rows.flags.writeable = False  # the cache returns the same array again
    return rows


def rows_of_microbatches(shares: tuple[int, ...], rows: int) -> list[np.ndarray]:
    """Return the rows of each microbatch of a step, among the `rows` on all devices."""
    most = max(shares)
    if min(shares) == most:
        return [np.arange(number, rows, most) for number in range(most)]
    each = np.arange(rows).reshape(len(shares), most, -1)
    return [each[device, slot] for device, share in enumerate(shares) for slot in range(share)]


def best_shares(
    start: np.ndarray, example: np.ndarray, batch_size: int, *, tolerance: float = 0.05
) -> tuple[tuple[int, ...], float]:
    """Return whole-number shares that make the step short, and the seconds of the slowest device.

    Device d needs start[d] + m * example[d] seconds for a microbatch of m examples. No microbatch is larger than
    with shares of 1, so memory does not grow. Fewer, larger microbatches win if the step is within `tolerance` of
    the shortest.

    Args:
      start: [devices] seconds, at least 0.
      example: [devices] seconds, above 0.
      batch_size: examples per step.
      tolerance: accepted slowdown relative to the shortest step.
    """
    devices = len(start)
    candidates: list[tuple[float, int, tuple[int, ...]]] = []
    for size in range(1, -(-batch_size // devices) + 1):
        count = -(-batch_size // size)
        each = np.asarray(start) + size * np.asarray(example)
        shares = [0] * devices
        queue = [
            (float(seconds), device) for device, seconds in enumerate(each)
        ]  # finish time after one more microbatch
        heapq.heapify(queue)
        last = 0.0
        for _ in range(count):
            done, device = heapq.heappop(queue)
            shares[device] += 1
            last = max(last, done)
            heapq.heappush(queue, (float(each[device]) * (shares[device] + 1), device))
        candidates.append((last, count, tuple(shares)))
    shortest = min(candidates)[0]
    seconds, _, best = min((c for c in candidates if c[0] <= shortest * (1 + tolerance)), key=lambda c: c[1])
    return best, seconds

"""Batches by token budget: examples of similar length share a batch, which is cut to its bucket's length.

The batch of a step is a pure function of (seed, step) and independent of the devices. In each epoch the examples of
each bucket are permuted and cut into batches. The remainder joins the next longer bucket, so at most one batch per
epoch is not full. Then the batches are permuted. In evaluation each bucket keeps its remainder, so that the shape of
an example's batch depends on that example alone. HetSeq and fairseq call the budget `max_tokens` (Ott et al. 2019,
"fairseq: A Fast, Extensible Toolkit for Sequence Modeling").
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jtasks.data.batch_plan import BatchPlan
from jtasks.data.shuffle import example_seeds, permutation
from jtasks.distributed.shares import layout
from jtasks.errors import ConfigError, DataError

MULTIPLE = 8  # rows are rounded down to multiples of 8, so that up to 8 devices share a batch evenly


class Epoch(NamedTuple):
    """One pass over the data: batch k holds `order[starts[k] : starts[k + 1]]` and belongs to bucket `kinds[k]`."""

    order: np.ndarray  # [n] example indices
    starts: np.ndarray  # [batches + 1]
    kinds: np.ndarray  # [batches]


@dataclasses.dataclass(frozen=True, eq=False)
class BucketPlan(BatchPlan):
    """A `BatchPlan` with batches of several shapes; `batch_size` is the number of examples in the largest.

    Attributes:
      lengths: [n] tokens of each example.
      buckets: lengths that batches are cut to, ascending.
      full: number of examples in a full batch of each bucket.
      padded: entries of a batch whose last axis is cut.
    """

    lengths: np.ndarray
    buckets: tuple[int, ...]
    full: tuple[int, ...]
    padded: tuple[str, ...]

    varies: ClassVar[bool] = True
    epochs: dict[int, Epoch] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def _at(self, positions: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return indices, `mask` and `seed` at positions `step * batch_size + row`; padding repeats an example."""
        steps, rows = np.divmod(positions, self.batch_size)
        epochs, batches = np.divmod(steps, self.steps(1))
        indices, mask = np.empty_like(positions), np.empty(positions.shape, np.float32)
        for number in np.unique(epochs):
            here, epoch = epochs == number, self.epoch(int(number))
            starts, stops = epoch.starts[batches[here]], epoch.starts[batches[here] + 1]
            mask[here] = rows[here] < stops - starts
            indices[here] = epoch.order[np.minimum(starts + rows[here], stops - 1)]
        return indices, {"mask": mask, "seed": example_seeds(self.seed, epochs, indices)}

    def examples(self, step: int) -> int:
        """Return the number of examples in the batch of `step`, if it is full."""
        return self.full[self._kind(step)]

    def steps(self, epochs: float) -> int:
        """Return the number of batches in `epochs` passes over the data, rounded up."""
        return math.ceil(epochs * self.epoch_steps)

    def count(self, steps: range) -> dict[str, int]:
        """Count the examples and the tokens, without padding, in the batches of `steps`."""
        counts = {"examples": 0, "tokens": 0}
        for step in steps:
            number, batch = divmod(step, self.steps(1))
            epoch = self.epoch(number)
            indices = epoch.order[epoch.starts[batch] : epoch.starts[batch + 1]]
            counts["examples"] += len(indices)
            counts["tokens"] += int(self.lengths[indices].sum())
        return counts

    def cut(self, batch: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Cut the padded entries [..., t] of the batch of `step` to its bucket's length."""
        length = self.buckets[self._kind(step)]
        return {name: x[..., :length] if name in self.padded else x for name, x in batch.items()}

    @functools.cached_property
    def batches(self) -> list[int]:
        """Number of batches of each bucket in an epoch."""
        counts, left = list[int](), 0
        for kind, members in enumerate(np.bincount(self.kinds, minlength=len(self.buckets)).tolist()):
            count, left = divmod(members + left, self.full[kind])
            if left and (not self.shuffle or kind == len(self.buckets) - 1):
                count, left = count + 1, 0
            counts.append(count)
        return counts

    @property
    def epoch_steps(self) -> float:
        """Number of batches in one pass over the data."""
        return float(sum(self.batches))

    def shapes(self) -> dict[int, float]:
        """Return a step of each shape that occurs, with the fraction of steps of that shape."""
        kinds, steps = np.unique(self.epoch(0).kinds, return_index=True)
        return {int(step): self.batches[kind] / sum(self.batches) for kind, step in zip(kinds, steps, strict=True)}

    def describe(self) -> str:
        """Describe the shapes of the batches."""
        used = [f"{full} x {t}" for full, t, count in zip(self.full, self.buckets, self.batches, strict=True) if count]
        return f"{' or '.join(used)} tokens"

    def epoch(self, number: int) -> Epoch:
        """Return the batches of one epoch; the last two epochs are cached."""
        if number not in self.epochs:
            new = self._epoch(number)
            for old in list(self.epochs)[:-1]:
                self.epochs.pop(old, None)
            self.epochs[number] = new
        return self.epochs[number]

    def _epoch(self, number: int) -> Epoch:
        key, kinds_of = (self.seed, number), self.kinds
        batches: list[np.ndarray] = []
        kinds: list[int] = []
        left = np.empty(0, np.int64)
        for kind, size in enumerate(self.full):
            members = np.concatenate([left, np.flatnonzero(kinds_of == kind)])
            members = members[permutation(len(members), *key, kind)] if self.shuffle else members
            last = kind == len(self.full) - 1
            whole = len(members) if last or not self.shuffle else len(members) // size * size
            batches += [members[i : i + size] for i in range(0, whole, size)]
            kinds += [kind] * (len(batches) - len(kinds))
            left = members[whole:]
        order = permutation(len(batches), *key, len(self.full)) if self.shuffle else np.arange(len(batches))
        starts = np.cumsum([0, *(len(batches[k]) for k in order)])
        return Epoch(np.concatenate([batches[k] for k in order]), starts, np.array(kinds)[order])

    @functools.cached_property
    def kinds(self) -> np.ndarray:
        """Bucket of each example: the shortest that holds it."""
        return np.searchsorted(self.buckets, self.lengths)

    def _kind(self, step: int) -> int:
        number, batch = divmod(step, self.steps(1))
        return int(self.epoch(number).kinds[batch])


def plan(
    lengths: np.ndarray,
    seed: int,
    *,
    shuffle: bool,
    tokens: int,
    buckets: tuple[int, ...],
    padded: tuple[str, ...],
    shares: tuple[int, ...] = (1,),
) -> BucketPlan:
    """Plan batches of at most `tokens` tokens, including padding to the bucket's length.

    Args:
      lengths: [n] tokens of each example.
      seed: seed of the run.
      shuffle: for training; otherwise batches and examples keep the order of the data.
      tokens: the budget. A bucket's batches have `tokens // bucket` examples, rounded down to a multiple of 8, or below
        8 to a power of two, on any devices.
      buckets: lengths, ascending.
      padded: names of the entries to cut.
      shares: microbatches of each device. A batch that they do not divide is filled up with empty rows beyond the
        budget.

    Raises:
      ConfigError: the buckets are not ascending lengths, or the budget is too small for a row in each microbatch.
      DataError: an example is longer than the longest bucket.
    """
    if not buckets or buckets[0] < 1 or any(a >= b for a, b in itertools.pairwise(buckets)):
        raise ConfigError(f"config.data.buckets={buckets} must be lengths in ascending order, such as (32, 64, 128)")
    longest = int(np.argmax(lengths))
    if lengths[longest] > buckets[-1]:
        raise DataError(
            f"example {longest} has {lengths[longest]} tokens, more than the longest of config.data.buckets={buckets}:"
            " add a longer bucket, or cut the texts shorter"
        )
    parts = sum(shares)
    if tokens // buckets[-1] < parts:
        raise ConfigError(
            f"config.batch_tokens={tokens} holds {tokens // buckets[-1]} rows of {buckets[-1]} tokens, fewer than"
            f" {parts} microbatches on all devices; give at least {parts * buckets[-1]}"
        )
    full = tuple(_examples(tokens // bucket) for bucket in buckets)
    return BucketPlan(len(lengths), seed, full[0], shuffle, lengths, buckets, full, padded, shares=shares)


def waste(plan: BucketPlan) -> tuple[float, float]:
    """Return the fraction of padding in an epoch, and what it would be if every batch used the longest bucket."""
    real = float(plan.lengths.sum())
    rows = [len(layout(full, plan.shares)) for full in plan.full]
    batched = sum(r * length * count for r, length, count in zip(rows, plan.buckets, plan.batches, strict=True))
    return 1 - real / batched, 1 - real / (plan.n * plan.buckets[-1])


def _examples(rows: int) -> int:
    """Round `rows` down: to a multiple of 8, or below 8 to a power of two."""
    return rows - rows % MULTIPLE if rows >= MULTIPLE else 2 ** int(math.log2(rows))
